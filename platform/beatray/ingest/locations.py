"""Several locations of one data set: one list of recordings out of them, each under its name once.

A data set is often kept in parts: an older download and a newer one, folders by year, archives by rate. Recordings are
known by source and name, so a name that several locations list is read once: from the first location that does not
refuse the recording and whose tree has its file, since a part often comes with the table of the whole; from the first
location where none has it. The others are counted, the first by name, as not listed. That holds for data sets that
number their recordings; where a path is the only name, the same path at two locations is refused. The same signal under
two names stays two recordings, which the splits keep in one part (`corpus.splits`).

Contract: nothing here reads a recording, and nothing that is stored shows a path of the machine: locations are
numbered.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from beatray.errors import CorpusError
from beatray.ingest.sources.item import Item, Unlisted
from beatray.ingest.tree import Tree
from beatray.record import Reason

Locations = str | tuple[str, ...]
"""Where one source lies: a folder, archive or URI, or several."""

ELSEWHERE = (
    "recordings are at another location of the source too and are read there (give this one first to read them here)"
)

NAMED = 10
"""Names that a sentence about recordings not read spells out."""


def locations_of(sources: Mapping[str, Locations]) -> list[tuple[str, str]]:
    """Every (source, location), sources by name, locations in the order given, each once."""
    found = []
    for source, locations in sorted(sources.items()):
        each = (locations,) if isinstance(locations, str) else locations
        found += [(source, location) for location in dict.fromkeys(each)]
    return found


def each_name_once(
    listed: Sequence[tuple[Tree, Sequence[Item]]],
) -> list[tuple[list[Item], list[Unlisted]]]:
    """For each location the items that are read there, and a note on those that another location gives."""
    giver: dict[str, tuple[int, bool]] = {}  # by name: the location, and whether the recording can be read there
    for number, (tree, items) in enumerate(listed):
        for item in items:
            held = giver.get(item.name)
            readable = "refused" not in item.meta and item.path in tree
            if not item.unnamed and (held is None or (readable and not held[1])):
                giver[item.name] = (number, readable)
    files = [{path.rpartition("/")[2] for path in tree.names()} for tree, _ in listed] if len(listed) > 1 else []
    found = []
    nameless: set[str] = set()
    for number, (tree, items) in enumerate(listed):
        kept, others = [], []
        for item in items:
            if item.unnamed:  # what two tables have in their third row are not one recording
                elsewhere = [*files[:number], *files[number + 1 :]]
                absent = item.path not in tree and any(item.path.rpartition("/")[2] in names for names in elsewhere)
            else:
                absent = giver[item.name][0] != number
            if absent:
                others.append(item.name)
            elif item.unnamed and item.name in nameless:
                kept.append(replace(item, name=f"{item.name} ({number + 1})"))
            else:
                kept.append(item)
        nameless.update(item.name for item in kept if item.unnamed)
        detail = f"location {number + 1} of {len(listed)}: {len(others):,} {ELSEWHERE}: {_some(others)}"
        found.append((kept, [Unlisted(Reason.METADATA, len(others), detail)] if others else []))
    return found


def one_holds_the_other(one: str, other: str) -> bool:
    """True if two locations are the same, or one folder lies in the other: all in it would be read twice."""
    a, b = (location.partition("?")[0].rstrip("/") + "/" for location in (one, other))
    if "://" not in one:
        a, b = (os.path.realpath(location).rstrip("/") + "/" for location in (one, other))
    return a.startswith(b) or b.startswith(a)


def refuse_shared_paths(source: str, listed: Sequence[tuple[Tree, Sequence[Item]]]) -> None:
    """For recordings that have no name but their path. Raises CorpusError where two locations have the same path."""
    owner: dict[str, str] = {}
    for tree, items in listed:
        shared = [item.name for item in items if item.name in owner]
        if shared:
            raise CorpusError(
                f"{source}: {owner[shared[0]]} and {tree.location} both have {_some(shared)}; one path at two "
                "locations need not be one recording: put both under one parent folder and give that, or make two "
                "corpora"
            )
        owner.update((item.name, tree.location) for item in items)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
