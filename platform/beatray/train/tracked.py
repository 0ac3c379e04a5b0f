"""The MLflow run that stands beside a training run: what it is called, what describes it, which files it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from beatray.errors import SupersededError
from beatray.models.encoder_folder import ENCODER_FOLDER
from beatray.models.model_folder import MODEL_FOLDER
from beatray.ray_job import job_tags, note_mlflow_run
from beatray.schema import as_dict, flat
from beatray.track.memory import MEMORY
from beatray.track.setup import tracking_for
from beatray.track.tracker import Tracker
from beatray.train.run_folder import EVALUATION_FOLDER, METRICS, SETTINGS, RunFolder
from beatray.train.run_spec import RunSpec


@contextmanager
def tracked(
    run_spec: RunSpec,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    folder: RunFolder | None = None,
) -> Iterator[Tracker | None]:
    """An MLflow run beside the training, or None when tracking is off; a child of `parent_run_id` if that is given.

    `folder` is the run folder as this process sees it; it is opened here if not given. In a Ray job the job's metadata
    name the MLflow run, and the run the job.
    """
    settings, folder = run_spec.settings, folder or RunFolder.open(run_spec.run)
    folder.pull(MEMORY, METRICS)

    def on_event(run_id: str) -> None:
        folder.push(MEMORY)  # from here on another driver can go on in the same MLflow run
        if parent_run_id is None:  # a job that is a sweep names the sweep's run
            note_mlflow_run(run_id)

    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=Path(settings.out),
        run_name=settings.run,
        folder=folder.scratch,
        shown_folder=run_spec.run.where(),
        settings=flat(as_dict(settings)),
        tags={
            "beatray.method": str(settings.objective["name"]),
            "beatray.manifest": run_spec.manifest_hash,
            **job_tags(),
            **(tags or {}),
        },
        dataset={"name": "corpus", "digest": run_spec.manifest_hash[:32], "source": settings.corpus.path},
        every_s=settings.tracking.flush_seconds,
        parent_run_id=parent_run_id,
        on_run=on_event,
    )
    if tracking is None:
        yield None
        return
    tracker = Tracker(tracking)
    try:
        tracker.__enter__()
        yield tracker
        folder.pull(METRICS, SETTINGS)
        tracker.artifact(folder.scratch / SETTINGS)
        for below in (ENCODER_FOLDER, MODEL_FOLDER, EVALUATION_FOLDER):
            folder.pull_folder(below)
            if (folder.scratch / below).is_dir():
                tracker.artifact(folder.scratch / below, below)
    except SupersededError:
        tracker.finish(None)  # the run goes on under another start
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    else:
        tracker.finish(tracker.status)
    finally:
        folder.push(MEMORY)
