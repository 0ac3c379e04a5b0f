"""Where a run keeps its files: a folder that every node sees, or a place in an object store.

Checkpoints and the encoder are written to the place itself. Journals (metrics.jsonl, ids.jsonl, ...) grow line by
line, which an object store cannot do: for those a process appends to a scratch copy and `push` uploads it, before each
checkpoint, so that no checkpoint is ever ahead of the journals. On a shared folder both are the same and `push` and
`pull` do nothing.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from beatray.storage.store import Store

METRICS, IDS = "metrics.jsonl", "ids.jsonl"
REFUSED = "refused_steps.jsonl"
"""The recordings of every step that was refused."""
SKIPPED = "skipped_shards.jsonl"
"""The shards that could not be read, where the run was told to go on without them."""
JOURNALS = (METRICS, IDS, REFUSED, SKIPPED)
SETTINGS = "settings.yaml"
OWNER = "owner.txt"
"""The newest start of the run and, after a slash, the newest group of workers of that start; all others must end."""
ALIVE = "alive.txt"
"""Rewritten every few seconds while workers live."""
EVALUATION_FOLDER = "evaluation"  # of the exported encoder, where a sweep has evaluated it
STOP = "stop_requested.txt"
"""Its presence asks the ranks for a checkpoint and an end."""
STOPPED = "stopped.txt"
"""Why a rank ended the run for good."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`place` is durable and seen by all; `scratch` is where this process keeps its journals."""

    place: Store
    scratch: Path

    @classmethod
    def open(cls, place: Store) -> RunFolder:
        """The run folder at `place`; for an object store with a scratch folder that goes with this process."""
        if place.is_local:
            place.folder.mkdir(parents=True, exist_ok=True)
            return cls(place, place.folder)
        scratch = tempfile.mkdtemp(prefix="beatray-run-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        return cls(place, Path(scratch))

    def push(self, *names: str) -> None:
        """Upload these files, where they exist."""
        if self.place.is_local:
            return
        for name in names:
            path = self.scratch / name
            if path.is_file():
                self.place.write(name, path.read_bytes())

    def pull(self, *names: str) -> None:
        """Download these files, where they exist and their size has changed."""
        if self.place.is_local:
            return
        for name in names:
            path = self.scratch / name
            size = self.place.size(name)
            if size is None or (path.is_file() and path.stat().st_size == size):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".pulling")
            aside.write_bytes(self.place.read(name))
            aside.replace(path)

    def pull_folder(self, name: str) -> None:
        """Download the files directly in a sub-folder."""
        if not self.place.is_local:
            self.pull(*(f"{name}/{file}" for file in self.place.names(name)))


def read_text(place: Store, name: str) -> str | None:
    """The text of a small file; None if it is not there."""
    try:
        return place.read(name).decode()
    except FileNotFoundError:
        return None
