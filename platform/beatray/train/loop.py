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
import time
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

import numpy as np
import torch

from beatray.errors import CheckpointError, CorpusError, PeerError, SupersededError, TrainingError
from beatray.train import checkpoint as checkpoints
from beatray.train.account import (
    Hooks,
    Training,
    UnderWay,
    Verdict,
    account,
    checkpoint_now,
    report_now,
    rows_here,
    settle,
    worked_s,
)
from beatray.train.blocks import Arrays
from beatray.train.early_stopping import EarlyStopping
from beatray.train.epoch_audit import EpochAudit, key_sum, names_of_keys
from beatray.train.order import MicroBatch, steps_per_epoch
from beatray.train.rank_zero import RankZero
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec, ViewsOnWorker, check_same_run
from beatray.train.step import Learner, Ready, ahead
from beatray.train.stream import Batch, batches
from beatray.train.validation import Validation
from beatray.train.watchdog import Watchdog

FOR_GOOD = (TrainingError, CorpusError, CheckpointError)
"""Errors that starting again would not fix."""


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
        hooks.begin(done)
        last = run_spec.steps if settings.stop_after_steps is None else min(run_spec.steps, settings.stop_after_steps)
        first = None
        if ranks.is_first:
            first = stack.enter_context(
                RankZero(run_spec, done, hooks.start, state.get("validation_loss"), learner.precision)
            )
        t = Training(
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
            clock_s=worked_s(ranks),
            stopping=EarlyStopping.of(settings.patience, state.get("stopping")),
        )
        source = _feed(run_spec, ranks, divmod(done, per_epoch), last - done)
        feed = stack.enter_context(contextlib.closing(ahead(learner, source, _cut)))
        ended_at = last
        for number in range(done, last):
            if t.stopping.over:
                ended_at = number
                checkpoint_now(t, number)
                break
            fed, waited, fault = _next(feed)
            verdict = _agree(t, number, fed[0] if fed else None, fault)
            if verdict.failed or fed is None:
                settle(t)
                _end_together(t, number, fault)
            elif verdict.stop:
                settle(t)
                checkpoint_now(t, number)
                return False
            else:
                _one_step(t, number, fed, waited, verdict)
                watchdog.step()
        report_now(t)
        if first is not None:
            first.settle()
            _raise(first.fault())
            watchdog.step()
            if last == run_spec.steps or t.stopping.over:
                first.export(learner.objective, ended_at)
    return last == run_spec.steps or t.stopping.over


def _one_step(t: Training, number: int, fed: tuple[Batch, Ready], waited: float, verdict: Verdict) -> None:
    """Hand one global step to the device, and read the one before, or both where something must know of this one."""
    batch, ready = fed
    began = time.perf_counter()
    outcome = t.learner.launch(number, batch.epoch, ready, verdict.parts)
    before = t.under_way
    t.under_way = UnderWay(number, batch, waited, verdict, began, t.learner.learning_rate, outcome)
    t.seen.append(batch.arrays["record_key"])
    if before is not None:
        account(t, before)
    epoch_ends = (number + 1) % t.per_epoch == 0
    if not t.learner.overlaps or epoch_ends or number == t.last - 1 or verdict.look or verdict.save:
        settle(t)


def _resume(run_spec: RunSpec, ranks: Ranks, learner: Learner) -> dict[str, Any]:
    """Load the newest whole checkpoint, the same on all ranks; returns its state, empty at the start of a run."""
    chosen = checkpoints.latest(run_spec.run) if ranks.is_first else None
    name = ranks.from_first(chosen.name if chosen else None)
    if name is None:
        return {}
    found = chosen or checkpoints.load(run_spec.run, name)
    check_same_run(run_spec, found.state)
    checkpoints.restore(found, learner.objective, learner.optimizer)
    learner.precision = found.state.get("precision", learner.precision)
    return found.state


def _feed(run_spec: RunSpec, ranks: Ranks, start: tuple[int, int], n_steps: int) -> Generator[Batch]:
    if n_steps <= 0:
        return
    make_views = ViewsOnWorker.of(run_spec) if run_spec.settings.train.augment_on == "workers" else None
    yield from batches(run_spec.stream, ranks.rank, ranks.world, start, n_steps, make_views)


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
        return None, 0.0, error  # reported to the other ranks first, then raised


def _agree(t: Training, number: int, batch: Batch | None, fault: Exception | None) -> Verdict:
    """One exchange before each step: has every rank its data, is a stop requested, how many rows are there?"""
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
    return Verdict(failed > 0, stop > 0, look > 0, save > 0, faults, parts)


def _end_together(t: Training, number: int, fault: Exception | None) -> NoReturn:
    """Some rank cannot go on: keep what was done, then every rank raises, its own reason or the others'."""
    fault = fault or (t.first.fault() if t.first is not None else None)
    for_good = isinstance(fault, FOR_GOOD) and not isinstance(fault, SupersededError)
    gathered = t.ranks.gather((fault is not None, for_good, str(fault)))
    reasons = [text for there, _, text in gathered if there]
    if not isinstance(fault, (CheckpointError, SupersededError)):
        checkpoint_now(t, number)
    if t.first is not None and any(good for _, good, _ in gathered):
        t.first.note_end("; ".join(reasons))  # here, because Ray ends the other ranks soon after the first one raises
    t.ranks.barrier()
    raise fault or PeerError("; ".join(reasons))


def _raise(fault: Exception | None) -> None:
    if fault is not None:
        raise fault


def _cut(batch: Batch) -> tuple[Arrays, int, list[int]]:
    return batch.arrays, batch.epoch, rows_here(batch)
