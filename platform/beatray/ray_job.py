"""Ties a Ray job to its MLflow run: the job's metadata carries the run id, the run a tag with the job's id.

`ray job list` and `JobSubmissionClient.get_job_info` show the metadata of a submitted job, which Ray 2.60 lets a client
set only when it submits. The run exists later, so the job writes the id itself, into the record that Ray keeps of it in
its key-value store. That record's key is not a public interface. Contract: outside a job nothing happens; where Ray
keeps the record otherwise there is a warning, and the work goes on.
"""

from __future__ import annotations

import json
import logging
import os

import ray

log = logging.getLogger(__name__)

RUN_KEY = "mlflow_run_id"
JOB_TAG = "beatray.ray_job"


def submission_id() -> str | None:
    """The id under which this process was submitted, as `ray job list` shows it; None outside a job."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
        return str(config["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return None


def job_tags() -> dict[str, str]:
    """The tag that names the job, for the MLflow run; empty outside a job."""
    job = submission_id()
    return {} if job is None else {JOB_TAG: job}


def note_mlflow_run(run_id: str) -> bool:
    """Write the MLflow run id into the metadata of the job that this process is; True if it stands there.

    Needs an open Ray session. Only warns when that is not possible.
    """
    job = submission_id()
    if job is None or not ray.is_initialized():
        return False
    try:
        from ray._private.ray_constants import KV_NAMESPACE_JOB
        from ray.dashboard.modules.job.common import JobInfoStorageClient
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

        key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job)
        record = json.loads(_internal_kv_get(key, namespace=KV_NAMESPACE_JOB))
        record["metadata"] = {**(record.get("metadata") or {}), RUN_KEY: run_id}
        _internal_kv_put(key, json.dumps(record), overwrite=True, namespace=KV_NAMESPACE_JOB)
    except Exception as error:  # a convenience: whatever Ray has changed must not end the job
        log.warning("the metadata of job %s cannot carry its MLflow run %s: %s", job, run_id, error)
        return False
    return True
