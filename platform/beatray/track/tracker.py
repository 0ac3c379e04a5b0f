"""Sends a run to MLflow from its journal, in the background, through outages of the server.

The run folder's metrics.jsonl is the truth; this thread reads it and sends what MLflow does not have yet, in batches.
Contract: training never waits for the server; every metric arrives once the server answers; `tracking.json` remembers
the MLflow run and the last step sent, so a continued run goes on in the same MLflow run and sends nothing twice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from beatray.track.journal import Tail

log = logging.getLogger(__name__)
R = TypeVar("R")

MEMORY = "tracking.json"
BATCH = 900  # MLflow accepts at most 1,000 metrics in one call
PARAMS = 90  # and 100 params
OUTAGE = (MlflowException, OSError, ConnectionError)


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where to track; `folder` is the run folder with metrics.jsonl."""

    uri: str
    experiment: str
    run_name: str
    folder: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] | None = None  # name, digest, source
    artifact_location: str | None = None
    parent_run_id: str | None = None
    every_s: float = 5.0


def default_uri(out: Path) -> tuple[str, str]:
    """The database and artifact folder beside the runs: (tracking URI, artifact location)."""
    out.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{out.absolute() / 'mlflow.db'}", (out.absolute() / "mlflow-artifacts").as_uri()


