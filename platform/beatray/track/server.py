"""Requests to MLflow about one run, and what its errors mean for a run that must go on whatever it answers.

The only module that knows MLflow. Contract: every call may be repeated after an answer was lost without storing
anything twice: a run is found again by its key, a metric by its time stamp (part of MLflow's primary key), params, tags
and the dataset by their names. A login in an http URI goes to MLflow through the environment variables made for it, so
that the URI which MLflow prints and puts into its errors carries none.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from beatray.track.database import BusyError, opened
from beatray.track.memory import TrackedRun
from beatray.track.secrets import login_of, without_secrets

log = logging.getLogger(__name__)
T = TypeVar("T")

KEY_TAG = "beatray.key"
BATCH = 900  # MLflow accepts at most 1,000 metrics in one call
PARAMS = 90  # and 100 params
CORE = re.compile(r"\[Errno -?\d+\] [\w ]+|[\w ]+ timed out")  # of the long texts of urllib3
BAD_NAME = re.compile(r"[^\w\-. /:]")

Point = tuple[str, float, int, int]
"""(name, value, time in ms, step)"""


class Trouble(Enum):
    """What an error means."""

    OUTAGE = "no answer: the same call may work later"
    REFUSED = "the server answers, but not us: a person has to do something"
    UNFIT = "this content will never be taken"
    GONE = "the run does not exist there"


LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_offered: dict[str, tuple[str, str | None]] = {}
"""What stands in the environment for the sake of a URI's login, and what stood there before it."""


def _offer(login: tuple[str, str] | None) -> None:
    """Let MLflow, which reads the environment, log in with this; without a login, with what the user has set there.

    So the password of one server is not offered to the next.
    """
    for name, (ours, before) in _offered.items():
        if os.environ.get(name) != ours:
            continue  # somebody else has set it since
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    _offered.clear()
    for name, value in zip(LOGIN, login or (), strict=False):
        _offered[name] = value, os.environ.get(name)
        os.environ[name] = value


