"""A folder that appears whole or not at all, every file of it hashed: what checkpoints and encoders are kept in.

Locally it is written aside, made durable and renamed; on an object store, which has no rename, `files.json` with the
SHA-256 of all other files is written last, and a folder without it does not count. Contract: `read_folder` returns what
`write_folder` was given, or raises CheckpointError naming the file that is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping

from beatray.errors import CheckpointError
from beatray.full_disk import named
from beatray.storage.store import TEMPORARY_PREFIX, Store, sync_folder

FILES = "files.json"


def write_folder(parent: Store, name: str, files: Mapping[str, bytes]) -> None:
    """Write a hashed folder `name` in one step; OSError when the disk or the store refuses."""
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    listing = _listing(hashes)
    if not parent.is_local:
        store = parent.child(name)
        store.delete(FILES)  # a folder of that name is no longer whole while it is replaced
        for file, data in files.items():
            store.write(file, data)
        store.write(FILES, listing)
        return
    parent.folder.mkdir(parents=True, exist_ok=True)
    aside = parent.folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        aside.mkdir()
        for file, data in {**files, FILES: listing}.items():
            with named(parent.folder / name / file), (aside / file).open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        sync_folder(aside)
        target = parent.folder / name
        if target.exists():
            replaced = parent.folder / f"{TEMPORARY_PREFIX}old-{uuid.uuid4().hex}"
            target.replace(replaced)
            try:
                aside.replace(target)
            except OSError:
                replaced.replace(target)
                raise
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            aside.replace(target)
        sync_folder(parent.folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _listing(hashes: Mapping[str, str]) -> bytes:
    """The one way to write files.json, so that a flipped bit shows even where JSON would not mind."""
    return json.dumps(hashes, indent=1, sort_keys=True).encode()


def read_folder(store: Store) -> dict[str, bytes]:
    """All files of a hashed folder; CheckpointError names the file that is missing or whose hash differs.

    OSError when the disk or the store does not answer: that is not about the folder.
    """
    missing = FILES
    try:
        listing = store.read(FILES)
        hashes = json.loads(listing)
        if not isinstance(hashes, dict) or listing != _listing(hashes):
            raise ValueError("it is not as it was written")
        files = {}
        for file in hashes:
            missing = file
            files[file] = store.read(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{store.where()} is not complete: {missing} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{store.where(FILES)} is damaged: {error}") from error
    for file, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[file]:
            raise CheckpointError(f"{store.where(file)} is damaged: its SHA-256 differs from {FILES}")
    if not files:
        raise CheckpointError(f"{store.where(FILES)} names no files")
    return files
