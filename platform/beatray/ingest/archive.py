"""What zip and tar archives share: how members are found, what keeps a hostile archive harmless, and its state.

Contract: compression beyond `MAX_RATIO`:1 on more than 1 MiB is refused. Source of the limits: Fifield, "A better zip
bomb", WOOT 2019; PEP 706.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from beatray.ingest.member_checks import Cause, check_plain_path
from beatray.ingest.web_file import is_web, size_of
from beatray.record import Reason, RecordError
from beatray.storage.store import Store

MAX_RATIO = 200
FREE_BYTES = 1024 * 1024
STEP_BYTES = 4096
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError, MemoryError),
)
"""What the standard library raises on damaged archives."""

Stamp = tuple[int, int, int, int]
Handle = TypeVar("Handle")
Member = TypeVar("Member")


@dataclass(frozen=True, slots=True)
class Opened(Generic[Handle, Member]):
    """An archive that stays open: what it is read with, its members by name, and how many were not listed, by cause."""

    handle: Handle
    members: Mapping[str, Member]
    names: tuple[str, ...]
    passed_over: Counter[Cause]


class ArchiveTree(ABC, Generic[Handle, Member]):
    """A tree over an archive's members; what `_open` gives is kept per process by the kinds of archive."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.location,))

    @abstractmethod
    def _open(self) -> Opened[Handle, Member]: ...

    @property
    def passed_over(self) -> Counter[Cause]:
        return self._open().passed_over

    def names(self) -> tuple[str, ...]:
        return self._open().names

    def __contains__(self, name: object) -> bool:
        return name in self._open().members

    def _find(self, name: str) -> tuple[Handle, Member]:
        """Raises RecordError: UNSAFE_PATH, MISSING_FILE."""
        check_plain_path(name)
        opened = self._open()
        member = opened.members.get(name)
        if member is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        return opened.handle, member


def archive_stamp(location: str) -> Stamp:
    """What identifies one state of an archive; the process belongs to it, as forks share file offsets."""
    if is_web(location):
        return (os.getpid(), 0, size_of(location), 0)
    if "://" in location:
        folder, name = split_uri(location)
        return (os.getpid(), 0, folder.size(name) or 0, 0)
    status = os.stat(location)  # noqa: PTH116 (a Path per read costs more than the call)
    return (os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns)


def split_uri(location: str) -> tuple[Store, str]:
    """A file behind a URI as its folder and its name."""
    path, mark, options = location.partition("?")
    folder, _, name = path.rpartition("/")
    return Store(folder + mark + options), name


def check_ratio(name: str, unpacked: int, packed: int) -> None:
    """Raise RecordError(ABSURD_SIZE) for compression that no recording reaches."""
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise RecordError(Reason.ABSURD_SIZE, f"{name}: {packed} bytes unpack to {unpacked}, over {MAX_RATIO}:1")
