"""One ingest at a time into a corpus on a disk: a second one is refused, instead of taking the first one's files away.

The lock is the kernel's (flock) on the corpus folder itself: nothing is left behind, and it ends with the process that
holds it, however that ends. Object stores have none; there the manifest decides, which only one writer can create.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from beatray.errors import CorpusError
from beatray.storage.store import Store


@contextmanager
def only_ingest(store: Store) -> Iterator[None]:
    """Hold the corpus for writing. Raises CorpusError if another process does."""
    if not store.is_local:
        yield
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(store.folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise CorpusError(f"another ingest is writing to {store.where()}; wait for it or stop it first") from error
    try:
        yield
    finally:
        os.close(handle)
