"""From settings to an MLflow run: where it goes, what it is called, which params and tags describe it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from beatray.track.tracker import Tracking, default_uri

LOCAL_KEYS = ("out", "run", "cluster.", "tracking.", "corpus.path")
"""Settings that say where a run ran, not what it computed: they would only clutter a comparison of runs."""


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
) -> Tracking | None:
    """The tracking of one run; None when it is turned off. `settings` are dotted keys."""
    if uri is None:
        return None
    artifacts = None
    if uri == "auto":
        uri = os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        uri, artifacts = default_uri(out)
    params = {key: value for key, value in settings.items() if not key.startswith(LOCAL_KEYS)}
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
    )


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
