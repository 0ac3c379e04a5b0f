"""Runs a sweep with Ray Tune: as many trials at a time as fit, each a whole Ray Train run, and nothing done twice.

Tune starts the trials, tries failed ones again and stops those that fall behind; what is remembered is our own record
(`record.py`), because Tune's experiment state knows neither the run folders nor the checkpoints in them. Killed at any
moment, the same call continues it: `progress.prepare` lists what is left, and each trial continues from its own
checkpoint.

Tune ends no trial that trains: it would kill the process and leave the resources of the ranks reserved. A trial that
falls behind, and every trial when the sweep is asked to stop, is asked for a checkpoint and ends by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType

import ray
import ray.tune

from beatray.errors import SettingsError, TrainingError
from beatray.sweep.asha import EpochAsha, Pace
from beatray.sweep.callback import Notify, Stopper, SweepCallback
from beatray.sweep.evaluation import evaluate_controls
from beatray.sweep.population import exploits, score_at, stopped_after, targets
from beatray.sweep.progress import Prepared, run_spec_of, with_copies
from beatray.sweep.ranking import tables
from beatray.sweep.record import ENDED, RunningSweep, SweepRecord
from beatray.sweep.resources import DRIVER_CPUS, at_a_time, check_trial
from beatray.sweep.space import shown
from beatray.sweep.starts import note_start
from beatray.sweep.tracking import SweepTracking
from beatray.sweep.trial import trial_main
from beatray.train.checkpoint import newest_step
from beatray.train.launch import check
from beatray.train.run_folder import STOP
from beatray.train.run_spec import RunSpec

TUNE_FOLDER = ".tune"
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints a frame even when set to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # beatray handles SIGINT and SIGTERM
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report need not hold the metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in the record
}


def run(prepared: Prepared, notify: Notify, overrides: Sequence[str] = ()) -> SweepRecord:
    """Run what is left of a sweep and return its record. Needs an open Ray session; raises SettingsError before the
    first trial starts if one of them cannot work. `notify` gets a line for every trial that ends; `overrides` are those
    that the sweep was started with, for its report."""
    plan = prepared.plan
    todo = {name: prepared.run_specs[name] for name in prepared.todo}
    available = ray.cluster_resources()
    for name, run_spec in todo.items():
        try:
            check_trial(run_spec.settings, available)
            check(run_spec)
        except (SettingsError, TrainingError) as error:
            raise SettingsError(f"trial {name}: {error}") from error
    at_once = at_a_time([run_spec.settings for run_spec in todo.values()], available, plan.sweep.max_concurrent_trials)
    note_start(plan.folder, overrides)
    with SweepTracking(prepared) as tracking, stop_signals(notify) as stop:
        tracking.settle_ended()
        notify(f"  {len(todo)} of {len(plan.trials)} trials to run, {at_once} at a time")
        if plan.evaluation is None or evaluate_controls(prepared, plan.evaluation, stop):
            callback = SweepCallback(prepared, tracking, stop, notify)
            if plan.sweep.search == "pbt":
                _rounds(prepared, at_once, callback, notify)
            else:
                _tune(prepared, todo, at_once, callback)
            callback.close()
        for name, text in tables(prepared.record.snapshot()).items():
            plan.folder.write(name, text.encode())
        tracking.close()
    return prepared.record.snapshot()


@contextmanager
def stop_signals(notify: Notify) -> Iterator[threading.Event]:
    """The event is set by SIGTERM or SIGINT; a second one ends the process at once. Main thread only."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        notify("  stopping: every trial continues where it is when the same command is run again")
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tune(prepared: Prepared, todo: Mapping[str, RunSpec], at_once: int, callback: SweepCallback) -> None:
    """One Tune experiment over the trials named, in memory only: its own files are removed."""
    plan = prepared.plan
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE_SETTINGS.items()})
    plan.folder.delete(STOP)
    plan.folder.delete_folder(TUNE_FOLDER)  # of a start that was killed
    settings = {name: run_spec.settings for name, run_spec in todo.items()}
    main = ray.tune.with_parameters(
        trial_main, trials=settings, evaluation=plan.evaluation, folder=plan.folder.location
    )
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(main, {"CPU": DRIVER_CPUS}),
        param_space={"trial": ray.tune.grid_search(list(todo))},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=at_once, scheduler=_scheduler(prepared, callback), reuse_actors=False
        ),
        run_config=ray.tune.RunConfig(
            name=uuid.uuid4().hex,  # never the same twice: Tune would go on with its own record
            storage_path=plan.folder.child(TUNE_FOLDER).location,
            failure_config=ray.tune.FailureConfig(max_failures=plan.sweep.retries),
            callbacks=[callback],
            stop=Stopper(callback),
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # it would name failed trials by its own numbers
    try:
        tuner.fit()
    finally:
        plan.folder.delete(STOP)
        plan.folder.delete_folder(TUNE_FOLDER)


def _rounds(prepared: Prepared, at_once: int, callback: SweepCallback, notify: Notify) -> None:
    """Population based training: a Tune experiment for each round, and what exploits what between them."""
    plan, record = prepared.plan, prepared.record
    ends = targets(next(iter(prepared.run_specs.values())), plan.sweep.grace_period)
    for number, end in enumerate(ends):
        last = number == len(ends) - 1
        run_specs = {
            each.name: run_spec_of(plan, each) for each in record.trials if each.status not in (*ENDED, "failed")
        }
        due = {
            name: run_spec if last else stopped_after(run_spec, end)
            for name, run_spec in run_specs.items()
            if last or newest_step(run_spec.run) < end
        }
        if due:
            _tune(prepared, due, at_once, callback.until(None if last else end))
        if last or callback.stopping or not reached(record, run_specs, end):
            return
        _exploit(prepared, number, end, notify)


def reached(record: RunningSweep, run_specs: Mapping[str, RunSpec], end: int) -> bool:
    """Whether every trial that goes on is at the end of the round: not those that have failed, or ended before it."""
    going = [name for name in run_specs if record[name].status not in (*ENDED, "failed")]
    return all(newest_step(run_specs[name].run) >= end for name in going)


def _exploit(prepared: Prepared, number: int, end: int, notify: Notify) -> None:
    """Decide once, write that down, then copy; a start that was killed in between copies again."""
    plan, record = prepared.plan, prepared.record
    if any(each["number"] == number for each in record.rounds):
        return
    alive = {each.name: each for each in record.trials if each.status not in (*ENDED, "failed")}
    scores = {name: score_at(prepared.run_specs[name], plan.sweep.metric, end) for name in alive}
    present = {name: trial.present for name, trial in alive.items()}
    turns = exploits(number, end, scores, present, plan.sweep)
    record.decide(number, end, {name: asdict(turn) for name, turn in turns.items()})
    for name, turn in turns.items():
        record.change(name, exploits=with_copies(plan, record[name]).exploits)
        changes = ", ".join(f"{key} {shown(value)}" for key, value in turn.changes.items())
        notify(f"  {name} continues from {turn.source}, with {changes}")


def _scheduler(prepared: Prepared, callback: SweepCallback) -> EpochAsha | None:
    sweep = prepared.plan.sweep
    if sweep.search != "asha":
        return None
    paces = {
        name: Pace(run_spec.steps // run_spec.settings.train.epochs, run_spec.settings.train.epochs)
        for name, run_spec in prepared.run_specs.items()
    }
    earlier = {trial.name: trial.reports for trial in prepared.record.trials}
    ended = [name for name in earlier if name not in prepared.todo]
    return EpochAsha(
        sweep.metric, sweep.mode, sweep.grace_period, sweep.reduction_factor, paces, earlier, ended, callback.fall
    )
