"""Without the internal parts of Ray that are used, runs go on: the part is made absent, and what is left works."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import ray.data

from beatray import ray_internals


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(ray_internals, "_warned", set())
    caplog.set_level(logging.WARNING, ray_internals.__name__)
    return caplog


@pytest.mark.parametrize("settings", [None, "", "{", "[]", "{}", '{"metadata": null}'])
def test_no_job_is_known_where_its_settings_are_not_there(
    settings: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert ray_internals.submission_id() == "raysubmit_1"
    if settings is None:
        monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    else:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", settings)
    assert ray_internals.submission_id() is None


@pytest.mark.parametrize(
    "absent", ["ray._private.ray_constants", "ray.dashboard.modules.job.common", "ray.experimental.internal_kv"]
)
def test_a_job_without_its_record_goes_on_with_a_warning(
    absent: str, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    assert not ray_internals.add_job_metadata("raysubmit_1", {"mlflow_run_id": "0123"})
    (message,) = warnings.messages
    assert "raysubmit_1" in message and "0123" in message and ray.__version__ in message


@pytest.mark.parametrize("absent", ["ray._private.state", "ray.core.generated.gcs_pb2"])
def test_without_the_makers_of_placement_groups_none_is_lost_and_one_warning_said(
    absent: str, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray._private.state.state", SimpleNamespace(_connect_and_get_accessor=_one_group))
    monkeypatch.setitem(sys.modules, absent, None)
    assert ray_internals.groups_of_dead_actors("01000000") == []
    assert ray_internals.groups_of_dead_actors("01000000") == []
    (message,) = warnings.messages
    assert "before the sweep ends" in message


def _one_group() -> SimpleNamespace:
    return SimpleNamespace(get_placement_group_table=lambda: [b""])


def test_an_execution_rests_while_its_blocks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("beatray.ray_internals.time.sleep", rests.append)
    context = ray.data.DataContext()
    assert ray_internals.rest_while_ahead(context)
    (kind,) = context.custom_execution_callback_classes
    callback = kind()
    for executor in (
        SimpleNamespace(_consumer_idling=lambda: True),
        SimpleNamespace(_consumer_idling=lambda: False),
        SimpleNamespace(),
    ):
        callback.on_execution_step(executor)
    assert rests == [ray_internals.REST_S]


def test_an_execution_without_callbacks_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ray_internals.rest_while_ahead(SimpleNamespace())
    context = ray.data.DataContext()
    monkeypatch.setitem(sys.modules, "ray.data._internal.execution.execution_callback", None)
    assert not ray_internals.rest_while_ahead(context) and context.custom_execution_callback_classes == []
