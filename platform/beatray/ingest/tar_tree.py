"""A tar archive as a tree: an uncompressed one is indexed once and read in place, a compressed one kept in memory.

A compressed tar has no random access: it is unpacked once into memory, up to `MAX_UNPACKED_BYTES`, and kept per
process; for more than that, unpack it or repack it as zip. Contract: as `ingest.tree`. Links, devices, sparse members,
unsafe and repeated names are not listed but counted by cause; compression is metered while it unpacks.
"""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, cast

from beatray.ingest.archive import DAMAGE, STEP_BYTES, ArchiveTree, Opened, Stamp, archive_stamp, check_ratio
from beatray.ingest.member_checks import MAX_FILE_BYTES, Cause, check_size, problem_of
from beatray.ingest.random_file import RandomFile
from beatray.record import Reason, RecordError

MAX_UNPACKED_BYTES = 2 * 1024**3

Content = tuple[int, int] | bytes
"""A member as (offset, size) in an uncompressed archive, or as its bytes where the archive is compressed."""
OpenedTar = Opened[BinaryIO | None, Content]
"""The handle is that of an uncompressed archive."""


class TarTree(ArchiveTree[BinaryIO | None, Content]):
    """A tar, uncompressed (members read in place) or .gz / .xz (unpacked into memory once per process)."""

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes:
        plain, member = self._find(name)
        if isinstance(member, bytes):
            check_size(name, len(member), max_bytes, too_long)
            return member
        offset, size = member
        check_size(name, size, max_bytes, too_long)
        data = os.pread(plain.fileno(), size, offset) if plain else b""
        if len(data) != size:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name}: the archive ends after {len(data)} of {size} bytes")
        return data

    def open_random(self, name: str) -> RandomFile:
        plain, member = self._find(name)
        stamp = archive_stamp(self.location)
        identity = (self.location, *stamp[1:], name)
        if isinstance(member, bytes) or plain is None:
            data = member if isinstance(member, bytes) else b""
            return RandomFile(name, data, 0, len(data), identity)
        offset, size = member
        if offset + size > stamp[2]:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} lies outside the archive")
        return RandomFile(name, os.dup(plain.fileno()), offset, size, identity)

    def head(self, name: str, n_bytes: int) -> bytes:
        plain, member = self._find(name)
        if isinstance(member, bytes):
            return member[:n_bytes]
        offset, size = member
        return os.pread(plain.fileno(), min(n_bytes, size), offset) if plain else b""

    def _open(self) -> OpenedTar:
        return _open_tar(self.location, archive_stamp(self.location))


@lru_cache(maxsize=2)
def _open_tar(location: str, stamp: Stamp) -> OpenedTar:
    raw = Path(location).open("rb")  # noqa: SIM115 (an uncompressed archive stays open)
    lower = location.lower()
    if lower.endswith(".tar"):
        source = _Metered(raw, raw, stamp[2], keep_ratio=False)
        return _index_tar(location, cast(IO[bytes], source), raw)
    with raw:
        opener = lzma.open if lower.endswith("xz") else gzip.open
        with opener(raw) as packed:
            metered = _Metered(cast(IO[bytes], packed), raw, MAX_UNPACKED_BYTES, keep_ratio=True)
            return _index_tar(location, cast(IO[bytes], metered), None)


def _index_tar(location: str, source: IO[bytes], plain: BinaryIO | None) -> OpenedTar:
    """One pass over an archive: offsets of the members of a plain one, contents of a compressed one."""
    members: dict[str, Content] = {}
    passed_over: Counter[Cause] = Counter()
    try:
        with tarfile.open(fileobj=source, mode="r:" if plain else "r|") as archive:
            while (info := archive.next()) is not None:
                name = info.name.removeprefix("./")
                if info.isdir():
                    pass
                elif (cause := _cause(info, name, members, packed=plain is None)) is not None:
                    passed_over[cause] += 1
                elif plain is not None:
                    members[name] = (info.offset_data, info.size)
                else:
                    content = archive.extractfile(info)
                    members[name] = content.read() if content else b""

                archive.members = []  # type: ignore[attr-defined]
            if plain is not None:
                _check_end(plain, archive.offset)
        while plain is None and source.read(STEP_BYTES):
            pass  # up to the checksum that follows the last block
    except RecordError:
        raise
    except DAMAGE as error:
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{location} cannot be unpacked: {error}") from error
    return Opened(plain, members, tuple(sorted(members)), passed_over)


def _cause(info: tarfile.TarInfo, name: str, members: dict[str, Content], *, packed: bool) -> Cause | None:
    """Why a member is not listed; None if it is."""
    if (cause := problem_of(name)) is not None:
        return cause
    if not info.isreg() or info.issparse():
        return Cause.LINK if info.issym() or info.islnk() else Cause.SPECIAL
    if name in members:
        return Cause.SECOND
    return Cause.TOO_LARGE if packed and info.size > MAX_FILE_BYTES else None


def _check_end(plain: BinaryIO, offset: int) -> None:
    """tarfile takes a damaged or missing header for the end of a plain archive; the real end is two blocks of zeros."""
    plain.seek(offset - tarfile.BLOCKSIZE if offset else 0)
    rest = plain.read(3 * tarfile.BLOCKSIZE)
    if b"\0" * 2 * tarfile.BLOCKSIZE not in rest:
        raise tarfile.ReadError(
            f"no end of archive after byte {offset}: a member's header is damaged or the file is cut"
        )


class _Metered:
    """A file object that never gives more than `limit` bytes and refuses runaway compression."""

    def __init__(self, source: IO[bytes], raw: BinaryIO, limit: int, *, keep_ratio: bool) -> None:
        self._source = source
        self._raw = raw
        self._limit = limit
        self._keep_ratio = keep_ratio
        self._given = 0

    def read(self, size: int) -> bytes:
        if not self._keep_ratio:
            return self._source.read(max(0, min(size, self._limit - self._source.tell())))
        data = self._source.read(size)
        self._given += len(data)
        if self._given > self._limit:
            raise RecordError(
                Reason.ABSURD_SIZE,
                f"the archive unpacks to more than {self._limit} bytes: unpack it to a folder or repack it as zip",
            )
        check_ratio("the archive", self._given, self._raw.tell())
        return data

    def seek(self, position: int) -> int:
        return self._source.seek(position)

    def tell(self) -> int:
        return self._source.tell()
