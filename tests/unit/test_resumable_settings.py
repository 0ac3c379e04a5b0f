"""Which settings a run may go on with that was begun with others, or by an older version."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from beatray.commands.pretrain import settings_from
from beatray.errors import TrainingError
from beatray.train.job import Job, check_same_run, shown_settings


def job_of(*words: str) -> Job:
    settings = settings_from(["corpus=/c", "out=/o", "run=r", "encoder=tiny", *words])
    nothing = cast(Any, None)
    return Job(settings, nothing, nothing, {}, {}, "hash", b"", 0)


def as_stored(job: Job) -> dict[str, Any]:
    return dict(json.loads(json.dumps(shown_settings(job.settings))))


def test_what_older_runs_do_not_name_is_what_they_did() -> None:
    job = job_of()
    older = as_stored(job)
    older["encoder"] = {key: value for key, value in older["encoder"].items() if key != "channels"}
    older["corpus"] = {key: value for key, value in older["corpus"].items() if key != "split"}
    check_same_run(job, {"manifest_hash": "hash", "settings": older})
    with pytest.raises(TrainingError, match=r"encoder.channels: \[32, 32, 64\] before, \[48, 64, 128\] now"):
        check_same_run(job_of("encoder.channels=[48,64,128]"), {"manifest_hash": "hash", "settings": older})


def test_how_long_and_where_may_change_and_what_is_learnt_may_not() -> None:
    state = {"manifest_hash": "hash", "settings": as_stored(job_of())}
    check_same_run(job_of("train.epochs=7", "train.workers=5", "cluster.cpus=1"), state)
    with pytest.raises(TrainingError, match=r"train\.learning_rate"):
        check_same_run(job_of("train.learning_rate=0.5"), state)
