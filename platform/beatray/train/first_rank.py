"""What only the first rank does: the journals, the checkpoints, and listening to the outside.

Contract: lines of metrics.jsonl and ids.jsonl are never doubled when a run continues; a checkpoint is never ahead of
the journals; a start whose run another one has taken over writes nothing more.
"""

from __future__ import annotations

import json
import logging
import time
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from beatray.settings import as_dict
from beatray.track.journal import Journal
from beatray.train import checkpoint as checkpoints
from beatray.train.account import Account
from beatray.train.errors import SupersededError
from beatray.train.flags import Flags
from beatray.train.job import Job
from beatray.train.run_folder import IDS, JOURNALS, METRICS, REFUSED, SKIPPED, RunFolder
from beatray.train.writer import CheckpointWriter

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often all ranks ask together whether a node is about to be taken away."""


class FirstRank:
    """Use as a context manager, from the step `done` on; `start` is the id of this start of the run."""

    def __init__(self, job: Job, done: int, start: str | None) -> None:
        self._job, self._folder, self._saved = job, RunFolder.open(job.run), done
        self._folder.pull(*JOURNALS)
        self._metrics, self._ids = (Journal(self._folder.scratch / name) for name in (METRICS, IDS))
        self._metrics.reopen(done)
        if job.settings.train.log_ids:
            self._ids.reopen(done)
        self._flags = Flags(self._folder, start)
        self._writer = CheckpointWriter(job.run, job.settings.checkpoint, self._keep_journals, self._may_write)
        self._looked = time.monotonic()

    def __enter__(self) -> FirstRank:
        self._flags.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        self._flags.__exit__(kind, error, trace)
        self._metrics.close()
        self._ids.close()
        if self._may_write():
            self._folder.push(*JOURNALS)

    @property
    def wants_stop(self) -> bool:
        """True once somebody asked the run to stop."""
        return self._flags.stop

    @property
    def checkpoint_failures(self) -> int:
        """Checkpoints that could not be written, where they are not required."""
        return self._writer.failures

    def fault(self) -> Exception | None:
        """Why this rank must end, apart from its data: a lost checkpoint, or another start of the same run."""
        if self._flags.superseded:
            return SupersededError(f"another start of run {self._job.settings.run} has taken over")
        return self._writer.fault()

    def wants_look(self) -> bool:
        """True every few seconds: time to ask Ray whether a node is about to be taken away."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        return True

    def log_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self._metrics.write({**line, "time_ms": int(time.time() * 1000)})

    def log_ids(self, line: dict[str, Any]) -> None:
        """Append a line to ids.jsonl."""
        self._ids.write(line)

    def log_refused(self, step: int, record_ids: list[str]) -> None:
        """Note the recordings of a step that was refused."""
        self._append(REFUSED, {"step": step, "record_ids": record_ids})

    def log_skipped(self, step: int, faults: list[str]) -> None:
        """Note shards that cannot be read and whose rows the run goes on without."""
        for fault in faults:
            log.warning("going on without: %s", fault)
            self._append(SKIPPED, {"step": step, "fault": fault})

    def is_due(self, done: int, validation_loss: float | None) -> bool:
        """True if a checkpoint after `done` steps is asked for by steps, by minutes or by a better validation."""
        by_steps = done % self._job.settings.train.checkpoint_every_steps == 0
        return by_steps or self._writer.is_overdue or self._writer.improves(validation_loss)

    def save(
        self,
        done: int,
        per_epoch: int,
        account: Account | None,
        objective: nn.Module,
        optimiser: Optimizer,
        validation_loss: float | None = None,
    ) -> None:
        """Hand a checkpoint after `done` steps to the writer, unless there is one already."""
        if done == self._saved:
            return
        self._saved = done
        epoch, step = divmod(done, per_epoch)
        state = {
            "global_step": done,
            "epoch": epoch,
            "step": step,
            "account": None if account is None else [account.rows, account.keys, account.dropped],
            "validation_loss": validation_loss,
            "settings": as_dict(self._job.settings),
            "recipe": self._job.recipe,
            "manifest_hash": self._job.manifest_hash,
        }
        snapshot = checkpoints.snapshot(checkpoints.name_of(done), state, objective, optimiser)
        self._writer.submit(snapshot, validation_loss)

    def settle(self) -> None:
        """Until the last checkpoint is written or has failed."""
        self._writer.wait()

    def wait(self) -> None:
        """The same; raises CheckpointError if one that is required could not be written."""
        self._writer.wait()
        fault = self._writer.fault()
        if fault is not None:
            raise fault

    def export(self, objective: Any) -> None:
        """Write encoder/: the last weights, or the best by validation where the settings say so."""
        job, done = self._job, self._job.steps
        best = checkpoints.best(job.run) if job.settings.checkpoint.export == "best" else None
        if best is not None:
            chosen = checkpoints.load(job.run, best[0])
            objective.load_state_dict(chosen.model)
            done = int(chosen.state["global_step"])
        encoder = {**job.settings.encoder}
        description = {
            "name": encoder.pop("name"),
            "settings": encoder,
            "recipe": job.recipe,
            "objective": job.settings.objective,
            "manifest_hash": job.manifest_hash,
            "corpus_settings": as_dict(job.settings)["corpus"],
            "steps": done,
            "validation_loss": None if best is None else best[1],
            "seed": job.settings.seed,
        }
        checkpoints.export_encoder(job.run, objective.encoder.float(), description, job.trained_on)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self._folder.scratch / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _keep_journals(self) -> None:
        for journal in (self._metrics, self._ids):
            journal.sync()
        self._folder.push(*JOURNALS)

    def _may_write(self) -> bool:
        self._flags.look()
        return not self._flags.superseded
