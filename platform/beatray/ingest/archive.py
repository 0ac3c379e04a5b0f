"""Zip and tar archives as trees: listed, bounded and read without unpacking to disk.

A zip is opened by its directory and any member is read at once; so is a member of an uncompressed tar, which is indexed
once. A compressed tar has no random access: it is unpacked once into memory, up to `MAX_UNPACKED_BYTES`, and kept per
process; for more than that, unpack it or repack it as zip. Archives stay open per process under their path, size and
change time, so that many short tasks on one archive do not read its directory again.

Contract: as `ingest.tree`. Links, devices, encrypted members, unusual compressions, unsafe and repeated names are not
listed but counted. Memory for one read is bounded by the size the caller accepts plus one unpacking step (4 KiB of
input), whatever the archive claims; compression beyond 200:1 on more than 1 MiB is refused. Archives inside archives
are plain bytes. A member that is stored as it is can be read in pieces where it lies, whatever its size; another is
unpacked for that, up to `MAX_FILE_BYTES`. Source of the limits: Fifield, "A better zip bomb", WOOT 2019; PEP 706.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, cast

from beatray.corpus.store import Store
from beatray.ingest.random_file import RandomFile
from beatray.ingest.tree import MAX_FILE_BYTES, check_plain_path, is_plain_path, too_long_error
from beatray.record import Reason, RecordError

MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_RATIO = 200
FREE_BYTES = 1024 * 1024
STEP_BYTES = 4096
REMOTE_STEP_BYTES = 1024 * 1024
_ZIP_HEADER_BYTES = 30
_ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError, MemoryError),
)


class ZipTree:
    """A zip read in place; stored, deflated and LZMA members."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __reduce__(self) -> tuple[type[ZipTree], tuple[str]]:
        return (ZipTree, (self.location,))

    @property
    def refused(self) -> int:
        return self._open().refused

    def names(self) -> tuple[str, ...]:
        return self._open().names

    def __contains__(self, name: object) -> bool:
        return name in self._open().members

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes:
        check_plain_path(name)
        opened = self._open()
        info = opened.members.get(name)
        if info is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        _check_claim(name, info.file_size, max_bytes, too_long)
        check_ratio(name, info.file_size, info.compress_size)
        try:
            with opened.archive.open(info) as member:
                # Small steps, because zipfile unpacks all the input of one step at once.
                data = b"".join(iter(lambda: member.read(STEP_BYTES), b""))
        except DAMAGE as error:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} cannot be unpacked: {error}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise  # the disk's fault; a position before the file's start is the archive's
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} lies outside the archive") from error
        if len(data) != info.file_size:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} unpacks to {len(data)} of {info.file_size} bytes")
        return data

    def open_random(self, name: str) -> RandomFile:
        check_plain_path(name)
        opened = self._open()
        info = opened.members.get(name)
        if info is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        stamp = _stamp(self.location)
        identity = (self.location, *stamp[1:], name)
        if info.compress_type != zipfile.ZIP_STORED or "://" in self.location:
            if info.file_size > MAX_FILE_BYTES:
                raise RecordError(
                    Reason.ABSURD_SIZE,
                    f"{name} has {info.file_size} bytes and is compressed or remote, so it cannot be read in pieces "
                    "where it lies: unpack the archive to a folder here",
                )
            data = self.read(name)
            return RandomFile(name, data, 0, len(data), identity)
        handle = os.open(self.location, os.O_RDONLY | os.O_CLOEXEC)
        try:
            start = stored_start(lambda at, size: os.pread(handle, size, at), info)
            if not 0 < start <= start + info.file_size <= stamp[2] or info.compress_size != info.file_size:
                raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} lies outside the archive")
        except RecordError:
            os.close(handle)
            raise
        return RandomFile(name, handle, start, info.file_size, identity)

    def head(self, name: str, n_bytes: int) -> bytes:
        check_plain_path(name)
        opened = self._open()
        info = opened.members.get(name)
        if info is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        try:
            with opened.archive.open(info) as member:
                return member.read(n_bytes)
        except DAMAGE as error:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} cannot be unpacked: {error}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} lies outside the archive") from error

    def _open(self) -> _Zip:
        return _open_zip(self.location, _stamp(self.location))


