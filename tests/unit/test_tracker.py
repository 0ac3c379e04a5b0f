"""Tracking into a real MLflow store: everything arrives once, resumed runs go on, a dead server holds up nothing."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from beatray.track.journal import Journal
from beatray.track.secrets import scrubbed, without_secrets
from beatray.track.server import LOGIN, Server
from beatray.track.setup import Tracking, default_uri
from beatray.track.tracker import Tracker, how_to_open
from half_made_database import half_made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one database of all tests: making one takes MLflow seconds.

    Its name is no plain word, and in it lies a half-made database, which the first run replaces.
    """
    folder = tmp_path_factory.mktemp("store") / "Läufe #1 & 2 + \u5c71=x"
    half_made(folder)
    return folder


def tracking(folder: Path, store: Path, uri: str | None = None) -> Tracking:
    database, artifacts = default_uri(store)
    return Tracking(
        uri=uri or database,
        experiment="test",
        run_name="a run",
        folder=folder / "run",
        params={f"key.{n}": n for n in range(120)},
        tags={"beatray.method": "beat_ssl"},
        dataset={"name": "corpus", "digest": "0" * 32, "source": "corpus/"},
        artifact_location=artifacts,
        every_s=0.05,
    )


def test_a_run_and_its_continuation_arrive_whole_and_once(
    tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    with Tracker(tracking(tmp_path, store)) as tracker:
        journal.reopen(0)
        for step in range(30):
            journal.write({"step": step, "loss": 1.0 / (step + 1), "gradient_norm": None})
        tracker.metrics({"ludb_f1": 0.9})
        (tmp_path / "note.txt").write_text("hello")
        tracker.artifact(tmp_path / "note.txt")
    first_run = tracker.run_id
    assert "mlflow.db was only half made and held nothing" in caplog.text
    assert len(list(store.glob("mlflow.db.half-made-*"))) == 1
    with Tracker(tracking(tmp_path, store)) as tracker:
        journal.reopen(20)
        for step in range(20, 50):
            journal.write({"step": step, "loss": 1.0 / (step + 1)})
    assert tracker.run_id == first_run
    client = MlflowClient(tracking(tmp_path, store).uri)
    run = client.get_run(str(first_run))
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 120
    assert run.data.tags["beatray.method"] == "beat_ssl"
    assert run.data.metrics["ludb_f1"] == 0.9
    history = client.get_metric_history(str(first_run), "train/loss")
    assert sorted(metric.step for metric in history) == list(range(50))
    assert [item.path for item in client.list_artifacts(str(first_run))] == ["note.txt"]
    assert run.inputs.dataset_inputs[0].dataset.digest == "0" * 32


def test_a_server_that_is_gone_holds_up_nothing_and_gets_all_of_it_later(tmp_path: Path, store: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    tracker = Tracker(tracking(tmp_path, store, f"http://127.0.0.1:{port}"))
    tracker.__enter__()
    journal.reopen(0)
    longest = 0.0
    for step in range(100):
        before = time.perf_counter()
        journal.write({"step": step, "loss": 0.5})
        longest = max(longest, time.perf_counter() - before)
    print(f"longest wait of a training step for the journal: {longest * 1000:.1f} ms")
    assert not tracker.finish("FINISHED", patience_s=0.0)
    assert tracker.run_id is None
    assert "beatray track sync" in str(how_to_open(tmp_path / "run"))
    with Tracker(tracking(tmp_path, store)) as later:  # the same run folder, a store that answers
        pass
    client = MlflowClient(tracking(tmp_path, store).uri)
    assert len(client.get_metric_history(str(later.run_id), "train/loss")) == 100
    assert str(later.run_id) in str(how_to_open(tmp_path / "run"))
    runs = json.loads((tmp_path / "run" / "tracking.json").read_text())["runs"]
    assert len(runs) == 2, "the place that did not answer is remembered beside the one that did"
    assert [record["status_sent"] for record in runs.values()] == ["RUNNING", "FINISHED"]


def test_a_replayed_step_is_stored_as_first_seen(tmp_path: Path, store: Path) -> None:
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    for first, value in ((0, 1.0), (20, 2.0)):
        with Tracker(tracking(tmp_path, store)) as tracker:
            journal.reopen(first)
            for step in range(first, 40):
                journal.write({"step": step, "time_ms": int(1000 * value) + step, "loss": value})
            journal.write({"step": 39, "time_ms": 5000, "validation_loss": value})  # a second line of the last step
    client = MlflowClient(tracking(tmp_path, store).uri)
    for name, steps in (("train/loss", list(range(40))), ("train/validation_loss", [39])):
        history = client.get_metric_history(str(tracker.run_id), name)
        assert sorted((m.step, m.value) for m in history) == [(step, 1.0) for step in steps]
        assert all(m.timestamp == 1000 + m.step or m.timestamp == 5000 for m in history)


def test_a_run_that_began_under_older_names_goes_on_under_those_of_today(tmp_path: Path, store: Path) -> None:
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    with Tracker(tracking(tmp_path, store)) as first:
        pass
    client = MlflowClient(tracking(tmp_path, store).uri)
    for step in range(3):  # as it was logged before 0.2
        client.log_metric(str(first.run_id), "rhythm_loss", 1.0, step=step)
    journal.reopen(0)
    for step in range(6):
        journal.write({"step": step, "rhythm_loss" if step < 3 else "record/loss": 2.0})
    with Tracker(tracking(tmp_path, store)) as again:
        pass
    assert again.run_id == first.run_id
    now = client.get_metric_history(str(again.run_id), "train/record/loss")
    assert sorted(m.step for m in now) == [2, 3, 4, 5]  # the last step of then under both names
    assert [m.step for m in client.get_metric_history(str(again.run_id), "rhythm_loss")] == [0, 1, 2]


def test_a_damaged_memory_and_a_lost_database_lose_no_metric(
    tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    with Tracker(tracking(tmp_path, store)) as first:
        journal.reopen(0)
        for step in range(10):
            journal.write({"step": step, "loss": 0.5})
    with sqlite3.connect(store / "mlflow.db") as database:  # as a server does that was set up anew
        for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", (first.run_id,))
    with Tracker(tracking(tmp_path, store)) as second:
        journal.reopen(10)
        journal.write({"step": 10, "loss": 0.5})
    assert second.run_id not in (None, first.run_id)
    assert "does not know the run any more" in caplog.text
    client = MlflowClient(tracking(tmp_path, store).uri)
    assert sorted(m.step for m in client.get_metric_history(str(second.run_id), "train/loss")) == list(range(11))
    assert len(client.get_run(str(second.run_id)).data.params) == 120
    (tmp_path / "run" / "tracking.json").write_text('{"newest": "x", "runs": {"y": 3}}')
    with Tracker(tracking(tmp_path, store)) as third:
        pass
    assert "cannot be read" in caplog.text
    assert len(client.get_metric_history(str(third.run_id), "train/loss")) == 11


def test_what_mlflow_will_never_take_is_left_out_by_itself(
    tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unfit = replace(
        tracking(tmp_path, store), params={**tracking(tmp_path, store).params, "a$b": 1, "long": "x" * 9000}
    )
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    with Tracker(unfit) as tracker:
        journal.reopen(0)
        journal.write({"step": 0, "loss (mV²)": 0.5, "name": "a word", "none": None})
        tracker.artifact(tmp_path / "never-written")
        tracker.metrics({f"f{n}": n for n in range(2000)})
    run = MlflowClient(unfit.uri).get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 121 and "a$b" not in run.data.params and "a$b" in caplog.text
    assert len(run.data.params["long"]) == 6000
    assert run.data.metrics["train/loss _mV²_"] == 0.5
    assert len(run.data.metrics) == 2001
    assert "never-written is gone" in caplog.text


def test_a_listener_that_fails_keeps_nothing_back(
    tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run_id: str) -> None:
        raise RuntimeError(f"cannot note {run_id} at http://user:tulip9@host/")

    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    journal.reopen(0)
    journal.write({"step": 0, "loss": 0.5})
    with Tracker(replace(tracking(tmp_path, store), on_run=fail)) as tracker:
        pass
    assert "could not be noted" in caplog.text and "tulip9" not in caplog.text
    assert len(MlflowClient(tracking(tmp_path, store).uri).get_metric_history(str(tracker.run_id), "train/loss")) == 1


def test_secrets_are_cut_out_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "tulip-bulb")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn")
    monkeypatch.setenv("USE_TOKEN", "true")  # a switch, too short for a secret
    cases = {
        "http://user:p%40ss@host:5000/x": "http://host:5000/x",
        "http://user:p@ss:w@host": "http://host",
        "failed: API request to https://u:p@h/api and http://h/b": "failed: API request to https://h/api and http://h/b",
        "postgresql://user:pw@db/mlflow?sslmode=require": "postgresql://db/mlflow?sslmode=require",
        "s3://KEY:secret@bucket/p?region=eu&secret_key=abc&x=1": "s3://bucket/p?region=eu&secret_key=***&x=1",
        "postgresql://user:pa/ss@host/db": "postgresql://host/db",
        "mysql+pymysql://user:12/3?#4@host:3306/db": "mysql+pymysql://host:3306/db",
        "postgresql://u:p@host:5432/db?options=a@b": "postgresql://b",  # what SQLAlchemy reads in the cleaned one
        "s3://KEY:/se/cret@bucket/p": "s3://bucket/p",
        "http://user:pa/ss@host": "http://host",
        "https://acc.blob.core.windows.net/c?sv=2022&sig=ABC%3D": "https://acc.blob.core.windows.net/c?sv=2022&sig=***",
        "https://h/c?SIG=ABC&design=1": "https://h/c?SIG=***&design=1",
        "use tulip-bulb or wJalr/XUtn; it is true": "use *** or ***; it is true",
        "https://example.com?mail=a@b.c and https://example.com#a@b": None,
        "http://host:5000/x@y http://[::1]:5000/x@y hdfs://node:8020/user/a@REALM http://h:80,http://h:81/a@b": None,
        "someone@example.org and /data/a@b and sqlite:////data/mlflow.db": None,
    }
    for text, clean in cases.items():
        assert without_secrets(text) == (text if clean is None else clean)
        assert without_secrets(without_secrets(text)) == without_secrets(text)
    assert scrubbed({"a": ["http://u:p@h", 3, None], "b": ("tulip-bulb",)}) == {
        "a": ["http://h", 3, None],
        "b": ("***",),
    }


def test_the_login_of_one_server_is_not_offered_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOGIN:
        monkeypatch.delenv(name, raising=False)
    assert Server("https://anna:s3cret@mlflow.example").uri == "https://mlflow.example"
    assert [os.environ[name] for name in LOGIN] == ["anna", "s3cret"]
    Server("http://other.example:5000")
    assert not any(name in os.environ for name in LOGIN)
    monkeypatch.setenv(LOGIN[0], "own")
    monkeypatch.setenv(LOGIN[1], "word")
    Server("https://anna:s3cret@mlflow.example")
    Server("https://berta:other@mlflow.example")
    Server("http://other.example:5000")
    assert [os.environ[name] for name in LOGIN] == ["own", "word"]
