"""File names whose letters changed their case on the way: FAT disks, CDs and some servers give A.HEA for a.hea.

A suffix means the same in either case. A file that a header or a table names is looked for as it is written, then in
the other spellings that such disks make; a name that is there in exactly the written case always goes first.

Contract: raises RecordError as `tree.read`; only `as_spelt` lists the tree, once, where a file is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from beatray.ingest.member_checks import MAX_FILE_BYTES
from beatray.ingest.tree import Tree
from beatray.record import Reason, RecordError


def paths_with(tree: Tree, suffix: str) -> Iterator[tuple[str, str]]:
    """Every path that ends in `suffix` (lower case, with its dot), and the same without it."""
    for path in tree.names():
        if path[-len(suffix) :].lower() == suffix:
            yield path, path[: -len(suffix)]


def as_spelt(tree: Tree, path: str) -> str:
    """The path of the tree that differs from `path` only in case, if there is one alone; else `path` itself."""
    return path if path in tree else _by_lower(tree).get(path.lower()) or path


def read_any_case(
    tree: Tree, path: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE
) -> bytes:
    """The bytes of the file `path`, whatever the case of its name; its folder is taken as it is."""
    folder, slash, name = path.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    missing: RecordError | None = None
    spellings = (name, name.upper(), name.lower(), stem + dot + suffix.upper(), stem + dot + suffix.lower())
    for spelling in dict.fromkeys((*spellings, stem.upper() + dot + suffix, stem.lower() + dot + suffix)):
        try:
            return tree.read(folder + slash + spelling, max_bytes, too_long=too_long)
        except RecordError as error:
            if error.reason is not Reason.MISSING_FILE:
                raise
            missing = missing or error
    assert missing is not None
    raise missing


@lru_cache(maxsize=1)
def _by_lower(tree: Tree) -> dict[str, str | None]:
    """Paths by their lower-case form; None where two share one."""
    found: dict[str, str | None] = {}
    for path in tree.names():
        low = path.lower()
        found[low] = None if low in found else path
    return found
