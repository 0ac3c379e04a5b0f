"""The training loop: resume, agree, step, log, validate, checkpoint. It knows no method by name.

One call trains one rank; Ray Train (`launch.py`) or a test starts as many as there are. Contract: a step's data, views
and learning rate are functions of its number and the settings, so a resumed run continues exactly; the loss is that of
the global batch; a last short batch of an epoch weighs by its rows, so that every recording counts the same. Before a
step all ranks agree that each of them has its data; before the optimiser, that the loss is finite. What one rank
cannot do, none does: a run that must end does so on all ranks together, with a checkpoint of the last whole step.

On a GPU a step is read when the next one has been handed over (step.py); before anything that must know the present
one - the end of an epoch, a checkpoint, an end - it is read at once, by all ranks alike.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.errors import CheckpointError, CorpusError, PeerError, SupersededError, TrainingError
from beatray.train import checkpoint as checkpoints
from beatray.train.epoch_audit import EpochAudit, difference, key_sum, names_by_place, names_of_keys
from beatray.train.order import MicroBatch, epoch_order, steps_per_epoch
from beatray.train.prefetcher import Prefetcher
from beatray.train.rank_zero import RankZero
from beatray.train.ranks import Ranks
from beatray.train.run_folder import REFUSED
from beatray.train.run_spec import RunSpec, ViewsOnWorker, check_same_run
from beatray.train.step import Learner, Outcome, Ready
from beatray.train.stream import Batch, batches
from beatray.train.validation import Validation
from beatray.train.watchdog import Watchdog

FOR_GOOD = (TrainingError, CorpusError, CheckpointError)
"""Errors that starting again would not mend."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What surrounds a rank; the defaults are those of a rank alone."""

    start: str | None = None  # the id of this start of the run
    report: Callable[[dict[str, Any]], None] = lambda metrics: None  # called by all ranks at the same steps
    preempted: Callable[[], bool] = lambda: False  # likewise: is a node about to be taken away?


@dataclass(slots=True)
class _Training:
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
    under_way: _UnderWay | None = None  # the step that the device works at, not read yet
    read_s: float = 0.0  # when the newest step was read
    strikes: int = 0
    untold: dict[str, Any] | None = None  # the newest report that Ray has not got yet


@dataclass(frozen=True, slots=True)
class _Verdict:
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
class _UnderWay:
    """A step that was handed to the device."""

    number: int
    batch: Batch
    waited: float
    verdict: _Verdict
    began: float
    learning_rate: float
    outcome: Outcome


def train(run_spec: RunSpec, ranks: Ranks, hooks: Hooks | None = None) -> bool:
    """Train this rank to the end of the run, from its newest checkpoint if there is one; False if stopped before."""
    hooks, settings = hooks or Hooks(), run_spec.settings.train
    torch.set_num_threads(settings.threads_per_worker)
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(run_spec.run, hooks.start, ranks.rank, settings.stall_minutes))
        learner = Learner(run_spec, ranks)
        state = _resume(run_spec, ranks, learner)
        done, per_epoch = int(state.get("global_step", 0)), steps_per_epoch(run_spec.rows, settings.batch_size)
        counted = state.get("account", [0, 0, 0])
        last = run_spec.steps if settings.stop_after_steps is None else min(run_spec.steps, settings.stop_after_steps)
        first = None
        if ranks.is_first:
            first = stack.enter_context(RankZero(run_spec, done, hooks.start, state.get("validation_loss")))
        t = _Training(
            run_spec=run_spec,
            ranks=ranks,
            hooks=hooks,
            learner=learner,
            watchdog=watchdog,
            validation=Validation(run_spec, ranks) if done < last and run_spec.validation.groups else None,
            first=first,
            per_epoch=per_epoch,
            last=last,
            audit=None if counted is None else EpochAudit(*counted),
            names=names_of_keys(run_spec.stream) if settings.log_ids and ranks.is_first else {},
            seen=[],
            seen_from=done % per_epoch,
            clock_s=_worked(ranks),
        )
        source = _feed(run_spec, ranks, divmod(done, per_epoch), last - done)
        feed = stack.enter_context(contextlib.closing(_ready(source, learner)))
        for number in range(done, last):
            fed, waited, fault = _next(feed)
            verdict = _agree(t, number, fed[0] if fed else None, fault)
            if verdict.failed or fed is None:
                _settle(t)
                _end_together(t, number, fault)
            elif verdict.stop:
                _settle(t)
                _checkpoint(t, number)
                return False
            else:
                _one_step(t, number, fed, waited, verdict)
                watchdog.step()
        if t.untold is not None:
            hooks.report(t.untold)
        if first is not None:
            first.settle()
            _raise(first.fault())
            watchdog.step()
            if last == run_spec.steps:
                first.export(learner.objective)
    return last == run_spec.steps


