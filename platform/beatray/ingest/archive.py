"""What zip and tar archives share: the limits that keep a hostile one harmless, and what tells one state from another.

Contract: compression beyond `MAX_RATIO`:1 on more than 1 MiB is refused, and so is a member that claims more bytes than
its reader accepts. Source of the limits: Fifield, "A better zip bomb", WOOT 2019; PEP 706.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib

from beatray.ingest.tree import too_long_error
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


def archive_stamp(location: str) -> Stamp:
    """What tells one state of an archive from another; the process belongs to it, as forks share file offsets."""
    if "://" in location:
        folder, name = place(location)
        return (os.getpid(), 0, folder.size(name) or 0, 0)
    status = os.stat(location)  # noqa: PTH116 (a Path per read costs more than the call)
    return (os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns)


def place(location: str) -> tuple[Store, str]:
    """A file behind a URI as its folder and its name."""
    path, mark, options = location.partition("?")
    folder, _, name = path.rpartition("/")
    return Store(folder + mark + options), name


def check_claim(name: str, size: int, max_bytes: int, too_long: Reason) -> None:
    if size > max_bytes:
        raise too_long_error(name, size, max_bytes, too_long)


def check_ratio(name: str, unpacked: int, packed: int) -> None:
    """Raise RecordError(ABSURD_SIZE) for compression that no recording reaches."""
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise RecordError(Reason.ABSURD_SIZE, f"{name}: {packed} bytes unpack to {unpacked}, over {MAX_RATIO}:1")
