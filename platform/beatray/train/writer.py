"""Writes checkpoints in the background, so that training goes on while a disk or an object store is slow.

The loop hands over a snapshot; one thread hashes and writes it, marks the best, and deletes what is too old. One write
at a time. Contract: after `wait` every snapshot handed over is on disk or its failure is known; a failed write leaves
earlier checkpoints as they are.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from beatray.errors import CheckpointError
from beatray.settings import CheckpointSettings
from beatray.storage.store import Store
from beatray.train import checkpoint as checkpoints
from beatray.train.checkpoint import Checkpoint

log = logging.getLogger(__name__)


class CheckpointWriter:
    """The first rank's writer; use as a context manager.

    `before` runs in the thread ahead of every write (it makes the journals durable); `may_write` is asked first and
    last, so that a process whose run another one has taken over writes nothing.
    """

    def __init__(
        self, run: Store, settings: CheckpointSettings, before: Callable[[], None], may_write: Callable[[], bool]
    ) -> None:
        self._run, self._settings, self._before, self._may_write = run, settings, before, may_write
        if run.is_local:
            run.clear_temporary(checkpoints.FOLDER)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beatray-checkpoint")
        self._writing: Future[None] | None = None
        self._fault: CheckpointError | None = None
        self._best = self._whole_best()
        self._last_at = time.monotonic()
        self.failures = 0

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        self._thread.shutdown()

    def seconds_since_last(self) -> float:
        """Seconds since the last snapshot was handed over, or since this writer began."""
        return time.monotonic() - self._last_at

    def improves(self, validation_loss: float | None) -> bool:
        """True if this is the least validation loss, or whatever else the best has least of, of the run so far; what is
        not finite never is."""
        if validation_loss is None or not math.isfinite(validation_loss):
            return False
        return self._best is None or validation_loss < self._best[1]

    def mark_if_best(self, name: str, validation_loss: float | None) -> None:
        """Note a checkpoint that is there as the best so far, if it is."""
        if validation_loss is not None and self.improves(validation_loss):
            checkpoints.mark_best(self._run, name, validation_loss)
            self._best = (name, validation_loss)

    def submit(self, checkpoint: Checkpoint, validation_loss: float | None = None) -> None:
        """Write this snapshot; `validation_loss` if it was validated at this very step."""
        self.wait()
        self._last_at = time.monotonic()
        self._writing = self._thread.submit(self._write, checkpoint, validation_loss)
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
            reason = describe(error, f"checkpoint could be written to {self._run.where(checkpoints.FOLDER)}")
            if self._settings.required:
                self._fault = CheckpointError(reason)
            else:
                log.warning("%s; training goes on (checkpoint.required=false)", reason)

    def fault(self) -> CheckpointError | None:
        """The failure of a finished write; None if all is well or checkpoints are not required."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._fault

    def _whole_best(self) -> tuple[str, float] | None:
        """The best so far. One that is damaged is forgotten: a replay of its step gives an equal value, not a less."""
        best = checkpoints.best(self._run)
        if best is not None:
            try:
                checkpoints.load(self._run, best[0])
            except CheckpointError as error:
                log.warning("the best checkpoint is forgotten; the next validation decides anew: %s", error)
                self._run.child(checkpoints.FOLDER).delete(checkpoints.BEST)
                return None
        return best

    def _write(self, checkpoint: Checkpoint, validation_loss: float | None) -> None:
        if not self._may_write():
            return
        self._before()
        if not self._may_write():
            return
        checkpoints.save(self._run, checkpoint)
        self.mark_if_best(checkpoint.name, validation_loss)
        checkpoints.keep_newest(self._run, self._settings.keep, checkpoint.name)


def describe(error: OSError, what: str) -> str:
    """A message: what could not be done, why, and the remedy where the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space, or lower checkpoint.keep; checkpoint.required=false trains on without"
        return f"no {what}: the disk is full. Older checkpoints are intact: {remedy}"
    return f"no {what} ({error}). Older checkpoints are intact"
