"""Ties a Ray job to its MLflow run: the job's metadata carries the run id, the run a tag with the job's id.

`ray job list` and `JobSubmissionClient.get_job_info` show the metadata of a submitted job. Contract: outside a job
nothing happens; where the metadata cannot be written there is a warning, and the work goes on.
"""

from __future__ import annotations

import ray

from beatray.ray_internals import add_job_metadata, submission_id

RUN_KEY = "mlflow_run_id"
JOB_TAG = "beatray.ray_job"


def job_tags() -> dict[str, str]:
    """The tag that names the job, for the MLflow run; empty outside a job."""
    job = submission_id()
    return {} if job is None else {JOB_TAG: job}


def note_mlflow_run(run_id: str) -> bool:
    """Write the MLflow run id into the metadata of the job that this process is; True if it stands there.

    Needs an open Ray session. Only warns when that is not possible.
    """
    job = submission_id()
    return job is not None and ray.is_initialized() and add_job_metadata(job, {RUN_KEY: run_id})