def _one_step(t: _Training, number: int, fed: tuple[Batch, Ready], waited: float, verdict: _Verdict) -> None:
    """Hand one global step to the device, and read the one before, or both where something must know of this one."""
    batch, ready = fed
    began = time.perf_counter()
    outcome = t.learner.launch(number, batch.epoch, ready, verdict.parts)
    before = t.under_way
    t.under_way = _UnderWay(number, batch, waited, verdict, began, t.learner.learning_rate, outcome)
    t.seen.append(batch.arrays["record_key"])
    if before is not None:
        _account(t, before)
    epoch_ends = (number + 1) % t.per_epoch == 0
    if not t.learner.overlaps or epoch_ends or number == t.last - 1 or verdict.look or verdict.save:
        _settle(t)


def _settle(t: _Training) -> None:
    """Read the step that is under way, if one is."""
    if t.under_way is not None:
        step, t.under_way = t.under_way, None
        _account(t, step)


def _account(t: _Training, step: _UnderWay) -> None:
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
    validation_loss = _end_epoch(t, number, batch.epoch) if epoch_ends else None
    line = {
        "step": number,
        "epoch": batch.epoch,
        "loss": None,  # of a refused step
        "learning_rate": step.learning_rate,
        "gradient_norm": _finite_or_none(norm),
        "records_per_s": rows / (seconds + step.waited),
        "data_wait_s": step.waited,
        "step_s": seconds,
        "workers": t.ranks.world,
        **{name: _finite_or_none(value) for name, value in (logs or {}).items()},
        **({"validation_loss": _finite_or_none(validation_loss)} if validation_loss is not None else {}),
        **({"dropped_rows": batch.global_rows - rows} if rows < batch.global_rows else {}),
    }
    if first is not None:
        if first.checkpoint_failures:
            line["checkpoint_failures"] = first.checkpoint_failures
        worth_it = validation_loss is not None or "dropped_rows" in line
        if number % settings.log_every_steps == 0 or ends or worth_it:
            worked = _worked(t.ranks)
            first.log_metrics({**line, "core_s": (worked - t.clock_s) * t.ranks.world})
            t.clock_s = worked
        # with the next step under way the weights are no longer those of this one
        if t.under_way is None and (first.is_due(number + 1, validation_loss) or ends):
            first.save(number + 1, t.per_epoch, t.audit, t.learner.objective, t.learner.optimizer, validation_loss)
    if validation_loss is not None or ends or (epoch_ends and t.validation is None):
        told = {name: line.get(name) for name in ("step", "epoch", "loss", "validation_loss")}
        t.untold = {**(t.untold or {}), **{name: value for name, value in told.items() if value is not None}}
    if verdict.look:
        if t.hooks.preempted():
            _checkpoint(t, number + 1)
        if t.untold is not None:
            t.hooks.report(t.untold)
            t.untold = None


