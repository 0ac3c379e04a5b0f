"""The lines that lead to MLflow: a run's page, and the comparison of several."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from beatray.commands.sweep import where_to_look
from beatray.storage.store import Store
from beatray.sweep.record import SweepRecord, TrialRecord
from beatray.track.memory import Memory, how_to_compare, how_to_open
from beatray.track.setup import tracking_for

SERVER = "http://mlflow.example:5000"


def remembered(folder: Path, run_id: str | None, uri: str = SERVER, experiment: str = "7") -> Path:
    folder.mkdir(parents=True)
    memory = Memory(folder)
    record = memory.record(uri, "beatray", folder.name)
    record.run_id, record.experiment_id, memory.newest = run_id, experiment, uri
    memory.save()
    return folder


def test_runs_of_one_server_are_compared(tmp_path: Path) -> None:
    folders = [remembered(tmp_path / name, name * 4) for name in "abc"]
    line = str(how_to_compare([*folders, tmp_path / "untracked", remembered(tmp_path / "d", None)]))
    page = urlsplit(urlsplit(line).fragment)
    assert line.startswith(f"{SERVER}/#/compare-runs?") and " " not in line
    query = parse_qs(page.query)
    assert json.loads(query["runs"][0]) == ["aaaa", "bbbb", "cccc"] and json.loads(query["experiments"][0]) == ["7"]
    elsewhere = remembered(tmp_path / "e", "eeee", "http://other:5000")
    assert how_to_compare([folders[0], elsewhere]) is None and how_to_compare(folders[:1]) is None
    assert how_to_compare([]) is None


def test_the_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/my runs/mlflow.db"
    line = str(how_to_open(remembered(tmp_path / "run", "f00", uri)))
    assert shlex.split(line)[:4] == ["mlflow", "ui", "--backend-store-uri", uri]
    assert line.endswith("then http://127.0.0.1:5000/#/experiments/7/runs/f00")


def test_a_sweep_leads_to_itself_and_to_its_trials(tmp_path: Path) -> None:
    sweep = remembered(tmp_path / "sweep", "5eed")
    trials = []
    for name, status in (("a", "finished"), ("b", "finished"), ("c", "failed")):
        remembered(sweep / name, name * 4)
        trials.append(TrialRecord(name, {}, status=status))  # type: ignore[arg-type]
    record = SweepRecord("sweep", "loss", "min", "grid", tuple(trials))
    opened, compared = where_to_look(Store(str(sweep)), record)
    assert opened == f"MLflow: {SERVER}/#/experiments/7/runs/5eed"
    assert "aaaa" in compared and "bbbb" in compared and "cccc" not in compared


@pytest.mark.parametrize(("value", "shown"), [((32, 64), "[32, 64]"), (("II",), '["II"]'), (0.5, 0.5), (None, None)])
def test_params_are_texts_as_a_user_writes_them(tmp_path: Path, value: object, shown: object) -> None:
    found = tracking_for(
        SERVER, "beatray", out=tmp_path, run_name="a", folder=tmp_path, settings={"encoder.x": value}, tags={},
        dataset=None, every_s=1.0,
    )  # fmt: skip
    assert found is not None and found.params == {"encoder.x": shown}
