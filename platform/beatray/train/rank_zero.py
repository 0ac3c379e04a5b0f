"""What only rank zero does: the journals, the checkpoints, and listening to the outside.

Contract: lines of the journals are never doubled when a run continues; a checkpoint is never ahead of the journals; a
group of workers whose run another one has taken over writes nothing more.
"""

from __future__ import annotations

import contextlib
import logging
import time
from types import TracebackType
from typing import Any

from torch.optim import Optimizer

from beatray.errors import CheckpointError, SupersededError
from beatray.models import encoder_folder
from beatray.objectives.objective import Objective
from beatray.schema import as_dict
from beatray.track.journal import Journal
from beatray.train import checkpoint as checkpoints
from beatray.train.epoch_audit import EpochAudit
from beatray.train.run_folder import IDS, JOURNALS, METRICS, REFUSED, SKIPPED, STOPPED, RunFolder, RunLease
from beatray.train.run_spec import RunSpec, shown_settings
from beatray.train.writer import CheckpointWriter, describe

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often all ranks together ask Ray for news and report theirs; Ray takes reports only every second or two."""


class RankZero:
    """Use as a context manager, from the step `done` on; `start` is the id of this start of the run.

    `selection` is that of the checkpoint the run continues from, if it was validated there, `precision` the arithmetic
    that the ranks agreed on. Raises
    SupersededError before it touches anything if the run belongs to another start.
    """

    def __init__(
        self, run_spec: RunSpec, done: int, start: str | None, selection: float | None, precision: str
    ) -> None:
        self._run_spec, self._saved, self._precision = run_spec, done, precision
        self._lease = RunLease(run_spec.run, start)
        self._folder = RunFolder.open(run_spec.run)
        self._folder.pull(*JOURNALS)
        self._journals = {name: Journal(self._folder.scratch / name) for name in JOURNALS}
        for name, journal in self._journals.items():
            if name != IDS or run_spec.settings.train.log_ids:
                journal.reopen(done)
        self._writer = CheckpointWriter(
            run_spec.run, run_spec.settings.checkpoint, self._keep_journals, self._may_write
        )
        self._writer.mark_if_best(checkpoints.name_of(done), selection)
        self._looked = time.monotonic()
        self._journal_fault: CheckpointError | None = None
        self._journal_warned = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RankZero:
        self._stack.enter_context(self._lease)
        self._stack.callback(self._close_journals)
        self._stack.enter_context(self._writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        except OSError:
            if error is None:
                raise
            log.exception("closing the journals failed, too")

    @property
    def wants_stop(self) -> bool:
        """True once the run was asked to stop."""
        return self._lease.stop

    @property
    def checkpoint_failures(self) -> int:
        """Checkpoints that could not be written, where they are not required."""
        return self._writer.failures

    def fault(self) -> Exception | None:
        """Why this rank must end, apart from its data: a full disk, or another start of the same run."""
        if self._lease.superseded:
            return SupersededError(f"another start of run {self._run_spec.settings.run} has taken over")
        return self._writer.fault() or self._journal_fault

    def wants_look(self) -> bool:
        """True every few seconds: time for all ranks to ask Ray for news."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        return True

    def log_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self._log(METRICS, {**line, "time_ms": int(time.time() * 1000)})

    def log_ids(self, line: dict[str, Any]) -> None:
        """Append a line to ids.jsonl."""
        self._log(IDS, line)

    def log_refused(self, step: int, record_ids: list[str]) -> None:
        """Note the recordings of a step that was refused."""
        self._log(REFUSED, {"step": step, "record_ids": record_ids})

    def log_skipped(self, step: int, faults: list[str]) -> None:
        """Note shards that cannot be read and whose rows the run goes on without."""
        for fault in faults:
            log.warning("going on without: %s", fault)
            self._log(SKIPPED, {"step": step, "fault": fault})

    def note_end(self, why: str) -> None:
        """Note that the run has ended for good, and why."""
        if self._may_write():
            self._run_spec.run.write(STOPPED, why.encode())

    def is_due(self, done: int, selection: float | None) -> bool:
        """True if a checkpoint after `done` steps is asked for by steps, by minutes or by a better validation."""
        settings = self._run_spec.settings
        minutes = settings.checkpoint.every_minutes
        limits = [60 * minutes] if minutes is not None else []
        if isinstance(settings.train.workers, tuple):
            limits.append(settings.train.resize_seconds / 2)  # a change of size restarts from the last checkpoint
        by_steps = done % settings.train.checkpoint_every_steps == 0
        by_time = bool(limits) and self._writer.seconds_since_last() >= min(limits)
        return by_steps or by_time or self._writer.improves(selection)

    def save(
        self,
        done: int,
        per_epoch: int,
        audit: EpochAudit | None,
        stopping: list[float | int | None],
        objective: Objective,
        optimizer: Optimizer,
        selection: float | None = None,
    ) -> None:
        """Hand a checkpoint after `done` steps to the writer, unless there is one already."""
        if done == self._saved:
            return
        self._saved = done
        self._writer.wait()  # before the copy: one in memory is enough
        epoch, step = divmod(done, per_epoch)
        state = {
            "global_step": done,
            "epoch": epoch,
            "step": step,
            "account": None if audit is None else [audit.rows, audit.keys, audit.dropped],
            "validation_loss": selection,  # what the best has least of, whatever it is
            "stopping": stopping,
            "precision": self._precision,
            "settings": shown_settings(self._run_spec.settings),
            "recipe": self._run_spec.recipe,
            "manifest_hash": self._run_spec.manifest_hash,
        }
        snapshot = checkpoints.snapshot(checkpoints.name_of(done), state, objective, optimizer)
        self._writer.submit(snapshot, selection)

    def settle(self) -> None:
        """Until the last checkpoint is written or has failed; `fault` knows."""
        self._writer.wait()

    def export(self, objective: Objective, ended_at: int) -> None:
        """Write encoder/: the last weights, or the best by validation where the settings ask for it.

        The run ended after so many steps. CheckpointError if it cannot be written.
        """
        run_spec, done, loss = self._run_spec, ended_at, None
        best = checkpoints.best(run_spec.run) if run_spec.settings.checkpoint.export == "best" else None
        if best is not None:
            try:
                chosen = checkpoints.load(run_spec.run, best[0])
                objective.load_state_dict(chosen.model)
                done, loss = int(chosen.state["global_step"]), best[1]
            except CheckpointError as error:
                log.warning("the best checkpoint cannot be used, the last weights are exported: %s", error)
        encoder = objective.exported().float()
        description = {
            "name": encoder.name,
            "settings": encoder.described_settings(),
            "recipe": run_spec.recipe,
            "objective": run_spec.settings.objective,
            "supervised": objective.supervised,
            "manifest_hash": run_spec.manifest_hash,
            "sources": run_spec.sources,
            "started_from": run_spec.settings.encoder_weights_sha256 if run_spec.settings.first_weights else None,
            "earlier_sources": run_spec.earlier_sources,
            "corpus_settings": as_dict(run_spec.settings)["corpus"],
            "steps": done,
            "run_steps": run_spec.steps,
            "ended_at": ended_at,
            "validation_loss": None if objective.supervised else loss,
            "seed": run_spec.settings.seed,
            "precision": self._precision,
        }
        try:
            encoder_folder.export_encoder(run_spec.run, encoder, description, run_spec.trained_on)
        except OSError as error:
            raise CheckpointError(describe(error, f"encoder could be written to {run_spec.run.where()}")) from error

    def _log(self, name: str, line: dict[str, Any]) -> None:
        """Append to a journal. A full disk is reported once; the line is kept and written when there is room again."""
        try:
            self._journals[name].write(line)
        except OSError as error:
            reason = describe(error, f"line could be added to {name}")
            if self._run_spec.settings.checkpoint.required:
                self._journal_fault = CheckpointError(reason)
            elif not self._journal_warned:
                log.warning("%s; training goes on (checkpoint.required=false)", reason)
                self._journal_warned = True

    def _keep_journals(self) -> None:
        for journal in self._journals.values():
            journal.sync()
        self._folder.push(*JOURNALS)

    def _close_journals(self) -> None:
        for journal in self._journals.values():
            with contextlib.suppress(OSError) if self._journal_warned else contextlib.nullcontext():
                journal.close()
        if self._may_write():
            self._folder.push(*JOURNALS)

    def _may_write(self) -> bool:
        self._lease.look()
        return not self._lease.superseded
