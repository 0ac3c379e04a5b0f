"""Joins a running Ray cluster, or starts a small one on this machine.

Contract: with an address (argument or RAY_ADDRESS) the cluster is used as it is and left running; otherwise a private
small Ray is started on this machine, without a dashboard, and stopped at the end. The package itself travels to the
workers, so a cluster needs only the dependencies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import ray

PACKAGE = Path(__file__).parent
QUIET = {"RAY_DEDUP_LOGS": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True, slots=True)
class RaySettings:
    """How Ray is reached or started; `cpus` counts scheduling slots, not cores, and is for the local Ray only."""

    address: str | None = None
    cpus: int | None = None
    object_store_mb: int = 512


@contextmanager
def session(settings: RaySettings) -> Iterator[None]:
    """Be connected to Ray inside the block; inside an open session it is used as it is."""
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": _runtime_env(address)}
    if address:
        ray.init(address=address, **options)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            num_cpus=settings.cpus or max(len(os.sched_getaffinity(0)), 2),
            include_dashboard=False,
            object_store_memory=settings.object_store_mb * 2**20,
            **options,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _runtime_env(address: str | None) -> dict[str, Any]:
    """How workers find this package: shipped to a cluster; on this machine by its installation or its path."""
    if address:
        return {"py_modules": [str(PACKAGE)], "excludes": ["**/__pycache__"]}
    try:
        distribution("beatray")
    except PackageNotFoundError:
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        return {"env_vars": {"PYTHONPATH": path}}
    return {}
