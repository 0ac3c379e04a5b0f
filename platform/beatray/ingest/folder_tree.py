"""A folder on a local or mounted disk as a tree.

Contract: as `ingest.tree`. What lies in a folder that is not listed is counted file by file, as archives have it, up to
`MAX_COUNTED`: such a folder can hold copies of a whole disk. Files are opened one path component at a time without
following links, so that nothing can be swapped in between listing and reading. An I/O error of the disk itself is not
caught.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter

from beatray.ingest.member_checks import MAX_FILE_BYTES, Cause, check_plain_path, check_size, problem_of
from beatray.ingest.random_file import RandomFile
from beatray.record import Reason, RecordError

MAX_COUNTED = 1_000_000
"""Entries passed over after which a folder that is not listed counts as one."""


class FolderTree:
    """A folder, listed once by a single walk."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._names: tuple[str, ...] | None = None
        self._known: frozenset[str] = frozenset()
        self._passed_over: Counter[Cause] = Counter()

    def __reduce__(self) -> tuple[type[FolderTree], tuple[str]]:
        return (FolderTree, (self.location,))

    @property
    def passed_over(self) -> Counter[Cause]:
        self.names()
        return self._passed_over

    def names(self) -> tuple[str, ...]:
        if self._names is None:
            found, self._passed_over = _walk(self.location)
            found.sort()
            self._names = tuple(found)
        return self._names

    def __contains__(self, name: object) -> bool:
        if not self._known:
            self._known = frozenset(self.names())
        return name in self._known

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes:
        handle, status = _open_regular(self.location, name)
        try:
            check_size(name, status.st_size, max_bytes, too_long)
            data = os.read(handle, status.st_size + 1)
            while 0 < len(data) < status.st_size:  # a read may stop early, at 2 GiB or on a network disk
                more = os.read(handle, status.st_size - len(data))
                if not more:
                    break
                data += more
        finally:
            os.close(handle)
        check_size(name, len(data), max_bytes, too_long)
        return data

    def open_random(self, name: str) -> RandomFile:
        handle, status = _open_regular(self.location, name)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return RandomFile(name, handle, 0, status.st_size, identity)

    def head(self, name: str, n_bytes: int) -> bytes:
        handle, _ = _open_regular(self.location, name)
        try:
            return os.read(handle, n_bytes)
        finally:
            os.close(handle)


def _walk(root: str) -> tuple[list[str], Counter[Cause]]:
    """Every regular file below `root`, and how many entries were passed over, by cause."""
    found: list[str] = []
    passed_over: Counter[Cause] = Counter()
    folders = [""]
    while folders:
        prefix = folders.pop()
        if prefix and passed_over.total() >= MAX_COUNTED and (cause := problem_of(prefix[:-1])) is not None:
            passed_over[cause] += 1
            continue
        try:
            with os.scandir(os.path.join(root, prefix)) as listed:  # noqa: PTH118 (a Path per file is 5x slower)
                entries = list(listed)
        except PermissionError:
            if not prefix:
                raise
            passed_over[Cause.NO_ENTRY] += 1
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name + "/")
            elif (cause := problem_of(name)) is not None:
                passed_over[cause] += 1
            elif entry.is_file(follow_symlinks=False):
                found.append(name)
            else:
                passed_over[Cause.LINK if entry.is_symlink() else Cause.SPECIAL] += 1
    return found, passed_over


def _open_regular(root: str, name: str) -> tuple[int, os.stat_result]:
    """An open descriptor of the regular file `name` below `root`, and its status."""
    check_plain_path(name)
    try:
        handle = _open_below(root, name)
    except OSError as error:
        raise _open_error(name, error) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise RecordError(Reason.UNSAFE_PATH, f"{name} is not a regular file")
    return handle, status


def _open_below(root: str, name: str) -> int:
    """Open `name` below `root` for reading; no component below the root may be a link."""
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    if not folders:
        return os.open(os.path.join(root, last), flags | os.O_NONBLOCK)  # noqa: PTH118
    # The first component hangs on the root's path, not on a descriptor of it: one system call less per file.
    at = os.open(os.path.join(root, folders[0]), flags | os.O_DIRECTORY)  # noqa: PTH118
    try:
        for folder in folders[1:]:
            below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        return os.open(last, flags | os.O_NONBLOCK, dir_fd=at)  # a named pipe must not block
    finally:
        os.close(at)


def _open_error(name: str, error: OSError) -> Exception:
    """A refusal for what the name stands for; anything else is the disk's fault and stays an OSError."""
    if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
        return RecordError(Reason.MISSING_FILE, f"{name} is not there")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return RecordError(Reason.UNSAFE_PATH, f"{name} is or goes through a link, or is no regular file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return RecordError(Reason.MISSING_FILE, f"{name} may not be read: permission denied")
    return error
