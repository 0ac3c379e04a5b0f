"""File names whose letters changed their case on the way: FAT disks, CDs and some servers give A.HEA for a.hea.

A suffix means the same in either case. A file that a header or a table names is looked for as it is written, then in
the other spellings that such disks make. A name that is there in exactly the written case goes first; before it goes
only that of the header's own file, where the two differ in case (A.HEA that says a.dat, beside A.DAT and a.dat). A file
in another spelling that has a header of its own belongs to that recording and is never taken.

Contract: raises RecordError as `tree.read`; only `as_spelt` lists the tree, once, where a file is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from beatray.ingest.member_checks import MAX_FILE_BYTES
from beatray.ingest.tree import Tree
from beatray.record import Reason, RecordError

HEADERS = (".hea", ".HEA")


def paths_with(tree: Tree, suffix: str) -> Iterator[tuple[str, str]]:
    """Every path that ends in `suffix` (lower case, with its dot), and the same without it."""
    for path in tree.names():
        if path[-len(suffix) :].lower() == suffix:
            yield path, path[: -len(suffix)]


def as_spelt(tree: Tree, path: str) -> str:
    """The path of the tree that differs from `path` only in case, if there is one alone; else `path` itself."""
    return path if path in tree else _by_lower(tree).get(path.lower()) or path


def read_any_case(
    tree: Tree, path: str, record: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE
) -> bytes:
    """The bytes of the file `path` of the recording whose header is `record`.hea in its folder, whatever the case of
    the file's name; the folder is taken as it is."""
    folder, slash, name = path.rpartition("/")
    folder += slash
    missing: RecordError | None = None
    for spelling in _spellings(name, record):
        stem = spelling.rpartition(".")[0]
        if spelling != name and stem != record and any(_is_there(tree, f"{folder}{stem}{end}") for end in HEADERS):
            continue
        try:
            return tree.read(folder + spelling, max_bytes, too_long=too_long)
        except RecordError as error:
            if error.reason is not Reason.MISSING_FILE:
                raise
            missing = error if spelling == name else missing
    assert missing is not None  # the name itself is among the spellings
    raise missing


def _spellings(name: str, record: str) -> dict[str, None]:
    """The ways in which a file's name may be written, the likeliest first."""
    stem, dot, suffix = name.rpartition(".")
    ends = (dot + suffix, dot + suffix.upper(), dot + suffix.lower())
    own = [record + end for end in ends] if stem != record and stem.lower() == record.lower() else []
    whole = (name, name.upper(), name.lower(), *(stem + end for end in ends))
    return dict.fromkeys((*own, *whole, stem.upper() + dot + suffix, stem.lower() + dot + suffix))


def _is_there(tree: Tree, path: str) -> bool:
    """Whether a tree has a file, asked without a list of all."""
    try:
        tree.head(path, 1)
    except RecordError as error:
        return error.reason is not Reason.MISSING_FILE
    return True


@lru_cache(maxsize=1)
def _by_lower(tree: Tree) -> dict[str, str | None]:
    """Paths by their lower-case form; None where two share one."""
    found: dict[str, str | None] = {}
    for path in tree.names():
        low = path.lower()
        found[low] = None if low in found else path
    return found
