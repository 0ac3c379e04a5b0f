"""`beatray pretrain corpus=PATH run=NAME ...`: train an encoder, or continue a run that was interrupted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from beatray.commands.console import progress, say
from beatray.objectives.terms import collapse_warning
from beatray.ray_session import RaySettings, session
from beatray.settings import PretrainSettings, as_dict, build, compose
from beatray.track.journal import Tail, read_lines
from beatray.train.job import Job
from beatray.train.launch import RunResult, check, prepare_job, pretrain
from beatray.train.tracked import tracked


def settings_from(words: list[str]) -> PretrainSettings:
    """The settings that the words of the command line mean."""
    return build(PretrainSettings, compose("pretrain", words))


def run(settings: PretrainSettings) -> RunResult:
    """Train and tell the user what came of it."""
    job = prepare_job(settings)
    folder = job.run.folder
    say(f"pretrain {job.settings.objective['name']} on {job.rows:,} recordings, {job.steps:,} steps, into {folder}")
    with session(RaySettings(**as_dict(settings.cluster))):
        check(job)  # before tracking: a start that is refused must not touch the run's record
        with tracked(job) as tracker, _watched(job):
            result = pretrain(job)
            if tracker is not None:
                tracker.status = "FINISHED" if result.finished else "KILLED"
    if result.continued_from == job.steps:
        say("  nothing to do: the run is finished")
    elif result.continued_from:
        say(f"  continued from step {result.continued_from}")
    lines = read_lines(folder / "metrics.jsonl")
    if lines:
        last = lines[-1]
        loss = "refused" if last["loss"] is None else f"loss {last['loss']:.4f}"
        say(f"  step {last['step'] + 1:,} of {job.steps:,}, {loss}, {last['records_per_s']:.0f} records/s")
    if result.finished:
        say(f"  encoder: {folder / 'encoder'}")
    else:
        say("  stopped before the end; the same command continues it")
    return result


@contextmanager
def _watched(job: Job) -> Iterator[None]:
    """Progress from the run's own journal, and a warning when the embedding collapses."""
    tail, stop = Tail(job.run.folder / "metrics.jsonl"), threading.Event()
    tail.fresh()

    with progress("pretrain", "steps") as update:

        def follow() -> None:
            warned = False
            while not stop.wait(1.0):
                lines, _ = tail.fresh()
                if lines:
                    last = lines[-1]
                    loss = last["loss"] if last["loss"] is not None else float("nan")
                    update(last["step"] + 1, job.steps, f"loss {loss:.3f}")
                    known = {name: value for name, value in last.items() if value is not None}
                    warning = collapse_warning(known) if last["step"] > job.steps // 10 else None
                    if warning and not warned:
                        say(f"  warning: {warning}")
                        warned = True

        thread = threading.Thread(target=follow, name="beatray-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