def _resume(run_spec: RunSpec, ranks: Ranks, learner: Learner) -> dict[str, Any]:
    """Load the newest whole checkpoint, the same on all ranks; returns its state, empty at the start of a run."""
    chosen = checkpoints.latest(run_spec.run) if ranks.is_first else None
    name = ranks.from_first(chosen.name if chosen else None)
    if name is None:
        return {}
    found = chosen or checkpoints.load(run_spec.run, name)
    check_same_run(run_spec, found.state)
    checkpoints.restore(found, learner.objective, learner.optimizer)
    return found.state


def _feed(run_spec: RunSpec, ranks: Ranks, start: tuple[int, int], n_steps: int) -> Generator[Batch]:
    if n_steps <= 0:
        return
    make_views = ViewsOnWorker.of(run_spec) if run_spec.settings.train.augment_on == "workers" else None
    yield from batches(run_spec.stream, ranks.rank, ranks.world, start, n_steps, make_views)


def _ready(source: Generator[Batch], learner: Learner) -> Generator[tuple[Batch, Ready]]:
    """Each batch with its views; they are made a step ahead, in a thread, where steps overlap."""

    def made() -> Generator[tuple[Batch, Ready]]:
        with contextlib.closing(source):
            for batch in source:
                yield batch, learner.ready(batch.arrays, batch.epoch, _rows_here(batch))

    if not learner.overlaps:
        yield from made()
        return
    with contextlib.closing(Prefetcher(made(), 1, "views")) as ahead:
        yield from ahead


def _next(
    feed: Iterator[tuple[Batch, Ready]],
) -> tuple[tuple[Batch, Ready] | None, float, Exception | None]:
    """The next batch, the seconds waited for it, and why there is none."""
    began = time.perf_counter()
    try:
        return next(feed), time.perf_counter() - began, None
    except StopIteration:
        return None, 0.0, CorpusError("the stream ended before the run")
    except Exception as error:
        return None, 0.0, error  # told to the other ranks first, then raised


def _agree(t: _Training, number: int, batch: Batch | None, fault: Exception | None) -> _Verdict:
    """One exchange before each step: has every rank its data, does anybody want to stop, how many rows are there?"""
    first, n_parts = t.first, t.run_spec.settings.train.gradient_accumulation_steps
    keys = np.empty(0, np.int64) if batch is None else batch.arrays["record_key"]
    mine = [
        int(fault is not None or (first is not None and first.fault() is not None)),
        int(first is not None and first.wants_stop),
        int(first is not None and first.wants_look()),
        int(t.learner.overlaps and first is not None and first.is_due(number + 1, None)),
        0 if batch is None else len(batch.faults),
        len(keys),
        key_sum(keys),
        *([0] * n_parts if batch is None else batch.dropped),
    ]
    failed, stop, look, save, faults, rows, summed, *dropped = t.ranks.sums(mine)
    parts: tuple[MicroBatch, ...] = ()
    if batch is not None:
        parts = tuple(
            MicroBatch(part.rows - here, part.global_rows - gone)
            for part, here, gone in zip(batch.parts, batch.dropped, dropped, strict=True)
        )
    if t.audit is not None and not failed and not stop:
        t.audit.add(rows, summed, sum(dropped))
    return _Verdict(failed > 0, stop > 0, look > 0, save > 0, faults, parts)


def _end_together(t: _Training, number: int, fault: Exception | None) -> NoReturn:
    """Some rank cannot go on: keep what was done, then every rank raises, its own reason or the others'."""
    fault = fault or (t.first.fault() if t.first is not None else None)
    for_good = isinstance(fault, FOR_GOOD) and not isinstance(fault, SupersededError)
    told = t.ranks.gather((fault is not None, for_good, str(fault)))
    reasons = [text for there, _, text in told if there]
    if not isinstance(fault, (CheckpointError, SupersededError)):
        _checkpoint(t, number)
    if t.first is not None and any(good for _, good, _ in told):
        t.first.note_end("; ".join(reasons))  # here, because Ray ends the other ranks soon after the first one raises
    t.ranks.barrier()
    raise fault or PeerError("; ".join(reasons))


