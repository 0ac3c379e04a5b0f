"""Any folder or archive with recordings in the formats of devices and hospitals, mixed as they come.

Contract: `find(tree)` lists one Item per recording, by path; the record id is `files/<path without suffix>`. Two files
that would share an id are not both read: the second is refused by name. A file with the suffix of a format but another
content is listed, so that it is refused with a reason. `others(tree)` counts what is not listed, with the reason;
signal and annotation files that belong to a WFDB header are neither. `read` gives the Records of a file, whose patient
id is the hospital's own and marked as private. Raises RecordError.

Paths become record ids and are stored: where file names hold names or numbers of patients, rename the files first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count

from beatray.ingest.each_record import part_name
from beatray.ingest.formats import dicom, safe_xml, wfdb
from beatray.ingest.formats.channels import stem_of
from beatray.ingest.formats.registry import FORMATS, HEAD_BYTES, recognise, unsupported
from beatray.ingest.formats.wfdb_record import split_path
from beatray.ingest.sources.item import Item, Unlisted, check_not_refused, name_problem
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

NAME = "files"
LICENCE = "as the data's own"

UNSUPPORTED = "are in formats that hold ECGs but are not read"
NO_WAVEFORM = "hold no ECG waveform"
OTHER_XML = "are XML or HTML of no known ECG format, by root element"
UNKNOWN = "are of no known format, by suffix"
UNREADABLE = "cannot be read"


def find(tree: Tree) -> list[Item]:
    """Every recording below the root, by path."""
    items, others = _sorted_out(tree)
    if not items:
        what = "; ".join(other.detail for other in others) or "there is no file that can be listed"
        raise RecordError(Reason.MISSING_FILE, f"no recording of a known format in {tree.location}: {what}")
    return list(items)


def others(tree: Tree) -> list[Unlisted]:
    """What is there besides: how many files, and why they are not listed."""
    return list(_sorted_out(tree)[1])


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The recordings of an item; one of several has its number behind the name. Raises RecordError, for one
    of several when its turn comes."""
    check_not_refused(item)
    # `map` takes a number before it asks for the record, so that one that is refused keeps its own
    return map(partial(_named, item), count(1), FORMATS[item.meta["format"]].read(tree, item.path))


def _named(item: Item, number: int, record: Record) -> Record:
    return replace(
        record,
        signal_mv=record.given_mv,
        record_id=f"{NAME}/{part_name(item.name, number)}",
        source=NAME,
        patient_id=None if record.patient_id is None else f"{NAME}/{record.patient_id}",
    )


@lru_cache(maxsize=1)
def _sorted_out(tree: Tree) -> tuple[tuple[Item, ...], tuple[Unlisted, ...]]:
    """Items and the rest, from one look at the beginning of every file."""
    items: list[Item] = []
    seen: dict[str, str] = {}
    left: list[tuple[str, str, str]] = []
    owned: set[str] = set()
    for path in tree.names():
        try:
            head = tree.head(path, HEAD_BYTES)
        except RecordError as error:
            left.append((path, UNREADABLE, error.reason.value))
            continue
        found, _ = recognise(head, path)
        if found is None:
            left.append((path, *_kind(path, head)))
            continue
        name = stem_of(path)
        problem = f"{path} has the record name of {seen[name]}" if name in seen else name_problem(name)
        seen.setdefault(name, path)
        items.append(Item(name, path, {"format": found.name} | ({"refused": problem} if problem else {})))
        if found.name == "WFDB":
            owned |= {(split_path(path)[0] + file_name).lower() for file_name in wfdb.files_of(head)}
    headers = {item.path.rpartition(".")[0] for item in items if item.meta["format"] == "WFDB"}
    counts: dict[str, Counter[str]] = {}
    for path, what, name in left:
        if path.lower() not in owned and path.rpartition(".")[0] not in headers:
            counts.setdefault(what, Counter())[name] += 1
    return tuple(items), tuple(_unlisted(what, counts[what]) for what in sorted(counts))


def _kind(path: str, head: bytes) -> tuple[str, str]:
    """Why a file is not listed, and what to count it under."""
    if dicom.is_dicom(head):
        return NO_WAVEFORM, "DICOM"
    if name := unsupported(head):
        return UNSUPPORTED, name
    if root := safe_xml.root_of(head):
        return OTHER_XML, root[:40]
    file_name = split_path(path)[1]
    suffix = file_name.rpartition(".")[2]
    usual = "." in file_name and len(suffix) <= 5 and suffix.isascii() and suffix.isalnum()
    return UNKNOWN, f".{suffix.lower()}" if usual else "no usual suffix"  # the end of a name may be a person's


def _unlisted(what: str, counts: Counter[str]) -> Unlisted:
    most = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())[:20])
    reason = Reason.MISSING_FILE if what == UNREADABLE else Reason.FORMAT
    return Unlisted(reason, counts.total(), f"{counts.total()} files {what}: {most}")
