"""Several places of one data set: one list of recordings out of them, each under its name once.

A data set is often kept in parts: an older download and a newer one, folders by year, archives by rate. Recordings are
known by source and name, so of a name that several places list only one is read: that of the first place whose tree
has the recording's file, since a part often comes with the table of the whole; of the first place where none has it.
The others are counted, with their names, as not listed. That holds for data sets that number their recordings; where a
path is the only name, the same path in two places is refused. The same signal under two names stays two recordings,
which the splits keep in one part (`corpus.splits`).

Contract: nothing here reads a recording. `place_names` gives no path of the machine away: a manifest may be published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from beatray.errors import CorpusError
from beatray.ingest.sources.item import Item, Unlisted
from beatray.ingest.tree import Tree
from beatray.record import Reason

Places = str | tuple[str, ...]
"""Where one source lies: a folder, archive or URI, or several."""

ELSEWHERE = (
    "recordings are in another place of the source too and are read there (say this one first to read them here)"
)

NAMED = 10
"""Names that a sentence about recordings not read spells out."""


def places_of(sources: Mapping[str, Places]) -> list[tuple[str, str]]:
    """Every (source, location), sources by name, locations in the order given, each once."""
    found = []
    for source, places in sorted(sources.items()):
        each = (places,) if isinstance(places, str) else places
        found += [(source, place) for place in dict.fromkeys(each)]
    return found


def each_name_once(
    listed: Sequence[tuple[Tree, Sequence[Item]]],
) -> list[tuple[list[Item], list[Unlisted]]]:
    """For each place the items that are read there, and a word on those that another place gives."""
    giver: dict[str, tuple[int, bool]] = {}  # by name: the place, and whether the file is there
    for number, (tree, items) in enumerate(listed):
        for item in items:
            held = giver.get(item.name)
            if held is None:
                giver[item.name] = (number, len(listed) == 1 or item.path in tree)
            elif not held[1] and held[0] != number and item.path in tree:
                giver[item.name] = (number, True)
    found = []
    places = place_names([tree.location for tree, _ in listed])
    for number, (tree, items) in enumerate(listed):
        kept = [item for item in items if giver[item.name][0] == number]
        others = [item.name for item in items if giver[item.name][0] != number]
        said = []
        if others:
            detail = f"{places[tree.location]}: {len(others):,} {ELSEWHERE}: {_some(others)}"
            said.append(Unlisted(Reason.METADATA, len(others), detail))
        found.append((kept, said))
    return found


def refuse_shared_paths(source: str, listed: Sequence[tuple[Tree, Sequence[Item]]]) -> None:
    """For recordings that have no name but their path. Raises CorpusError where two places have the same path."""
    owner: dict[str, str] = {}
    for tree, items in listed:
        shared = [item.name for item in items if item.name in owner]
        if shared:
            raise CorpusError(
                f"{source}: {owner[shared[0]]} and {tree.location} both have {_some(shared)}; one path in two places "
                "need not be one recording: put both under one parent folder and say that, or make two corpora"
            )
        owner.update((item.name, tree.location) for item in items)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def short_name(location: str, parts: int = 1) -> str:
    """The last `parts` parts of a path or URI, without its query."""
    path = location.partition("?")[0].rpartition("://")[2]
    return "/".join([piece for piece in path.split("/") if piece][-parts:])


def place_names(locations: Sequence[str]) -> dict[str, str]:
    """A short name for each location: the end of its path, as long as it takes to tell them apart."""
    longest = max((location.count("/") for location in locations), default=0) + 1
    for parts in range(1, longest + 1):
        names = {location: short_name(location, parts) for location in locations}
        if len(set(names.values())) == len(names):
            return names
    return {location: f"{short_name(location)} ({number})" for number, location in enumerate(locations, start=1)}
