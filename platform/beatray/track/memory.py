"""tracking.json: what a run folder remembers of its MLflow runs, so that nothing is lost or sent twice.

One record for every server or database the run was tracked to, because a run may be trained with one server and
evaluated with another. A record holds all that is needed to send what is missing without the settings of the run: the
description of the MLflow run, its id once there is one, the figures and files that wait, and how the run ended.
Contract: the file is replaced in one step; no secret is in it; a damaged file counts as absent, and the run is sent
whole to another MLflow run.
"""

from __future__ import annotations

import json
import logging
import shlex
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from beatray.track.secrets import scrubbed

log = logging.getLogger(__name__)

MEMORY = "tracking.json"
RUNNING = "RUNNING"


@dataclass(slots=True)
class TrackedRun:
    """One MLflow run of the folder; `uri` without login."""

    uri: str
    experiment: str
    run_name: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, str] | None = None
    artifact_location: str | None = None
    parent_run_id: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # a tag: finds a run whose creation was not answered
    run_id: str | None = None
    experiment_id: str | None = None
    described: bool = False
    tags_sent: dict[str, str] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)  # names of metrics that do not come from the journal
    waiting: list[dict[str, Any]] = field(default_factory=list)  # figures and files not sent yet
    status: str = RUNNING  # what the run is, as far as this folder knows
    status_sent: str = RUNNING

    def describe(
        self, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Mapping[str, str] | None = None
    ) -> None:
        """Take over a description; what was set before and is not set now stays."""
        self.params = {**self.params, **{key: str(scrubbed(value)) for key, value in params.items()}}
        self.tags = {**self.tags, **scrubbed(dict(tags))}
        self.dataset = self.dataset if dataset is None else scrubbed(dict(dataset))

    def forget_run(self) -> None:
        """Start over: the MLflow run is no more, and another is to be made."""
        self.key, self.run_id, self.experiment_id = uuid.uuid4().hex, None, None
        self.described, self.tags_sent, self.status_sent = False, {}, RUNNING


class Memory:
    """The records of one run folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / MEMORY
        self._warned = False
        self._one_writer = threading.Lock()
        self.records: dict[str, TrackedRun] = {}
        self.newest: str | None = None
        try:
            content = json.loads(self._path.read_text())
            known = {item.name for item in fields(TrackedRun)}
            for uri, record in content["runs"].items():
                self.records[uri] = TrackedRun(**{key: value for key, value in record.items() if key in known})
            self.newest = content["newest"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s): the run is sent to a new MLflow run", self._path, error)

    def record(self, uri: str, experiment: str, run_name: str) -> TrackedRun:
        """The record for a URI (without login), made if there is none."""
        return self.records.setdefault(uri, TrackedRun(uri, experiment, run_name))

    def save(self) -> None:
        """Write all of it; a full disk is reported once and ends nothing."""
        aside = self._path.with_suffix(".writing")
        with self._one_writer:
            content = {"newest": self.newest, "runs": {uri: asdict(record) for uri, record in self.records.items()}}
            try:
                aside.write_text(json.dumps(content, indent=1))
                aside.replace(self._path)
            except OSError as error:
                if not self._warned:
                    log.warning("%s cannot be written (%s); tracking goes on", self._path, error)
                self._warned = True


MOST_COMPARED = 20
"""Runs of a comparison, whose names its address holds."""


def how_to_open(run_folder: Path) -> str | None:
    """How to see a run in the MLflow UI; None if it was not tracked."""
    memory = Memory(run_folder)
    if memory.newest is None:
        return None
    record = memory.records[memory.newest]
    if record.run_id is None:
        return f"not sent yet: {record.uri} did not answer. Later: beatray track sync {run_folder}"
    return _opened(record, f"experiments/{record.experiment_id}/runs/{record.run_id}")


def how_to_compare(run_folders: Sequence[Path]) -> str | None:
    """How to see several runs beside each other there: those that one server or database knows; None for fewer than
    two. (An experiment by itself opens at a page for other work than training.)"""
    memories = [Memory(folder) for folder in run_folders]
    records = [memory.records[memory.newest] for memory in memories if memory.newest is not None]
    known = [record for record in records if record.run_id is not None and record.uri == records[0].uri]
    if len(known) < 2:
        return None
    runs = [record.run_id for record in known[:MOST_COMPARED]]
    experiments = list(dict.fromkeys(record.experiment_id for record in known))
    query = {"runs": json.dumps(runs, separators=(",", ":")), "experiments": json.dumps(experiments)}
    return _opened(known[0], f"compare-runs?{urlencode(query)}")


def _opened(record: TrackedRun, page: str) -> str:
    if record.uri.startswith("http"):
        return f"{record.uri.rstrip('/')}/#/{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(record.uri)}   then http://127.0.0.1:5000/#/{page}"