class TarTree:
    """A tar, uncompressed (members read in place) or .gz / .xz (unpacked into memory once per process)."""

    def __init__(self, location: str) -> None:
        self.location = location

    def __reduce__(self) -> tuple[type[TarTree], tuple[str]]:
        return (TarTree, (self.location,))

    @property
    def refused(self) -> int:
        return self._open().refused

    def names(self) -> tuple[str, ...]:
        return self._open().names

    def __contains__(self, name: object) -> bool:
        return name in self._open().members

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes:
        check_plain_path(name)
        opened = self._open()
        member = opened.members.get(name)
        if member is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        if isinstance(member, bytes):
            _check_claim(name, len(member), max_bytes, too_long)
            return member
        offset, size = member
        _check_claim(name, size, max_bytes, too_long)
        data = os.pread(opened.plain.fileno(), size, offset) if opened.plain else b""
        if len(data) != size:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name}: the archive ends after {len(data)} of {size} bytes")
        return data

    def open_random(self, name: str) -> RandomFile:
        check_plain_path(name)
        opened = self._open()
        member = opened.members.get(name)
        if member is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        stamp = _stamp(self.location)
        identity = (self.location, *stamp[1:], name)
        if isinstance(member, bytes) or opened.plain is None:
            data = member if isinstance(member, bytes) else b""
            return RandomFile(name, data, 0, len(data), identity)
        offset, size = member
        if offset + size > stamp[2]:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} lies outside the archive")
        return RandomFile(name, os.dup(opened.plain.fileno()), offset, size, identity)

    def head(self, name: str, n_bytes: int) -> bytes:
        check_plain_path(name)
        opened = self._open()
        member = opened.members.get(name)
        if member is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not in the archive")
        if isinstance(member, bytes):
            return member[:n_bytes]
        offset, size = member
        return os.pread(opened.plain.fileno(), min(n_bytes, size), offset) if opened.plain else b""

    def _open(self) -> _Tar:
        return _open_tar(self.location, _stamp(self.location))


@dataclass(frozen=True, slots=True)
class _Zip:
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    names: tuple[str, ...]
    refused: int


@dataclass(frozen=True, slots=True)
class _Tar:
    """Members as (offset, size) in `plain`, or as their bytes where the archive is compressed."""

    plain: BinaryIO | None
    members: dict[str, tuple[int, int] | bytes]
    names: tuple[str, ...]
    refused: int


Stamp = tuple[int, int, int, int]


def _stamp(location: str) -> Stamp:
    """What tells one state of an archive from another; the process belongs to it, as forks share file offsets."""
    if "://" in location:
        folder, name = _place(location)
        return (os.getpid(), 0, folder.size(name) or 0, 0)
    status = os.stat(location)  # noqa: PTH116 (a Path per read costs more than the call)
    return (os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _open_zip(location: str, stamp: Stamp) -> _Zip:
    try:
        archive = zipfile.ZipFile(_open_remote(location) if "://" in location else location)
    except DAMAGE as error:
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{location} is not a readable zip: {error}") from error
    members: dict[str, zipfile.ZipInfo] = {}
    refused = 0
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            refused += not is_plain_path(info.filename.rstrip("/"))
        elif (
            not is_plain_path(info.orig_filename)
            or info.filename in members
            or kind not in (0, stat.S_IFREG)
            or info.flag_bits & 0x1
            or info.compress_type not in _ZIP_COMPRESSIONS
        ):
            refused += 1
        else:
            members[info.filename] = info
    return _Zip(archive, members, tuple(sorted(members)), refused)


def _place(location: str) -> tuple[Store, str]:
    """A file behind a URI as its folder and its name."""
    path, mark, options = location.partition("?")
    folder, _, name = path.rpartition("/")
    return Store(folder + mark + options), name


def _open_remote(location: str) -> IO[bytes]:
    folder, name = _place(location)
    if folder.size(name) is None:
        raise FileNotFoundError(f"{folder.where(name)}: no such archive")
    return cast(IO[bytes], io.BufferedReader(folder.open_input(name), REMOTE_STEP_BYTES))


@lru_cache(maxsize=2)
def _open_tar(location: str, stamp: Stamp) -> _Tar:
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


def _index_tar(location: str, source: IO[bytes], plain: BinaryIO | None) -> _Tar:
    """One pass over an archive: offsets of the members of a plain one, contents of a compressed one."""
    members: dict[str, tuple[int, int] | bytes] = {}
    refused = 0
    try:
        with tarfile.open(fileobj=source, mode="r:" if plain else "r|") as archive:
            while (info := archive.next()) is not None:
                name = info.name.removeprefix("./")
                if info.isdir():
                    refused += name not in ("", ".") and not is_plain_path(name)
                elif not info.isreg() or info.issparse() or not is_plain_path(name) or name in members:
                    refused += 1
                elif plain is not None:
                    members[name] = (info.offset_data, info.size)
                elif info.size > MAX_FILE_BYTES:
                    refused += 1
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
    return _Tar(plain, members, tuple(sorted(members)), refused)


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


def stored_start(read_at: Callable[[int, int], bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored zip member begin: behind its own header, whose length the directory does not tell."""
    fixed = read_at(info.header_offset, _ZIP_HEADER_BYTES) if info.header_offset >= 0 else b""
    if len(fixed) < _ZIP_HEADER_BYTES or fixed[:4] != b"PK\3\4":
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{info.filename} lies outside the archive")
    name_bytes, extra_bytes = struct.unpack_from("<HH", fixed, 26)
    return info.header_offset + _ZIP_HEADER_BYTES + int(name_bytes) + int(extra_bytes)


def _check_claim(name: str, size: int, max_bytes: int, too_long: Reason) -> None:
    if size > max_bytes:
        raise too_long_error(name, size, max_bytes, too_long)


def check_ratio(name: str, unpacked: int, packed: int) -> None:
    """Raise RecordError(ABSURD_SIZE) for compression that no recording reaches."""
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise RecordError(Reason.ABSURD_SIZE, f"{name}: {packed} bytes unpack to {unpacked}, over {MAX_RATIO}:1")
