"""Folders of commands that write to a local disk alone: a URI of an object store is refused, with the remedy."""

from __future__ import annotations

from pathlib import Path

from beatray.errors import SettingsError
from beatray.storage.store import Store

COPY = "give a folder of this machine or a shared disk, and copy it there afterwards"


def local_folder(given: str, location: str, remedy: str = COPY) -> Path:
    """The folder at `location`, a path or a file:// URI, as an absolute path.

    `given` is how the user named it (`out=`, `--out `). SettingsError for an object store: as a path, its URI would be
    a folder `s3:` below the present one, which in a cluster job is lost with the job.
    """
    store = Store(location)
    if not store.is_local:
        raise SettingsError(f"{given}{store.where()} is not on a local disk: {remedy}")
    return store.folder
