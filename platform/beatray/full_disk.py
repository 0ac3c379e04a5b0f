"""The message for a full disk: which file did not fit, or else which of the paths that a command fills is full.

The error of a write through a file object has a number and no name. `named` gives it the file's where that is known;
`full_paths` looks at the paths themselves.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 64 * 2**20
"""A path with less than this free counts as full: what did not fit is gone again by the time of the check."""
SHARED_MEMORY = "/dev/shm"


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, an OSError that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def full_paths(out: str | None) -> str:
    """The paths that are full, or all of them where none looks full (a quota), with what is free, and the remedy."""
    free = {name: room for name, room in ((name, _room(path)) for name, path in _paths(out)) if room is not None}
    full = {name: room for name, room in free.items() if room[0] < LITTLE or room[1] == 0} or free
    parts = [
        f"{name} has {'no more files' if files == 0 else _size(size)} free" for name, (size, files) in full.items()
    ]
    return (
        f"{', '.join(parts)}; make room there, or set another path: out=, TMPDIR= for temporary files, RAY_TMPDIR= "
        "for Ray's, cluster.object_store_mb= for what Ray keeps in /dev/shm"
    )


def _paths(out: str | None) -> Iterator[tuple[str, Path]]:
    if out and "://" not in out:
        yield f"out={out}", Path(out)
    temporary, ray = tempfile.gettempdir(), os.environ.get("RAY_TMPDIR", "/tmp")
    yield f"the temporary folder {temporary}", Path(temporary)
    yield SHARED_MEMORY, Path(SHARED_MEMORY)
    if ray != temporary:
        yield f"Ray's folder {ray}/ray", Path(ray)


def _room(path: Path) -> tuple[int, int] | None:
    """Bytes and files that still fit where the path is, or will be; None where that is unknown."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        about = os.statvfs(path)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize, about.f_favail if about.f_files else -1  # some keep no count of files


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