class Tracker:
    """One MLflow run fed from one run folder; use as a context manager."""

    def __init__(self, tracking: Tracking) -> None:
        self._to = tracking
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # this thread retries by itself
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        for chatty in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.status = "FINISHED"  # what a run is called that ends without an error
        self._opened: MlflowClient | None = None
        self._memory = tracking.folder / MEMORY
        self._state: dict[str, Any] = {"uri": tracking.uri, "run_id": None, "described": False, "next_step": 0}
        if self._memory.exists():
            before = json.loads(self._memory.read_text())
            if before.get("uri") == tracking.uri:
                self._state |= before
        self._tail = Tail(tracking.folder / "metrics.jsonl")
        self._unsent: list[dict[str, Any]] = []  # lines read from the journal, not yet accepted by the server
        self._later: list[Callable[[], object]] = []  # figures and files that an outage kept back
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._one_at_a_time = threading.RLock()  # or two threads would make two MLflow runs
        self._warned = False

    @property
    def _client(self) -> MlflowClient:
        """Opened on first use, inside the net that catches outages: a database may be down from the start."""
        if self._opened is None:
            self._opened = MlflowClient(self._to.uri)
        return self._opened

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once the server has given one."""
        known = self._state["run_id"]
        return None if known is None else str(known)

    def __enter__(self) -> Tracker:
        self._to.folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._follow, name="beatray-track", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.finish(self.status if error is None else "FAILED")

    def finish(self, status: str, patience_s: float = 30.0) -> bool:
        """Send what is left and end the MLflow run; False if the server did not answer within `patience_s`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        deadline = time.monotonic() + patience_s
        while True:
            if self._attempt(self._send_all) and self._send_later() and self._attempt(lambda: self._end(status)):
                return True
            if time.monotonic() > deadline:
                log.warning("MLflow at %s did not answer; metrics.jsonl keeps what is missing", self._to.uri)
                return False
            time.sleep(1.0)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log figures of an evaluation."""
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in values.items()]
        for start in range(0, len(batch), BATCH):
            self._now_or_later(partial(self._log_metrics, batch[start : start + BATCH]))

    def artifact(self, path: Path, below: str | None = None) -> None:
        """Upload a file or a folder; after an outage, at the end."""
        self._now_or_later(partial(self._log_artifact, path, below))

    def _log_metrics(self, batch: list[Metric]) -> bool:
        self._client.log_batch(self._run(), metrics=batch)
        return True

    def _log_artifact(self, path: Path, below: str | None) -> bool:
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(self._run(), str(path), below)
        return True

    def _now_or_later(self, action: Callable[[], object]) -> None:
        if self._later or not self._attempt(action):
            self._later.append(action)

    def _send_later(self) -> bool:
        while self._later:
            if not self._attempt(self._later[0]):
                return False
            self._later.pop(0)
        return True

    def _follow(self) -> None:
        while not self._stop.wait(self._to.every_s):
            try:
                self._attempt(self._send_all)
            except Exception:  # a surprise in tracking must neither end the training nor end tracking unheard
                log.exception("tracking failed; trying again")

    def _attempt(self, action: Callable[[], R]) -> R | None:
        """Run an action against the server; None, and one warning an outage, if it does not answer."""
        try:
            with self._one_at_a_time:
                result = action()
        except OUTAGE as error:
            if not self._warned:
                log.warning("MLflow at %s does not answer (%s); going on, sending later", self._to.uri, error)
            self._warned = True
            return None
        self._warned = False
        return result

    def _run(self) -> str:
        """The MLflow run id, made and described on first use."""
        if self._state["run_id"] is None:
            tags = {"mlflow.runName": self._to.run_name, **self._to.tags}
            if self._to.parent_run_id:
                tags["mlflow.parentRunId"] = self._to.parent_run_id
            created = self._client.create_run(self._experiment(), tags=tags)
            self._remember(run_id=created.info.run_id, experiment_id=created.info.experiment_id)
        run_id = str(self._state["run_id"])
        if not self._state["described"]:
            params = [Param(key, str(value)[:6000]) for key, value in self._to.params.items()]
            for start in range(0, len(params), PARAMS):
                self._client.log_batch(run_id, params=params[start : start + PARAMS])
            if self._to.dataset:
                self._log_dataset(run_id, self._to.dataset)
            self._remember(described=True)
        return run_id

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._to.experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(self._to.experiment, self._to.artifact_location))
        except MlflowException:  # another run made it in the meantime
            found = self._client.get_experiment_by_name(self._to.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _log_dataset(self, run_id: str, about: Mapping[str, str]) -> None:
        dataset = Dataset(about["name"], about["digest"], "local", json.dumps({"uri": about["source"]}))
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "pretraining")])])

    def _send_all(self) -> bool:
        """Send the journal's lines from the first unsent step on."""
        run_id = self._run()
        fresh, from_start = self._tail.fresh()
        if from_start:
            self._unsent = []  # the journal was cut back and is read anew
        self._unsent += [line for line in fresh if line["step"] >= self._state["next_step"]]
        now = int(time.time() * 1000)
        while self._unsent:
            part: list[dict[str, Any]] = []
            size = 0
            for line in self._unsent:
                if part and size + len(line) > BATCH:
                    break
                part.append(line)
                size += len(line)
            self._client.log_batch(run_id, metrics=[m for line in part for m in _metrics_of(line, now)])
            self._remember(next_step=part[-1]["step"] + 1)
            del self._unsent[: len(part)]
        return True

    def _end(self, status: str) -> bool:
        for key, value in self._to.tags.items():
            self._client.set_tag(self._run(), key, value)
        self._client.set_terminated(self._run(), status)
        return True

    def _remember(self, **changes: Any) -> None:
        self._state |= changes
        aside = self._memory.with_suffix(".writing")
        aside.write_text(json.dumps(self._state))
        aside.replace(self._memory)


def _metrics_of(line: Mapping[str, Any], now: int) -> list[Metric]:
    step = int(line["step"])
    return [
        Metric(name, float(value), now, step)
        for name, value in line.items()
        if name != "step" and isinstance(value, (int, float))
    ]


def how_to_open(run_folder: Path) -> str | None:
    """How to see a run in the MLflow UI; None if it was not tracked."""
    memory = run_folder / MEMORY
    if not memory.exists():
        return None
    state = json.loads(memory.read_text())
    page = f"/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
    if state["uri"].startswith("http"):
        return f"{state['uri'].rstrip('/')}{page}"
    return f"mlflow ui --backend-store-uri {state['uri']}   then http://127.0.0.1:5000{page}"
