"""Where corpora and runs live: a local folder or any filesystem URI that pyarrow speaks (s3://, gs://, ...).

Contract: `write` is all or nothing; a reader sees the old bytes, the new bytes or nothing, never a part. On a local
disk that is a temporary file, fsync and rename; object stores give it by the put itself. `create` additionally fails
when the name exists, which is what makes a manifest a commit (the idea of the numbered log of Delta Lake). pyarrow
has no conditional put, so on object stores a writer first puts a claim beside the name, lists the claims, and backs
off when it is not alone: of two writers at least one sees the other. That needs a store whose listings show every
finished put, as S3 has done since 2020; a claim counts for ten minutes, then its writer is taken for dead.

S3: keys come from the environment, a profile or the machine's role, the server from AWS_ENDPOINT_URL or from the URI
(`s3://bucket/path?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1`). Refusals: see remote.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from beatray.full_disk import named
from beatray.storage.remote import StoreError as StoreError
from beatray.storage.remote import patiently

T = TypeVar("T")

PACKAGE_SCHEME = "beatray"
PACKAGED = Path(__file__).parents[1] / "weights"
"""What a location beatray://NAME is below: a part of the package, wherever a node has it."""
TEMPORARY_PREFIX = ".writing-"
CLAIM_VALID_S = 600.0
CLAIM_ATTEMPTS = 6

S3_SETTINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
)


