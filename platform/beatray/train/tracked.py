"""The MLflow run that stands beside a training run: what it is called, what describes it, which files it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from beatray.settings import as_dict, flat
from beatray.track.setup import tracking_for
from beatray.track.tracker import Tracker
from beatray.train.job import Job


@contextmanager
def tracked(
    job: Job, parent_run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Tracker | None]:
    """An MLflow run beside the training, or None when tracking is off; a child of `parent_run_id` if that is given."""
    settings = job.settings
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=Path(settings.out),
        run_name=settings.run,
        folder=job.run.folder,
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
    with Tracker(tracking) as tracker:
        yield tracker
        tracker.artifact(job.run.folder / "settings.yaml")
        if (job.run.folder / "encoder").is_dir():
            tracker.artifact(job.run.folder / "encoder", "encoder")
