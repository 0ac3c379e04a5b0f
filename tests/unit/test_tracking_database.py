"""The database beside the runs: made by one process at a time, replaced where it was left half made, never put
elsewhere."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from beatray.errors import SettingsError
from beatray.track.database import BusyError, database_in, opened
from beatray.track.setup import Tracking, check_default_database
from beatray.track.tracker import Tracker
from half_made_database import half_made

MAKES_AS_MLFLOW_DOES = """
import sqlite3, sys, time
from beatray.track.database import opened
def make():
    with sqlite3.connect(sys.argv[1]) as database:
        if not database.execute("select count(*) from sqlite_master").fetchone()[0]:
            time.sleep(0.2)  # time for the other to look, too
            database.execute("create table experiments (name)")
            database.execute("insert into experiments values ('Default')")
opened("sqlite:///" + sys.argv[1], make)
"""


TRACKS_A_RUN = """
import json, sys
from pathlib import Path
from beatray.track.setup import Tracking, default_uri
from beatray.track.tracker import Tracker
out, name = Path(sys.argv[1]), sys.argv[2]
uri, artifacts = default_uri(out)
folder = out / name
folder.mkdir(parents=True)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "time_ms": 1}) + "\\n")
with Tracker(Tracking(uri=uri, experiment="e", run_name=name, folder=folder, artifact_location=artifacts)) as tracker:
    pass
print(tracker.run_id)
"""


def rows_of(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute(f"select count(*) from {table}").fetchone()[0])


def test_processes_that_begin_together_make_one_database(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    command = [sys.executable, "-c", MAKES_AS_MLFLOW_DOES, str(path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert rows_of(path, "experiments") == 1


def test_two_runs_that_begin_together_on_a_new_folder_are_both_recorded(tmp_path: Path) -> None:
    """With MLflow itself, whose migrations of one new database by two processes would destroy it."""
    out = tmp_path / "runs"
    out.mkdir()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TRACKS_A_RUN, str(out), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    found = [process.communicate() for process in both]
    ids = {output.strip() for output, _ in found}
    assert [process.returncode for process in both] == [0, 0] and len(ids) == 2, found
    with closing(sqlite3.connect(out / "mlflow.db")) as database:
        assert {row[0] for row in database.execute("select run_uuid from runs")} == ids
        assert database.execute("select count(*) from metrics where key = 'train/loss'").fetchone()[0] == 2


def test_a_database_that_is_being_made_or_holds_something_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = half_made(tmp_path / "fresh", age_s=0.0)
    with pytest.raises(BusyError, match="another program is making"):
        opened(f"sqlite:///{fresh}", lambda: None)
    with_run = half_made(tmp_path / "with_run")
    with closing(sqlite3.connect(with_run)) as database, database:
        database.execute("insert into runs values ('a')")
    os.utime(with_run, (0, 0))
    other = tmp_path / "other.db"
    other.write_bytes(b"letters, no database" * 100)
    os.utime(other, (0, 0))
    for path in (with_run, other):
        assert opened(f"sqlite:///{path}", path.stat).st_mtime == 0
    assert rows_of(with_run, "runs") == 1 and not list(tmp_path.rglob("*half-made*"))


def test_what_cannot_be_opened_keeps_the_promise_to_send_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{half_made(tmp_path, age_s=0.0)}"
    to = Tracking(uri=uri, experiment="e", run_name="r", folder=tmp_path / "run")
    tracker = Tracker(to)
    with caplog.at_level(logging.WARNING):
        assert not tracker.finish("FINISHED", patience_s=0.0)
    assert "another program is making" in caplog.text and "beatray track sync" in caplog.text


@pytest.mark.parametrize("name", ["a?b", "50%20off"])
def test_a_folder_that_mlflow_would_take_for_another_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for out in (tmp_path / name, tmp_path / name / "below"):
        with pytest.raises(SettingsError, match=r"means something else to it.*tracking.uri=null"):
            database_in(out)
        with pytest.raises(SettingsError, match="another out="):
            check_default_database("auto", out)
        check_default_database(None, out)
        check_default_database("http://127.0.0.1:5000", out)
    assert not list(tmp_path.iterdir())