@dataclass(frozen=True, slots=True)
class Store:
    """A folder, by location. Cheap to make and to pickle: the filesystem is opened where it is used."""

    location: str

    def __post_init__(self) -> None:
        if "@" in urlsplit(self.location).netloc:
            raise StoreError(
                "a path must not hold keys, because paths are logged: write s3://bucket/folder and give the keys as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a profile"
            )

    @property
    def is_local(self) -> bool:
        """True for a plain path, a file:// URI or what comes with the package (beatray://)."""
        scheme = urlsplit(self.location).scheme
        return scheme in ("", "file", PACKAGE_SCHEME) or len(scheme) == 1

    @property
    def folder(self) -> Path:
        """The folder as a local path; only for local stores."""
        if not self.is_local:
            raise StoreError(f"{self.location} is not a local folder")
        if self.location.startswith("file://"):
            return Path(unquote(self.location.removeprefix("file://"))).absolute()
        if self.location.startswith(f"{PACKAGE_SCHEME}://"):
            return PACKAGED / self.location.removeprefix(f"{PACKAGE_SCHEME}://")
        return Path(self.location).absolute()

    def where(self, name: str = "") -> str:
        """The folder, or a file in it, as messages show it: without the options of a URI."""
        path = self.location if self.is_local else self.location.partition("?")[0]
        return f"{path.rstrip('/')}/{name}" if name else path

    def open(self) -> tuple[Any, str]:
        """The pyarrow filesystem and the folder's path in it."""
        if self.is_local:
            return pafs.LocalFileSystem(), str(self.folder)
        return _connect(self.location, os.getpid(), tuple(os.environ.get(name) for name in S3_SETTINGS))

    def child(self, name: str) -> Store:
        """The sub-folder `name`; a URI keeps its options."""
        if self.is_local:
            return Store(f"{self.location.rstrip('/')}/{name}")
        path, mark, options = self.location.partition("?")
        return Store(f"{path.rstrip('/')}/{quote(name)}{mark}{options}")

    def _do(self, call: Callable[[Any, str], T], name: str = "") -> T:
        """`call` with the filesystem and the full path of `name`; on object stores with patience and remedies."""
        filesystem, path = self.open()
        full = f"{path}/{name}" if name else path
        if self.is_local:
            return call(filesystem, full)
        return patiently(lambda: call(filesystem, full), self.where(name))

    def _listed(self, below: str = "") -> list[Any]:
        return list(self._do(lambda fs, path: fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)), below))

    def names(self, below: str = "") -> list[str]:
        """Sorted names of the files directly in the folder (or in `below`); empty if there is no such folder.

        What is still being written is not shown.
        """
        found = [info.base_name for info in self._listed(below) if info.type == pafs.FileType.File]
        return sorted(name for name in found if not name.startswith(TEMPORARY_PREFIX))

    def folders(self) -> list[str]:
        """Sorted names of the sub-folders, half-written ones left out."""
        found = [info.base_name for info in self._listed() if info.type == pafs.FileType.Directory]
        return sorted(name for name in found if not name.startswith(TEMPORARY_PREFIX))

    def walk(self) -> dict[str, int]:
        """Bytes of every file below the folder, by its path relative to it."""

        def listed(filesystem: Any, path: str) -> dict[str, int]:
            try:
                found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{self.where()}: no such folder") from error
            start = len(path.rstrip("/")) + 1
            return {info.path[start:]: int(info.size) for info in found if info.type == pafs.FileType.File}

        return self._do(listed)

    def _info(self, name: str = "") -> Any:
        return self._do(lambda fs, path: fs.get_file_info(path), name)

    def exists(self, name: str = "") -> bool:
        """True if there is a file or a folder `name`, or the folder itself."""
        return bool(self._info(name).type != pafs.FileType.NotFound)

    def size(self, name: str) -> int | None:
        """Bytes of the file, or None if it does not exist."""
        info = self._info(name)
        return int(info.size) if info.type == pafs.FileType.File else None

    def read(self, name: str) -> bytes:
        """The whole file; FileNotFoundError if it is not there."""

        def whole(filesystem: Any, path: str) -> bytes:
            with filesystem.open_input_file(path) as stream:
                return bytes(stream.read(stream.size()))  # one request; a stream would make one per 256 KiB

        return self._do(whole, name)

    def open_input(self, name: str) -> Any:
        """The file opened for random access (a pyarrow NativeFile)."""
        return self._do(lambda fs, path: fs.open_input_file(path), name)

    def write(self, name: str, data: bytes) -> None:
        """Write all of `data` under `name`, replacing what was there in one step."""
        if self.is_local:
            self._put_local(name, data, replace=True)
            return

        def put(filesystem: Any, path: str) -> None:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)

        self._do(put, name)

    def create(self, name: str, data: bytes) -> None:
        """Write `data` under a name that must not exist yet; FileExistsError otherwise."""
        if self.is_local:
            self._put_local(name, data, replace=False)
            return
        for _ in range(CLAIM_ATTEMPTS):
            claim, began = f"{TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex}", time.monotonic()
            self.write(claim, b"")
            try:
                alone = self._rivals(name, claim) == 0
                if self.size(name) is not None:  # only now: a rival that has finished has taken its claim away
                    raise FileExistsError(f"{self.where(name)} already exists")
                if alone and time.monotonic() - began < CLAIM_VALID_S / 2:
                    self.write(name, data)
                    return
            finally:
                self.delete(claim)
            time.sleep(random.uniform(0.05, 1.0))
        raise FileExistsError(f"{self.where(name)} is being written by another process at this moment")

    def _rivals(self, name: str, claim: str) -> int:
        """Claims on `name` besides this process's that are young enough to count, by the server's clock."""
        claims = [i for i in self._listed() if i.base_name.startswith(f"{TEMPORARY_PREFIX}{name}-")]
        mine = next(i.mtime_ns for i in claims if i.base_name == claim)
        return sum(i.base_name != claim and (mine or 0) - (i.mtime_ns or 0) < CLAIM_VALID_S * 1e9 for i in claims)

    def _put_local(self, name: str, data: bytes, *, replace: bool) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with named(target), aside.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if replace:
                aside.replace(target)
            else:
                _link(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(target.parent)

    def delete(self, name: str) -> None:
        """Remove one file; nothing happens if it is not there."""
        if self.size(name) is not None:
            self._do(lambda fs, path: fs.delete_file(path), name)

    def delete_folder(self, name: str) -> None:
        """Remove the sub-folder `name` with all it holds; nothing happens if it is not there."""
        if not name.strip("/") or ".." in name.split("/"):
            raise StoreError(f"'{name}' is not the name of a sub-folder of {self.where()}")
        if self.is_local:
            doomed = self.folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
            if (self.folder / name).is_dir():
                (self.folder / name).replace(doomed)  # gone in one step, whatever happens while the files go
                shutil.rmtree(doomed, ignore_errors=True)
        elif self._info(name).type == pafs.FileType.Directory:
            self._do(lambda fs, path: fs.delete_dir(path), name)

    def clear_temporary(self, below: str = "", *, shared: bool = False) -> int:
        """Remove the files and folders that an interrupted write left behind; returns how many.

        What may be alive stays: young claims on an object store, and whatever is young in a folder into which others
        write, too (`shared`).
        """
        dead = time.time_ns() - int(CLAIM_VALID_S * 1e9)
        if not self.is_local:
            claims = [i for i in self._listed(below) if i.base_name.startswith(TEMPORARY_PREFIX)]
            listed = [i for i in claims if i.mtime_ns is not None and i.mtime_ns < dead]  # some stores have no times
            for info in listed:
                self.delete(f"{below}/{info.base_name}" if below else info.base_name)
            return len(listed)
        removed = 0
        for path in (self.folder / below).glob(f"{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # its writer has finished, or somebody else removes it
                if shared and path.stat().st_mtime_ns >= dead:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
                removed += 1
        return removed

    def check_writable(self) -> None:
        """Write, read and remove a small file; StoreError names the cause."""
        name = f"{TEMPORARY_PREFIX}check-{uuid.uuid4().hex}"
        try:
            self.write(name, b"beatray")
            whole = self.read(name) == b"beatray"
            self.delete(name)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.where()} cannot be written to: {error}") from error
        if not whole:
            raise StoreError(f"{self.where()} gives back other bytes than were written to it")


def _link(aside: Path, target: Path) -> None:
    """Give the file its name unless that exists, where a rename would replace what has it.

    Disks without hard links (vfat, exFAT, some network ones) leave a moment between the look and the rename; an ingest
    holds a lock of its own meanwhile.
    """
    try:
        os.link(aside, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target)) from error
        aside.rename(target)


