"""Where a run keeps its files, a folder that every node sees or a path in an object store; and who owns it.

Checkpoints and the encoder are written to the store itself. Journals (metrics.jsonl, ids.jsonl, ...) grow line by
line, which an object store cannot do: for those a process appends to a scratch copy and `push` uploads it, before each
checkpoint, so that no checkpoint is ever ahead of the journals. On a shared folder both are the same and `push` and
`pull` do nothing.

Messages between the first rank and the outside while a run trains are small files there. Outwards: which
group of workers owns the run, and that it is alive. Inwards: a request to stop with a checkpoint, and that another
start, or a newer group of this start, owns the run now. Files, because they reach a rank on any node from a driver on
any other, through shared folders and object stores alike.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from beatray.errors import SupersededError
from beatray.storage.store import Store

log = logging.getLogger(__name__)

METRICS, IDS = "metrics.jsonl", "ids.jsonl"
REFUSED = "refused_steps.jsonl"
"""The recordings of every step that was refused."""
SKIPPED = "skipped_shards.jsonl"
"""The shards that could not be read, where the run was set to go on without them."""
JOURNALS = (METRICS, IDS, REFUSED, SKIPPED)
SETTINGS = "settings.yaml"
OWNER = "owner.txt"
"""The newest start of the run and, after a slash, the newest group of workers of that start; all others must end."""
ALIVE = "alive.txt"
"""Rewritten every few seconds while workers live."""
ALIVE_EVERY_S = 10.0
EVALUATION_FOLDER = "evaluation"  # of the exported encoder, where a sweep has evaluated it
STOP = "stop_requested.txt"
"""Its presence asks the ranks for a checkpoint and an end."""
STOPPED = "stopped.txt"
"""Why a rank ended the run for good."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`store` is durable and seen by all; `scratch` is where this process keeps its journals."""

    store: Store
    scratch: Path

    @classmethod
    def open(cls, store: Store) -> RunFolder:
        """The run folder in `store`; for an object store with a scratch folder that goes with this process."""
        if store.is_local:
            store.folder.mkdir(parents=True, exist_ok=True)
            return cls(store, store.folder)
        scratch = tempfile.mkdtemp(prefix="beatray-run-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        return cls(store, Path(scratch))

    def push(self, *names: str) -> None:
        """Upload these files, where they exist."""
        if self.store.is_local:
            return
        for name in names:
            path = self.scratch / name
            if path.is_file():
                self.store.write(name, path.read_bytes())

    def pull(self, *names: str) -> None:
        """Download these files, where they exist and their size has changed."""
        if self.store.is_local:
            return
        for name in names:
            path = self.scratch / name
            size = self.store.size(name)
            if size is None or (path.is_file() and path.stat().st_size == size):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".pulling")
            aside.write_bytes(self.store.read(name))
            aside.replace(path)

    def pull_folder(self, name: str) -> None:
        """Download the files directly in a sub-folder."""
        if not self.store.is_local:
            self.pull(*(f"{name}/{file}" for file in self.store.names(name)))


def read_text(store: Store, name: str) -> str | None:
    """The text of a small file; None if it is not there."""
    try:
        return store.read(name).decode()
    except FileNotFoundError:
        return None


class RunLease:
    """The first rank's hold on the run: `stop` and `superseded`, kept up to date by a thread; use as a context manager.

    Taking over raises SupersededError if the run belongs to another start already. `start` None: there is no other.
    """

    def __init__(self, run: Store, start: str | None) -> None:
        self._run, self._start = run, start
        self._owner = f"{start}/{uuid.uuid4().hex[:8]}"
        self._every_s = 0.5 if run.is_local else 2.0
        self._alive_at = -ALIVE_EVERY_S
        self.stop = False
        self.superseded = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="beatray-lease", daemon=True)
        if start is not None:
            if is_superseded(run, start):
                raise SupersededError("another start of this run has taken over")
            run.write(OWNER, self._owner.encode())

    def __enter__(self) -> RunLease:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Look now, and show a sign of life."""
        try:
            self.stop = self.stop or self._run.size(STOP) is not None
            if self._start is None:
                return
            self.superseded = self.superseded or read_text(self._run, OWNER) != self._owner
            if not self.superseded and time.monotonic() - self._alive_at >= ALIVE_EVERY_S:
                self._run.write(ALIVE, f"{self._owner} {time.time():.0f}\n".encode())
                self._alive_at = time.monotonic()
        except OSError as error:  # a disk that is full, or a store that does not answer for a moment
            log.warning("the run folder did not answer: %s", error)

    def _watch(self) -> None:
        while not self._end.wait(self._every_s):
            self.look()


def is_superseded(run: Store, start: str) -> bool:
    """True if the run belongs to another start."""
    owner = read_text(run, OWNER)
    return owner is None or owner.partition("/")[0] != start
