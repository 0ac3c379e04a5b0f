"""A database as two processes leave it that make it at once: a few of MLflow's tables, no Default experiment."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path


def half_made(folder: Path, *, age_s: float = 3600.0) -> Path:
    """Make one in `folder` that nobody has written to for `age_s`; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mlflow.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table alembic_version (version_num varchar(32))")
        database.execute("create table experiments (experiment_id integer primary key, name varchar(256))")
        database.execute("create table runs (run_uuid varchar(32))")
    at = path.stat().st_mtime - age_s
    os.utime(path, (at, at))
    return path