class Server:
    """One tracking server or database, spoken to about one run."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.clean_uri = without_secrets(uri)
        self._opened: MlflowClient | None = None
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the tracker asks again by itself
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        login = login_of(uri)
        _offer(login)
        if login is not None:
            self.uri = self.clean_uri
        for chatty in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)

    @property
    def _client(self) -> MlflowClient:
        """Opened on first use, where errors are caught: a database may be down from the start."""
        if self._opened is None:
            self._opened = opened(self.uri, lambda: MlflowClient(self.uri))
        return self._opened

    def tags_of(self, run_id: str) -> dict[str, str]:
        """The tags of a run."""
        return dict(self._client.get_run(run_id).data.tags)

    def find_or_create(self, record: TrackedRun) -> tuple[str, str]:
        """The (run id, experiment id) of the record's run, which may exist although its creation was not answered."""
        experiment = self._experiment(record.experiment, record.artifact_location)
        found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{record.key}'", max_results=1)
        if not found:
            tags = {"mlflow.runName": record.run_name, KEY_TAG: record.key, **record.tags}
            if record.parent_run_id:
                tags["mlflow.parentRunId"] = record.parent_run_id
            found = [self._client.create_run(experiment, tags=tags)]
        return str(found[0].info.run_id), str(found[0].info.experiment_id)

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location))
            except MlflowException:  # another run made it in the meantime
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def describe(self, record: TrackedRun) -> None:
        """Params, tags and the dataset."""
        run_id = str(record.run_id)
        params = [Param(key, value[:6000]) for key, value in record.params.items()]
        self._in_batches(params, PARAMS, lambda batch: self._client.log_batch(run_id, params=batch))
        self.tag(run_id, record.tags)
        if record.dataset:
            source = json.dumps({"uri": record.dataset["source"]})
            dataset = Dataset(record.dataset["name"], record.dataset["digest"], "local", source)
            self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "pretraining")])])

    def newest(self, run_id: str, besides: Iterable[str]) -> tuple[int, frozenset[str]]:
        """The last step the run has metrics of, and their names; metrics named in `besides` do not count.

        (-1, empty) for a run without any. Raises for a run that is deleted.
        """
        run = self._client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise RunDeletedError(run_id)
        passed_over = set(besides)
        steps = {m.key: int(m.step) for m in run.data.to_proto().metrics if m.key not in passed_over}
        last = max(steps.values(), default=-1)
        return last, frozenset(name for name, step in steps.items() if step == last)

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        """Store metrics."""
        metrics = [Metric(metric_name(name), value, time_ms, step) for name, value, time_ms, step in points]
        self._in_batches(metrics, BATCH, lambda batch: self._client.log_batch(run_id, metrics=batch))

    def _in_batches(self, items: list[T], size: int, send: Callable[[list[T]], object]) -> None:
        """Send all; an item that will never be taken is found by halving, reported and left out."""
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            try:
                send(batch)
            except Exception as error:
                kind, text = self.explain(error)
                if kind is not Trouble.UNFIT:
                    raise
                if len(batch) > 1:
                    self._in_batches(batch, (len(batch) + 1) // 2, send)
                else:
                    log.warning("%s: left out", text)

    def upload(self, run_id: str, path: Path, below: str | None) -> None:
        """A file, or a folder with all in it."""
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(run_id, str(path), below)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def reopen(self, run_id: str) -> None:
        """Mark a run that had ended as running again."""
        self._client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str) -> None:
        """Set how the run ended: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status)

    def explain(self, error: Exception) -> tuple[Trouble, str]:
        """What an error of any of these calls means, in one line with the remedy and without secrets."""
        kind, text = _explain(error, self.clean_uri)
        return kind, without_secrets(text)


class RunDeletedError(Exception):
    """A person has deleted the run on the server."""


def run_tags(uri: str, run_id: str) -> dict[str, str]:
    """The tags of a run; empty if the server has no such run."""
    server = Server(uri)
    try:
        return server.tags_of(run_id)
    except Exception as error:
        trouble, why = server.explain(error)
        if trouble is Trouble.GONE:
            return {}
        raise ConnectionError(f"{server.clean_uri}: {why}") from error


def metric_name(name: str) -> str:
    """The name as MLflow takes it."""
    return BAD_NAME.sub("_", name)[:250]


def _explain(error: Exception, uri: str) -> tuple[Trouble, str]:
    whole = " ".join(str(error).split())
    message = core[0] if (core := CORE.search(whole)) else whole[:300]
    if isinstance(error, RunDeletedError) or "must be in the 'active' state" in whole:
        what = "the run or its experiment was deleted; restore it there (mlflow runs restore)"
        return Trouble.REFUSED, f"MLflow at {uri}: {what} ({message})"
    if isinstance(error, BusyError):
        return Trouble.OUTAGE, f"{error}: it is tried again"
    if "out-of-date database schema" in whole:
        what = "is of another version of MLflow: keep a copy of it, then run mlflow db upgrade"
        return Trouble.REFUSED, f"the database {uri} {what} {uri}"
    code = str(getattr(error, "error_code", "") or _http_code(error))
    if code in ("CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED", "401"):
        given = any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "TOKEN"))
        what = "refuses the login given" if given else "asks for a login"
        return Trouble.REFUSED, (
            f"MLflow at {uri} {what} (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or "
            "MLFLOW_TRACKING_TOKEN) where this command runs"
        )
    if "Invalid Host header" in whole:
        return Trouble.REFUSED, (
            f"MLflow at {uri} does not know itself by this name (403): start it with --allowed-hosts naming it"
        )
    if code in ("PERMISSION_DENIED", "403"):
        return Trouble.REFUSED, (
            f"MLflow at {uri} forbids this user to write there (403): ask for EDIT permission on the experiment, or "
            f"choose another tracking.experiment ({message})"
        )
    if code == "RESOURCE_DOES_NOT_EXIST":
        return Trouble.GONE, f"MLflow at {uri} does not know the run any more ({message})"
    if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
        return Trouble.UNFIT, f"MLflow at {uri} does not take this ({message})"
    return Trouble.OUTAGE, f"MLflow at {uri} does not answer ({message})"


def _http_code(error: Exception) -> Any:
    """The status of a file transfer, which MLflow does not translate."""
    return getattr(getattr(error, "response", None), "status_code", "")
