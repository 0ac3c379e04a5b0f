"""Where corpora and runs live: a local folder or any filesystem URI that pyarrow speaks (s3://, gs://, ...).

Contract: `write` is all or nothing; a reader sees the old bytes, the new bytes or nothing, never a part. On a local
disk that is a temporary file, fsync and rename; object stores give it by the put itself. `create` additionally fails
when the name exists, which is what makes a manifest a commit (the idea of the numbered log of Delta Lake). On object
stores it looks, writes and reads back: two writers in the same instant are noticed by one of them at most, so let one
ingest at a time write a corpus there.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow.fs as pafs

TEMPORARY_PREFIX = ".writing-"


class StoreError(OSError):
    """A folder or file of a corpus or run that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Store:
    """A folder, by location. Cheap to make and to pickle: the filesystem is opened where it is used."""

    location: str

    @property
    def is_local(self) -> bool:
        """True for a plain path or a file:// URI."""
        return urlparse(self.location).scheme in ("", "file") or len(urlparse(self.location).scheme) == 1

    @property
    def folder(self) -> Path:
        """The folder as a local path; only for local stores."""
        if not self.is_local:
            raise StoreError(f"{self.location} is not a local folder")
        return Path(self.location.removeprefix("file://")).absolute()

    def open(self) -> tuple[Any, str]:
        """The pyarrow filesystem and the folder's path in it."""
        if self.is_local:
            return pafs.LocalFileSystem(), str(self.folder)
        filesystem, path = pafs.FileSystem.from_uri(self.location)
        return filesystem, path.rstrip("/")

    def child(self, name: str) -> Store:
        """The sub-folder `name`."""
        return Store(f"{self.location.rstrip('/')}/{name}")

    def names(self, below: str = "") -> list[str]:
        """Sorted names of the files directly in the folder (or in `below`); empty if there is no such folder."""
        filesystem, path = self.open()
        base = f"{path}/{below}" if below else path
        found = filesystem.get_file_info(pafs.FileSelector(base, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.File)

    def folders(self) -> list[str]:
        """Sorted names of the sub-folders."""
        filesystem, path = self.open()
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def size(self, name: str) -> int | None:
        """Bytes of the file, or None if it does not exist."""
        filesystem, path = self.open()
        info = filesystem.get_file_info(f"{path}/{name}")
        return int(info.size) if info.type == pafs.FileType.File else None

    def read(self, name: str) -> bytes:
        """The whole file; FileNotFoundError if it is not there."""
        filesystem, path = self.open()
        with filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream:
            return bytes(stream.read())

    def open_input(self, name: str) -> Any:
        """The file opened for random access (a pyarrow NativeFile)."""
        filesystem, path = self.open()
        return filesystem.open_input_file(f"{path}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write all of `data` under `name`, replacing what was there in one step."""
        self._put(name, data, replace=True)

    def create(self, name: str, data: bytes) -> None:
        """Write `data` under a name that must not exist yet; FileExistsError otherwise."""
        self._put(name, data, replace=False)

    def _put(self, name: str, data: bytes, *, replace: bool) -> None:
        if not self.is_local:
            filesystem, path = self.open()
            if not replace and self.size(name) is not None:
                raise FileExistsError(f"{self.location}/{name} already exists")
            with filesystem.open_output_stream(f"{path}/{name}") as stream:
                stream.write(data)
            if not replace and self.read(name) != data:
                raise FileExistsError(f"{self.location}/{name} was written by somebody else at the same moment")
            return
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with aside.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if replace:
                aside.replace(target)
            else:
                os.link(aside, target)  # fails if the name exists, where rename would replace it
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(target.parent)

    def delete(self, name: str) -> None:
        """Remove one file; nothing happens if it is not there."""
        filesystem, path = self.open()
        if self.size(name) is not None:
            filesystem.delete_file(f"{path}/{name}")

    def clear_temporary(self, below: str = "") -> int:
        """Remove what an interrupted write left behind; returns how many files."""
        if not self.is_local:
            return 0
        left = list((self.folder / below).glob(f"{TEMPORARY_PREFIX}*"))
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable: without it a power cut can forget the directory entry."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