def _raise(fault: Exception | None) -> None:
    if fault is not None:
        raise fault


def _checkpoint(t: _Training, done: int) -> None:
    """Write a checkpoint now and wait for it; a failure is told before the next step, to all ranks."""
    if t.first is not None:
        t.watchdog.step()
        t.first.save(done, t.per_epoch, t.audit, t.learner.objective, t.learner.optimizer)
        t.first.settle()


def _end_epoch(t: _Training, number: int, epoch: int) -> float | None:
    """Prove that the epoch was whole, and validate where it is time to; returns the validation loss."""
    _check_epoch(t, epoch)
    t.audit, t.seen, t.seen_from = EpochAudit(), [], 0
    settings = t.run_spec.settings.train
    if t.validation is None:
        return None
    if (epoch + 1) % settings.validate_every_epochs and epoch + 1 != settings.epochs:
        return None
    t.watchdog.step()
    at = t.learner.progress(number, epoch)
    return t.validation.loss(t.learner.objective, lambda arrays, of: t.learner.views(arrays, of, make=True), at)


def _log_faults(t: _Training, number: int, batch: Batch, verdict: _Verdict) -> None:
    """Note the shards whose rows the ranks go on without."""
    if verdict.faults:
        told = t.ranks.gather(list(batch.faults))
        if t.first is not None:
            t.first.log_skipped(number, sorted({fault for part in told for fault in part}))


def _refuse(t: _Training, batch: Batch, number: int) -> None:
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


def _check_epoch(t: _Training, epoch: int) -> None:
    """Every recording once: CorpusError with the names of what is missing or doubled otherwise."""
    run_spec = t.run_spec
    if t.audit is None or t.audit.holds(run_spec.rows, run_spec.key_sum):
        return
    keys = [key for part in t.ranks.gather(np.concatenate(t.seen).tolist()) for key in part]
    places = [[record_key(name) for name in names] for names in names_by_place(run_spec.stream)]
    order = epoch_order(run_spec.stream.sizes, run_spec.stream.order, epoch)[
        t.seen_from * run_spec.settings.train.batch_size :
    ]
    told = difference(keys, [places[group][row] for group, row in order.tolist()], names_of_keys(run_spec.stream))
    raise CorpusError(
        f"epoch {epoch} saw {t.audit.rows} rows where the manifest has {run_spec.rows} for training: {told}"
    )


def _global_keys(t: _Training, batch: Batch) -> list[int]:
    """The step's record keys over all ranks, in the order of the global batch whatever the number of ranks."""
    shares = t.ranks.gather((batch.arrays["record_key"].tolist(), _rows_here(batch)))
    keys: list[int] = []
    starts = [0] * len(shares)
    for part in range(len(batch.parts)):
        for rank, (mine, rows) in enumerate(shares):
            keys += mine[starts[rank] : starts[rank] + rows[part]]
            starts[rank] += rows[part]
    return keys


def _rows_here(batch: Batch) -> list[int]:
    return [part.rows - gone for part, gone in zip(batch.parts, batch.dropped, strict=True)]


def _log_ids(t: _Training, number: int, batch: Batch) -> None:
    keys = _global_keys(t, batch)
    if t.first is not None:
        ids = [t.names.get(key, f"key {key}") for key in keys]
        t.first.log_ids({"step": number, "epoch": batch.epoch, "step_in_epoch": batch.step, "record_ids": ids})


def _worked(ranks: Ranks) -> float:
    """Seconds that this rank has worked: the CPU time of its process, or on a GPU the time of the clock.

    The ranks share every batch alike, so `core_s` of a line is the first rank's since the line before, times their
    number: steps, views, validation and checkpoints, but not the wait for data or for other jobs on the machine.
    """
    return time.process_time() if ranks.device.type == "cpu" else time.perf_counter()


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
