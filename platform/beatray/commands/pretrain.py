"""`beatray pretrain corpus=PATH run=NAME ...`: train an encoder, or continue a run that was interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from beatray.commands.console import progress, say, warn
from beatray.finetune.finish import make_model
from beatray.finetune.prepare import doubts, prepared
from beatray.objectives.objective import Progress
from beatray.objectives.registry import objective_class, objective_settings
from beatray.ray_session import RaySettings, session
from beatray.schema import as_dict
from beatray.settings import PretrainSettings
from beatray.track.journal import Tail, read_lines
from beatray.track.memory import MEMORY, how_to_open
from beatray.train.composed import pretrain_settings
from beatray.train.launch import RunResult, check, pretrain
from beatray.train.run_folder import METRICS, SKIPPED, RunFolder
from beatray.train.run_spec import RunSpec
from beatray.train.tracked import tracked
from beatray.train.worker_news import WorkerNews


def settings_from(overrides: list[str]) -> PretrainSettings:
    """The settings that the overrides of the command line mean."""
    return pretrain_settings(overrides)


def run(settings: PretrainSettings, command: str = "pretrain") -> RunResult:
    """Train and print a summary; an objective that learns from labels leaves a model, too."""
    run_spec, found = prepared(settings)
    location = run_spec.run.location
    what = f"{run_spec.rows:,} recordings, {run_spec.steps:,} steps"
    say(f"{command} {run_spec.settings.objective['name']} on {what}, into {location}")
    for doubt in doubts(found) if found is not None else ():
        say(f"  warning: {doubt}")
    with session(RaySettings(**as_dict(settings.cluster))):
        check(run_spec)  # before tracking: a start that is refused must not touch the run's record
        folder = RunFolder.open(run_spec.run)
        with stop_on_signals() as stop, tracked(run_spec, folder=folder) as tracker:
            with watched(run_spec, folder, command):
                result = pretrain(run_spec, stop=stop)
            scores = make_model(run_spec, found) if result.finished else {}
            if tracker is not None and scores:
                tracker.metrics({f"model/{name}": value for name, value in scores.items()})
            if tracker is not None:
                tracker.status = result.mlflow_status
    _print_result(run_spec, result, folder)
    return result


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """While inside, SIGTERM (preemption, `ray job stop`) and Ctrl-C set the event instead of ending the process.

    A second Ctrl-C ends it. Outside the main thread, where Python allows no handlers, the event is never set.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        say("  asked to stop: writing a checkpoint")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_result(run_spec: RunSpec, result: RunResult, folder: RunFolder) -> None:
    if result.finished and result.continued_from == result.steps:
        say("  nothing to do: the run is finished")
    elif result.continued_from:
        say(f"  continued from step {result.continued_from}")
    folder.pull(METRICS, SKIPPED)
    lines = read_lines(folder.scratch / METRICS)
    if lines:
        last = lines[-1]
        loss = "refused" if last["loss"] is None else f"loss {last['loss']:.4f}"
        say(f"  step {last['step'] + 1:,} of {run_spec.steps:,}, {loss}, {last['records_per_s']:.0f} records/s")
        dropped = sum(line.get("dropped_rows", 0) for line in lines)  # such steps are always in the journal
        if dropped:
            say(f"  warning: {dropped:,} rows lay in shards that cannot be read; {SKIPPED} names them")
        failed = lines[-1].get("checkpoint_failures", 0)
        if failed:
            say(f"  warning: {failed} checkpoints could not be written")
    if result.finished and result.steps < run_spec.steps:
        say(f"  ended at step {result.steps:,}: no better validation in {run_spec.settings.train.patience} in a row")
    folder.pull(MEMORY)
    opened = how_to_open(folder.scratch)
    if opened is not None:
        say(f"  MLflow: {opened}")
    if result.finished:
        say(f"  encoder: {result.folder}/encoder")
    elif result.as_asked:
        say(f"  ended at step {result.steps:,}, as train.stop_after_steps asks; without it the same command continues")
    else:
        say("  stopped before the end; the same command continues it")


@contextmanager
def watched(run_spec: RunSpec, folder: RunFolder, command: str) -> Iterator[None]:
    """Progress from the run's own journal, a warning when the embedding collapses, and what becomes of the workers."""
    tail, stop, news = Tail(folder.scratch / METRICS), threading.Event(), WorkerNews(run_spec.run)
    tail.fresh()

    warned: set[str] = set()

    with progress(command, "steps") as update:

        def look() -> None:
            try:
                for event in news.fresh():
                    warn(f"  {command}: {event}")
                folder.pull(METRICS)
            except OSError:
                return  # a store that does not answer for a moment
            lines, _ = tail.fresh()
            if lines:
                last = lines[-1]
                loss = last["loss"] if last["loss"] is not None else float("nan")
                update(last["step"] + 1, run_spec.steps, f"loss {loss:.3f}")
                for warning in new_warnings(last, run_spec.settings.objective, run_spec.steps, warned):
                    say(f"  warning: {warning}")

        def follow() -> None:
            while not stop.wait(1.0 if run_spec.run.is_local else 5.0):
                look()

        thread = threading.Thread(target=follow, name="beatray-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            look()  # a short run may have ended between two looks


def new_warnings(line: Mapping[str, Any], objective: Mapping[str, Any], steps: int, warned: set[str]) -> Iterator[str]:
    """The method's warnings on a line of metrics that were not given before; `warned` holds the keys of those given."""
    known = {name: value for name, value in line.items() if isinstance(value, (int, float))}
    settings = objective_settings(objective["name"], {key: value for key, value in objective.items() if key != "name"})
    at = Progress(int(line["step"]), steps)
    for key, warning in objective_class(objective["name"]).warnings(settings, known, at).items():
        if key not in warned:
            warned.add(key)
            yield warning
