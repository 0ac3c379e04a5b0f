"""One read-only view of a data set as it was downloaded: a folder, a zip or a tar, read in place.

Data sets come from strangers, so a tree only ever gives out regular files that lie inside it. Links, devices, absolute
names, names with `..`, hidden entries and folders that may not be opened are not listed but counted by cause in
`passed_over`. Every read states how many bytes it is prepared to
take. Each kind of location has a file of its own: `folder_tree`, `zip_tree`, `tar_tree`, `remote_tree`.

Contract: names are posix paths relative to the root, sorted. `head` gives at most so many first bytes of a file, of
whatever length; it is what formats are told apart by. `open_random` gives a file for reading in pieces, for members of
any size that lie unpacked; the caller closes it. They and `read` raise `RecordError` (MISSING_FILE, UNSAFE_PATH,
CORRUPT_ARCHIVE, ABSURD_SIZE or the reason the caller names for a file that is too long). A tree is picklable and small:
another process opens the location again when it first reads. An I/O error of the disk itself is not caught.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from beatray.ingest.folder_tree import FolderTree
from beatray.ingest.member_checks import MAX_FILE_BYTES, Cause
from beatray.ingest.random_file import RandomFile
from beatray.ingest.remote_tree import RemoteTree
from beatray.ingest.tar_tree import TarTree
from beatray.ingest.web_file import is_web, size_of
from beatray.ingest.zip_tree import ZipTree
from beatray.record import Reason

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")


class Tree(Protocol):
    """What sources read from. `location` is the string it was opened with; `passed_over` counts members not listed."""

    @property
    def location(self) -> str: ...

    @property
    def passed_over(self) -> Counter[Cause]: ...

    def names(self) -> tuple[str, ...]: ...

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes: ...

    def open_random(self, name: str) -> RandomFile: ...
    def head(self, name: str, n_bytes: int) -> bytes: ...

    def __contains__(self, name: object) -> bool: ...

    def __hash__(self) -> int: ...


def open_tree(location: str) -> Tree:
    """Open a folder, .zip, .tar, .tar.gz or .tar.xz; a folder or .zip behind a URI, over http only a .zip.

    Raises FileNotFoundError when nothing is there, ValueError when it is none of these. A damaged archive raises
    RecordError(CORRUPT_ARCHIVE) when it is first listed or read.
    """
    if is_remote(location):
        return _open_remote(location)
    location = local_path(location)
    path = Path(location)
    if path.is_dir():
        return FolderTree(location)
    if not path.exists():
        raise FileNotFoundError(f"{location}: no such folder or archive")
    if path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return ZipTree(location) if path.name.lower().endswith(".zip") else TarTree(location)
    raise ValueError(f"{location}: neither a folder nor one of {', '.join(ARCHIVE_SUFFIXES)}")


def local_path(location: str) -> str:
    """The path that a file:// URI names; a path as it is."""
    return unquote(location.removeprefix("file://")) if location.startswith("file://") else location


def is_remote(location: str) -> bool:
    """True for a URI of a location other than this machine's disks."""
    return "://" in location and not location.startswith("file://")


def _open_remote(location: str) -> Tree:
    if is_web(location):
        size_of(location)  # refuses, with the remedy, what cannot be read there
        return ZipTree(location)
    path = location.partition("?")[0].lower()
    if path.endswith(".zip"):
        return ZipTree(location)
    if path.endswith(ARCHIVE_SUFFIXES):
        raise ValueError(f"{location}: a tar is not read over the network: copy it here, or store it as zip or folder")
    return RemoteTree(location)
