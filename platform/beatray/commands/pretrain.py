"""`beatray pretrain corpus=PATH run=NAME ...`: train an encoder, or continue a run that was interrupted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beatray.commands.console import progress, say
from beatray.corpus.reader import open_corpus
from beatray.objectives.terms import collapse_warning
from beatray.ray_session import RaySettings, session
from beatray.settings import PretrainSettings, as_dict, build, compose, flat
from beatray.track.journal import Tail, read_lines
from beatray.track.setup import tracking_for
from beatray.track.tracker import Tracker
from beatray.train.job import Job
from beatray.train.launch import RunResult, check, prepare_job, pretrain


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
        with _tracked(job) as tracker, _watched(job):
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
def _tracked(job: Job) -> Iterator[Tracker | None]:
    """An MLflow run beside the training, if tracking is on."""
    settings = job.settings
    manifest = open_corpus(settings.corpus.path).manifest
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=Path(settings.out),
        run_name=settings.run,
        folder=job.run.folder,
        settings=flat(as_dict(settings)),
        tags={"beatray.method": str(settings.objective["name"]), "beatray.manifest": job.manifest_hash},
        dataset={"name": "corpus", "digest": manifest.hash[:32], "source": settings.corpus.path},
        every_s=settings.tracking.flush_seconds,
    )
    if tracking is None:
        yield None
        return
    with Tracker(tracking) as tracker:
        yield tracker
        tracker.artifact(job.run.folder / "settings.yaml")
        if (job.run.folder / "encoder").is_dir():
            tracker.artifact(job.run.folder / "encoder", "encoder")


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