def absolute(path: str) -> str:
    """A local path from the root, so that it holds in every process and folder; a URI as it is.

    beatray://NAME stays, too: every node has a copy of its own of it.
    """
    if path.startswith("~"):
        with contextlib.suppress(RuntimeError):  # no user of that name
            path = str(Path(path).expanduser())
    store = Store(path)
    stays = not store.is_local or path.startswith(f"{PACKAGE_SCHEME}://")
    return path if stays else str(store.folder)


@lru_cache(maxsize=64)
def _connect(location: str, process: int, settings: tuple[str | None, ...]) -> tuple[Any, str]:
    """One connection per location, process and settings; making one costs several requests' time."""
    asked = location
    if urlsplit(location).scheme == "s3" and "allow_delayed_open" not in location:
        asked += ("&" if "?" in location else "?") + "allow_delayed_open=true"  # a small file is one put, not three
    try:
        filesystem, path = patiently(lambda: _filesystem(asked), location)
    except (ValueError, ImportError, pa.ArrowNotImplementedError) as error:  # ArrowInvalid is a ValueError
        raise StoreError(
            f"{location} is not a location that pyarrow can open ({error}). Write s3://bucket/folder or "
            "gs://bucket/folder, %20 for a blank, or a local path."
        ) from error
    return filesystem, path.rstrip("/")


def _filesystem(location: str) -> tuple[Any, str]:
    """Arrow's own filesystem for a URI; fsspec's where Arrow has none (https, memory, hf, ...)."""
    try:
        filesystem, path = pafs.FileSystem.from_uri(location)
    except ValueError as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        import fsspec  # comes with Ray Data

        remote, path = fsspec.core.url_to_fs(location)
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(remote))
    return filesystem, path


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable: without it a power cut can forget the directory entry."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
