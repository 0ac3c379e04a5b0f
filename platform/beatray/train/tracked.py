"""The MLflow run that stands beside a training run: what it is called, what describes it, which files it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from beatray.settings import as_dict, flat
from beatray.track.setup import tracking_for
from beatray.track.memory import MEMORY
from beatray.track.tracker import Tracker
from beatray.train.checkpoint import ENCODER_FOLDER
from beatray.train.job import Job
from beatray.train.run_folder import METRICS, SETTINGS, RunFolder


@contextmanager
def tracked(
    job: Job,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    folder: RunFolder | None = None,
) -> Iterator[Tracker | None]:
    """An MLflow run beside the training, or None when tracking is off; a child of `parent_run_id` if that is given.

    `folder` is the run folder as this process sees it; it is opened here if not given.
    """
    settings, folder = job.settings, folder or RunFolder.open(job.run)
    folder.pull(MEMORY, METRICS)
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=Path(settings.out),
        run_name=settings.run,
        folder=folder.scratch,
        settings=flat(as_dict(settings)),
        tags={
            "beatray.method": str(settings.objective["name"]),
            "beatray.manifest": job.manifest_hash,
            **(tags or {}),
        },
        dataset={"name": "corpus", "digest": job.manifest_hash[:32], "source": settings.corpus.path},
        every_s=settings.tracking.flush_seconds,
        parent_run_id=parent_run_id,
    )
    if tracking is None:
        yield None
        return
    try:
        with Tracker(tracking) as tracker:
            yield tracker
            folder.pull(METRICS, SETTINGS)
            tracker.artifact(folder.scratch / SETTINGS)
            if (folder.scratch / ENCODER_FOLDER).is_dir():
                tracker.artifact(folder.scratch / ENCODER_FOLDER, ENCODER_FOLDER)
    finally:
        folder.push(MEMORY)
