"""Writes checkpoints in the background, so that training goes on while a disk or an object store is slow.

The loop hands over a snapshot; one thread hashes and writes it, marks the best, and deletes what is too old. One write
at a time: a new snapshot waits for the one before it. Contract: after `wait` every snapshot handed over is on disk or
its failure is known; a failed write leaves earlier checkpoints as they are.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from beatray.corpus.store import Store
from beatray.settings import CheckpointSettings
from beatray.train import checkpoint as checkpoints
from beatray.train.checkpoint import Checkpoint
from beatray.train.errors import CheckpointError

log = logging.getLogger(__name__)


class CheckpointWriter:
    """The first rank's writer; use as a context manager.

    `before` runs in the thread ahead of every write (it makes the journals durable); `may_write` is asked last, so that
    a process whose run another one has taken over writes nothing.
    """

    def __init__(
        self, run: Store, settings: CheckpointSettings, before: Callable[[], None], may_write: Callable[[], bool]
    ) -> None:
        self._run, self._settings, self._before, self._may_write = run, settings, before, may_write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beatray-checkpoint")
        self._writing: Future[None] | None = None
        self._fault: CheckpointError | None = None
        self._best = checkpoints.best(run)
        self._last_at = time.monotonic()
        self.newest: str | None = None
        self.failures = 0

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        self._thread.shutdown()

    @property
    def is_overdue(self) -> bool:
        """True when more minutes have passed since the last checkpoint than the settings allow."""
        minutes = self._settings.every_minutes
        return minutes is not None and time.monotonic() - self._last_at >= 60 * minutes

    def improves(self, validation_loss: float | None) -> bool:
        """True if this is the lowest validation loss of the run so far."""
        return validation_loss is not None and (self._best is None or validation_loss < self._best[1])

    def submit(self, checkpoint: Checkpoint, validation_loss: float | None = None) -> None:
        """Write this snapshot; `validation_loss` if it was validated at this very step."""
        self.wait()
        self._last_at = time.monotonic()
        self.newest = checkpoint.name
        best = validation_loss if self.improves(validation_loss) else None
        if best is not None:
            self._best = (checkpoint.name, best)
        self._writing = self._thread.submit(self._write, checkpoint, best)
        if not self._settings.background:
            self.wait()

    def wait(self) -> None:
        """Until the write under way, if any, is done; its failure is kept for `fault`."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            self.failures += 1
            told = _told(error, self._run)
            if self._settings.required:
                self._fault = CheckpointError(told)
            else:
                log.warning("%s; training goes on (checkpoint.required=false)", told)

    def fault(self) -> CheckpointError | None:
        """The failure of a finished write; None if all is well or checkpoints are not required."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._fault

    def _write(self, checkpoint: Checkpoint, best: float | None) -> None:
        self._before()
        if not self._may_write():
            return
        checkpoints.save(self._run, checkpoint)
        if best is not None:
            checkpoints.mark_best(self._run, checkpoint.name, best)
        checkpoints.keep_newest(self._run, self._settings.keep)


def _told(error: OSError, run: Store) -> str:
    place = f"{run.location}/{checkpoints.FOLDER}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space, or lower checkpoint.keep; checkpoint.required=false trains on without"
        return f"no checkpoint could be written to {place}: the disk is full. Older ones are intact: {remedy}"
    return f"no checkpoint could be written to {place} ({error}). Older ones are intact"
