"""MLflow's own database in a file beside the runs: one process makes it at a time, and a half-made one is replaced.

MLflow makes its tables in hundreds of steps and without a lock: two runs that begin together on a new folder, or one
that is killed there, leave a database that no MLflow opens again. Contract: `opened(uri, open_it)` returns what
`open_it` returns, with every other process of beatray kept out of the same file meanwhile; a database that never got
so far as to hold anything is set aside, not deleted, and reported. Raises BusyError where another program is at it; a
database that holds something is never touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from beatray.errors import SettingsError

log = logging.getLogger(__name__)
T = TypeVar("T")

NAME = "mlflow.db"
PREFIX = "sqlite:///"
PATIENCE_S = 60.0
"""For another process that makes the database: on a busy machine MLflow takes half of it."""
LEFT_ALONE_S = 30.0
"""How long a half-made database must have been unchanged: a server of MLflow, which knows no lock, may be at it."""
UNFIT = re.compile(r"[?%]")
"""What means something else in the address of a database."""


class BusyError(Exception):
    """Another program makes the database at this moment; the same call works later."""


def database_in(out: Path) -> str:
    """The address of the database beside the runs in `out`. Raises SettingsError for a folder that cannot have one."""
    folder = out.absolute()
    if found := UNFIT.search(str(folder)):
        raise SettingsError(
            f"MLflow cannot keep its database in {folder}: {found[0]} in a folder's name means something else to it. "
            "Choose another out=, or set tracking.uri= or MLFLOW_TRACKING_URI, or tracking.uri=null for none"
        )
    return f"{PREFIX}{folder / NAME}"


def opened(uri: str, open_it: Callable[[], T]) -> T:
    """What `open_it` gives; see the module's contract. A server's address is simply opened."""
    path = _file_of(uri)
    if path is None:
        return open_it()
    with _alone(path):
        if _is_half_made(path):
            if time.time() - path.stat().st_mtime < LEFT_ALONE_S:
                raise BusyError(f"another program is making {path}")
            _set_aside(path)
        return open_it()


def _file_of(uri: str) -> Path | None:
    """The file of a plain sqlite address; None for anything else."""
    name = uri.removeprefix(PREFIX)
    if not uri.startswith(PREFIX) or not name or name == ":memory:" or UNFIT.search(name):
        return None
    return Path(name).absolute()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock beside the database; where the disk has no locks, go on without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _wait_for(handle, path)
        yield
    finally:
        os.close(handle)


def _wait_for(handle: int, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BusyError(f"another process is opening {path}") from error
            time.sleep(0.1)
        except OSError:
            return
        else:
            return


def _is_half_made(path: Path) -> bool:
    """Whether MLflow began this database and did not come to its last step, the experiment called Default."""
    if not path.exists() or path.stat().st_size == 0:
        return False  # as good as none
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            own = [name for name in ("experiments", "runs", "registered_models") if name in tables]
            begun = bool(own or "alembic_version" in tables)
            if not own:  # before MLflow's first table; others keep their versions by Alembic, too
                own = sorted(tables - {"alembic_version"})
            rows = [database.execute(f'select count(*) from "{name}"').fetchone()[0] for name in own]
    except sqlite3.Error:
        return False  # no database, or a busy one: MLflow reports which
    return begun and not any(rows)


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.half-made-{time.time_ns()}")
    path.rename(aside)
    for ending in ("-journal", "-wal", "-shm"):  # they belong to the file that is gone
        journal = path.with_name(path.name + ending)
        if journal.exists():
            journal.rename(aside.with_name(aside.name + ending))
    log.warning("%s was only half made and held nothing: it is %s now, and a new one is made", path, aside.name)
