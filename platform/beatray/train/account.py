"""What follows from a step of training once it is read: journals, refusals, the end of an epoch, a checkpoint.

`Training` is what the parts of a rank's loop share. Contract: every rank calls these functions at the same steps, for
what they gather from all ranks; the first rank writes. A step is read late where steps overlap (step.py): its
checkpoint is written only while no later step is under way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.errors import CorpusError, TrainingError
from beatray.train.early_stopping import EarlyStopping
from beatray.train.epoch_audit import EpochAudit, difference, names_by_row_group, names_of_keys
from beatray.train.order import MicroBatch, epoch_order
from beatray.train.rank_zero import RankZero
from beatray.train.ranks import Ranks
from beatray.train.run_folder import REFUSED
from beatray.train.run_spec import RunSpec
from beatray.train.step import Learner, Outcome
from beatray.train.stream import Batch
from beatray.train.validation import Validation
from beatray.train.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Hooks:
    """What surrounds a rank; the defaults are those of a rank alone."""

    start: str | None = None  # the id of this start of the run
    report: Callable[[dict[str, Any]], None] = lambda metrics: None  # by all ranks at the same steps (report_now)
    preempted: Callable[[], bool] = lambda: False  # likewise: is a node about to be taken away?
    begin: Callable[[int], None] = lambda step: None  # likewise, once, with the step before the first


@dataclass(slots=True)
class Training:
    """What the parts of the loop share."""

    run_spec: RunSpec
    ranks: Ranks
    hooks: Hooks
    learner: Learner
    watchdog: Watchdog
    validation: Validation | None
    first: RankZero | None  # on the first rank only
    per_epoch: int
    last: int  # the step before which this start ends
    audit: EpochAudit | None  # of the present epoch; None if its beginning was not counted
    names: dict[int, str]  # record ids by key, on the first rank, where ids are logged
    seen: list[NDArray[np.int64]]  # record keys since the epoch, or this start, began
    seen_from: int  # the step of the epoch at which that was
    clock_s: float  # of this rank's work, up to which lines of the journal account for it
    stopping: EarlyStopping
    under_way: UnderWay | None = None  # the step that the device works at, not read yet
    read_s: float = 0.0  # when the newest step was read
    strikes: int = 0
    unreported: list[dict[str, Any]] = field(default_factory=list)  # what Ray has not got yet, the newest last


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ranks agreed on before a step."""

    failed: bool
    stop: bool
    look: bool
    save: bool
    faults: int
    parts: tuple[MicroBatch, ...]  # with the rows that are really there

    @property
    def rows(self) -> int:
        """Rows of the step over all ranks."""
        return sum(part.global_rows for part in self.parts)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step that was handed to the device."""

    number: int
    batch: Batch
    waited: float
    verdict: Verdict
    began: float
    learning_rate: float
    outcome: Outcome


def settle(t: Training) -> None:
    """Read the step that is under way, if one is."""
    if t.under_way is not None:
        step, t.under_way = t.under_way, None
        account(t, step)


def account(t: Training, step: UnderWay) -> None:
    """Read a step, and what follows from it: journals, the end of an epoch, validation, a checkpoint."""
    settings, first = t.run_spec.settings.train, t.first
    number, batch, verdict, rows = step.number, step.batch, step.verdict, step.verdict.rows
    logs, norm = step.outcome.read()
    now = time.perf_counter()
    seconds, t.read_s = now - max(step.began, t.read_s), now
    if logs is not None:
        t.strikes = 0
    elif rows:  # none are left where every row of the step was in shards that cannot be read
        _refuse(t, batch, number)
    _log_faults(t, number, batch, verdict)
    if settings.log_ids:
        _log_ids(t, number, batch)
    epoch_ends, ends = (number + 1) % t.per_epoch == 0, number == t.last - 1
    scores = _end_epoch(t, number, batch.epoch) if epoch_ends else None
    selection = None if scores is None else t.learner.objective.selection(scores)
    if selection is not None:
        t.stopping.add(selection)
    line = {
        "step": number,
        "epoch": batch.epoch,
        "loss": None,  # of a refused step
        "learning_rate": step.learning_rate,
        "gradient_norm": _finite_or_none(norm),
        "records": rows,
        "records_per_s": rows / (seconds + step.waited),
        "data_wait_s": step.waited,
        "step_s": seconds,
        "workers": t.ranks.world,
        **{name: _finite_or_none(value) for name, value in (logs or {}).items()},
        **{name: _finite_or_none(value) for name, value in (scores or {}).items()},
        **({"dropped_rows": batch.global_rows - rows} if rows < batch.global_rows else {}),
    }
    if first is not None:
        if first.checkpoint_failures:
            line["checkpoint_failures"] = first.checkpoint_failures
        worth_it = scores is not None or "dropped_rows" in line
        if number % settings.log_every_steps == 0 or ends or worth_it:
            worked = worked_s(t.ranks)
            first.log_metrics({**line, "core_s": (worked - t.clock_s) * t.ranks.world})
            t.clock_s = worked
        # with the next step under way the weights are no longer those of this one
        if t.under_way is None and (first.is_due(number + 1, selection) or ends):
            _save(t, number + 1, selection)
    if scores is not None or ends or (epoch_ends and t.validation is None):
        logged = {name: line.get(name) for name in ("step", "epoch", "loss", *(scores or ("validation_loss",)))}
        t.unreported.append({name: value for name, value in logged.items() if value is not None})
    if verdict.look:
        if t.hooks.preempted():
            checkpoint_now(t, number + 1)
        report_now(t)


def report_now(t: Training) -> None:
    """Report the newest epoch, with those since the last report as `earlier`: a search compares trials epoch by epoch,
    and Ray takes reports less often than short epochs end."""
    if t.unreported:
        *earlier, newest = t.unreported
        t.hooks.report({**newest, "earlier": earlier})
        t.unreported = []


def checkpoint_now(t: Training, done: int) -> None:
    """Write a checkpoint now and wait for it; a failure is reported before the next step, to all ranks."""
    if t.first is not None:
        t.watchdog.step()
        _save(t, done)
        t.first.settle()


def _save(t: Training, done: int, selection: float | None = None) -> None:
    if t.first is not None:
        position = t.per_epoch, t.audit, t.stopping.state
        t.first.save(done, *position, t.learner.objective, t.learner.optimizer, selection)


def _end_epoch(t: Training, number: int, epoch: int) -> dict[str, float] | None:
    """Check that the epoch was whole, and validate where it is due; returns the scores of the validation."""
    _check_epoch(t, epoch)
    t.audit, t.seen, t.seen_from = EpochAudit(), [], 0
    settings = t.run_spec.settings.train
    if t.validation is None:
        return None
    if (epoch + 1) % settings.validate_every_epochs and epoch + 1 != settings.epochs:
        return None
    t.watchdog.step()
    at = t.learner.progress(number, epoch)
    learner = t.learner
    return t.validation.scores(
        learner.objective, lambda arrays, of: learner.views(arrays, of, make=True), at, learner.precision
    )


def _log_faults(t: Training, number: int, batch: Batch, verdict: Verdict) -> None:
    """Note the shards whose rows the ranks go on without."""
    if verdict.faults:
        faults = t.ranks.gather(list(batch.faults))
        if t.first is not None:
            t.first.log_skipped(number, sorted({fault for part in faults for fault in part}))


def _refuse(t: Training, batch: Batch, number: int) -> None:
    """Write down which recordings gave a non-finite loss or gradient; stop after too many in a row."""
    t.strikes += 1
    keys = _global_keys(t, batch)
    if t.first is not None:
        t.names = t.names or names_of_keys(t.run_spec.stream)
        t.first.log_refused(number, [t.names.get(key, f"key {key}") for key in keys])
    if t.strikes >= t.run_spec.settings.train.max_nonfinite:
        raise TrainingError(
            f"the loss or its gradient was not finite {t.strikes} times in a row (last at step {number}). The newest "
            f"checkpoint is whole; lower train.learning_rate or look at the recordings listed in {REFUSED}."
        )


def _check_epoch(t: Training, epoch: int) -> None:
    """Every recording once: CorpusError with the names of what is missing or doubled otherwise."""
    run_spec = t.run_spec
    if t.audit is None or t.audit.holds(run_spec.rows, run_spec.key_sum):
        return
    keys = [key for part in t.ranks.gather(np.concatenate(t.seen).tolist()) for key in part]
    by_group = [[record_key(name) for name in names] for names in names_by_row_group(run_spec.stream)]
    order = epoch_order(run_spec.stream.sizes, run_spec.stream.order, epoch)[
        t.seen_from * run_spec.settings.train.batch_size :
    ]
    differing = difference(
        keys, [by_group[group][row] for group, row in order.tolist()], names_of_keys(run_spec.stream)
    )
    raise CorpusError(
        f"epoch {epoch} saw {t.audit.rows} rows where the manifest has {run_spec.rows} for training: {differing}"
    )


def _global_keys(t: Training, batch: Batch) -> list[int]:
    """The step's record keys over all ranks, in the order of the global batch whatever the number of ranks."""
    shares = t.ranks.gather((batch.arrays["record_key"].tolist(), rows_here(batch)))
    keys: list[int] = []
    starts = [0] * len(shares)
    for part in range(len(batch.parts)):
        for rank, (mine, rows) in enumerate(shares):
            keys += mine[starts[rank] : starts[rank] + rows[part]]
            starts[rank] += rows[part]
    return keys


def rows_here(batch: Batch) -> list[int]:
    return [part.rows - gone for part, gone in zip(batch.parts, batch.dropped, strict=True)]


def _log_ids(t: Training, number: int, batch: Batch) -> None:
    keys = _global_keys(t, batch)
    if t.first is not None:
        ids = [t.names.get(key, f"key {key}") for key in keys]
        t.first.log_ids({"step": number, "epoch": batch.epoch, "step_in_epoch": batch.step, "record_ids": ids})


def worked_s(ranks: Ranks) -> float:
    """Seconds that this rank has worked: the CPU time of its process, or on a GPU the time of the clock.

    The ranks share every batch alike, so `core_s` of a line is the first rank's since the line before, times their
    number: steps, views, validation and checkpoints, but not the wait for data or for other jobs on the machine.
    """
    return time.process_time() if ranks.device.type == "cpu" else time.perf_counter()


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
