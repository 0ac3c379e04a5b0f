"""A zip archive as a tree: opened by its directory, any member read at once, nothing unpacked to disk.

Archives stay open per process under their path, size and change time, so that many short tasks on one archive do not
read its directory again; one behind a URI is read through a buffer of 1 MiB. Contract: as `ingest.tree`. Links,
encrypted members, unusual compressions, unsafe and repeated names are not listed but counted by cause. Some programs
write backslashes between folders, against the standard (APPNOTE 4.4.17): they are read as slashes. Memory for one read
is bounded by the size the caller accepts plus one unpacking step, whatever the archive claims. A member that is stored
as it is can be read in pieces where it lies, whatever its size; another is unpacked for that, up to `MAX_FILE_BYTES`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import IO, cast

from beatray.ingest.archive import DAMAGE, STEP_BYTES, ArchiveTree, Opened, Stamp, archive_stamp, check_ratio, split_uri
from beatray.ingest.member_checks import MAX_FILE_BYTES, Cause, check_size, problem_of
from beatray.ingest.random_file import RandomFile
from beatray.ingest.web_file import WebFile, is_web
from beatray.record import Reason, RecordError

REMOTE_STEP_BYTES = 1024 * 1024
_ZIP_HEADER_BYTES = 30
_UNREAD = {zipfile.ZIP_BZIP2: Cause.BZIP2, 9: Cause.DEFLATE64}
_ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)

OpenedZip = Opened[zipfile.ZipFile, zipfile.ZipInfo]


class ZipTree(ArchiveTree[zipfile.ZipFile, zipfile.ZipInfo]):
    """A zip read in place; stored, deflated and LZMA members."""

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes:
        archive, info = self._find(name)
        check_size(name, info.file_size, max_bytes, too_long)
        check_ratio(name, info.file_size, info.compress_size)
        try:
            with archive.open(info) as member:
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
        info = self._find(name)[1]
        stamp = archive_stamp(self.location)
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
        archive, info = self._find(name)
        try:
            with archive.open(info) as member:
                return member.read(n_bytes)
        except DAMAGE as error:
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} cannot be unpacked: {error}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise RecordError(Reason.CORRUPT_ARCHIVE, f"{name} lies outside the archive") from error

    def _open(self) -> OpenedZip:
        return _open_zip(self.location, archive_stamp(self.location))


@lru_cache(maxsize=4)
def _open_zip(location: str, stamp: Stamp) -> OpenedZip:
    try:
        archive = zipfile.ZipFile(_open_remote(location) if "://" in location else location)
    except DAMAGE as error:
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{location} is not a readable zip: {error}") from error
    members: dict[str, zipfile.ZipInfo] = {}
    passed_over: Counter[Cause] = Counter()
    for info in archive.infolist():
        name = info.orig_filename.replace("\\", "/")
        if info.is_dir() or name.endswith("/"):
            continue
        cause = _cause(info, name, members)
        if cause is None:
            members[name] = info
        else:
            passed_over[cause] += 1
    return Opened(archive, members, tuple(sorted(members)), passed_over)


def _cause(info: zipfile.ZipInfo, name: str, members: dict[str, zipfile.ZipInfo]) -> Cause | None:
    """Why a member is not listed; None if it is."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if (cause := problem_of(name)) is not None:
        return cause
    if kind not in (0, stat.S_IFREG):
        return Cause.LINK if kind == stat.S_IFLNK else Cause.SPECIAL
    if info.flag_bits & 0x1:
        return Cause.ENCRYPTED
    if info.compress_type not in _ZIP_COMPRESSIONS:
        return _UNREAD.get(info.compress_type, Cause.COMPRESSION)
    return Cause.SECOND if name in members else None


def _open_remote(location: str) -> IO[bytes]:
    if is_web(location):
        return cast(IO[bytes], io.BufferedReader(WebFile(location), REMOTE_STEP_BYTES))
    folder, name = split_uri(location)
    if folder.size(name) is None:
        raise FileNotFoundError(f"{folder.where(name)}: no such archive")
    return cast(IO[bytes], io.BufferedReader(folder.open_input(name), REMOTE_STEP_BYTES))


def stored_start(read_at: Callable[[int, int], bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored zip member begin: behind its own header, whose length the directory does not give."""
    fixed = read_at(info.header_offset, _ZIP_HEADER_BYTES) if info.header_offset >= 0 else b""
    if len(fixed) < _ZIP_HEADER_BYTES or fixed[:4] != b"PK\3\4":
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{info.filename} lies outside the archive")
    name_bytes, extra_bytes = struct.unpack_from("<HH", fixed, 26)
    return info.header_offset + _ZIP_HEADER_BYTES + int(name_bytes) + int(extra_bytes)
