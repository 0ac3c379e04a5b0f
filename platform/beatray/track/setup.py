"""From settings to an MLflow run: where it goes, what it is called, which params and tags describe it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from beatray.track.database import database_in
from beatray.track.memory import Memory
from beatray.track.secrets import without_secrets

LOCAL_KEYS = ("out", "run", "cluster.", "tracking.", "corpus.path")
"""Settings of where a run ran, not of what it computed: they would only clutter a comparison of runs."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where to track; `folder` is the run folder with metrics.jsonl. `on_run` gets the id of the MLflow run.

    `shown_folder` is the run folder as users know it, where `folder` is only a scratch copy of it.
    """

    uri: str = field(repr=False)  # may carry a login
    experiment: str
    run_name: str
    folder: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] | None = None  # name, digest, source
    artifact_location: str | None = None
    parent_run_id: str | None = None
    every_s: float = 5.0
    on_run: Callable[[str], object] | None = None
    shown_folder: str | None = None


def default_uri(out: Path) -> tuple[str, str]:
    """The database and artifact folder beside the runs: (tracking URI, artifact location).

    Raises SettingsError for a folder whose name MLflow cannot have in the address of a database.
    """
    database = database_in(out)
    out.mkdir(parents=True, exist_ok=True)
    return database, (out.absolute() / "mlflow-artifacts").as_uri()


def check_default_database(uri: str | None, out: Path) -> None:
    """Raise SettingsError, before anything starts, where `tracking_for` could not put the database beside the runs."""
    if uri == "auto" and not os.environ.get("MLFLOW_TRACKING_URI"):
        database_in(out)


def resume(folder: Path, uri: str) -> Tracking:
    """The tracking of a run folder as `tracking.json` remembers it, for sending what is missing.

    The login comes from MLFLOW_TRACKING_URI, if that names the same server, or from MLflow's own variables.
    """
    record = Memory(folder).records[uri]
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return Tracking(
        uri=named if without_secrets(named) == uri else uri,
        experiment=record.experiment,
        run_name=record.run_name,
        folder=folder,
    )


def tracking_for(
    uri: str | None,
    experiment: str,
    *,
    out: Path,
    run_name: str,
    folder: Path,
    settings: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: Mapping[str, str] | None,
    every_s: float,
    parent_run_id: str | None = None,
    on_run: Callable[[str], object] | None = None,
    shown_folder: str | None = None,
) -> Tracking | None:
    """The tracking of one run; None when it is turned off. `settings` are dotted keys.

    `on_run` gets the id of the MLflow run as soon as the server has given one.
    """
    if uri is None:
        return None
    artifacts = None
    if uri == "auto":
        uri = os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        uri, artifacts = default_uri(out)
    params = {key: _listed(value) for key, value in settings.items() if not key.startswith(LOCAL_KEYS)}
    return Tracking(
        uri=uri,
        experiment=experiment,
        run_name=run_name,
        folder=folder,
        params=params,
        tags={"beatray.code": code_revision(), **tags},
        dataset=dataset,
        artifact_location=artifacts,
        every_s=every_s,
        parent_run_id=parent_run_id,
        on_run=on_run,
        shown_folder=shown_folder,
    )


def _listed(value: Any) -> Any:
    """A tuple as a list is written in YAML and JSON, which is how a user wrote it."""
    return json.dumps(list(value)) if isinstance(value, (tuple, list)) else value


def code_revision() -> str:
    """The git commit of a source tree (marked when changed), or the installed version."""
    here = Path(__file__).parent
    try:
        tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]  # not any repository around site-packages
        subprocess.run(tracked, cwd=here, capture_output=True, check=True)
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
        return commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return version("beatray")
    except PackageNotFoundError:
        return "unknown"
