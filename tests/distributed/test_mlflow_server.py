"""Tracking to real MLflow servers over HTTP: whole, once, side by side, with a login, and through outages."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts

from beatray import cli
from beatray.commands import track
from beatray.track.journal import Journal
from beatray.track.setup import Tracking
from beatray.track.tracker import Tracker
from mlflow_server import LOGIN, MlflowServer, Proxy

STEPS = 90


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that is not started yet."""
    made = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield made
    made.kill()


@pytest.fixture
def server(shared_server: MlflowServer) -> MlflowServer:
    return shared_server if shared_server.process is not None else shared_server.start()


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    running = MlflowServer(tmp_path_factory.mktemp("mlflow-auth"), login=LOGIN).start()
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN", "URI"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")


def tracking(uri: str, folder: Path, experiment: str) -> Tracking:
    return Tracking(
        uri=uri,
        experiment=experiment,
        run_name=folder.name,
        folder=folder,
        params={f"key.{n}": n for n in range(120)},
        tags={"beatray.method": "beat_ssl"},
        dataset={"name": "corpus", "digest": "0" * 32, "source": "s3://bucket/corpus"},
        every_s=0.1,
    )


def line(step: int) -> dict[str, float | int | None]:
    return {"step": step, "time_ms": 1_700_000_000_000 + step, "loss": 1 / (step + 1), "epoch": 0, "refused": None}


def write(journal: Journal, first: int, last: int, pause_s: float = 0.0) -> float:
    """Write lines as a rank does, at a steady rate; the longest time that one of them took."""
    longest = 0.0
    for step in range(first, last):
        before = time.perf_counter()
        journal.write(line(step))
        longest = max(longest, time.perf_counter() - before)
        time.sleep(pause_s)
    return longest


def assert_whole_and_once(server: MlflowServer, run_id: str | None, steps: int = STEPS) -> None:
    """By the rows of the database file, and by what a client gets."""
    assert run_id is not None
    rows = server.rows(run_id)
    assert rows["train/loss"] == list(range(steps)) and rows["train/epoch"] == list(range(steps))
    history = server.client().get_metric_history(run_id, "train/loss")
    assert sorted((m.step, m.value, m.timestamp) for m in history) == [
        (step, 1 / (step + 1), 1_700_000_000_000 + step) for step in range(steps)
    ]


def test_a_server_dead_at_the_end_gets_the_rest_later(
    shared_server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `beatray track sync`, with all that a fresh process can know: the run folder."""
    folder = tmp_path / "run"
    journal = Journal(folder / "metrics.jsonl")
    journal.reopen(0)
    monkeypatch.setattr(track, "PATIENCE_S", 0.0)
    shared_server.kill()
    tracker = Tracker(tracking(shared_server.uri, folder, "later")).__enter__()
    write(journal, 0, STEPS)
    tracker.metrics({"ludb_f1": 0.9})
    tracker.artifact(journal.path)
    assert not tracker.finish("FINISHED", patience_s=0.0)
    assert cli.main(["track", "sync", str(folder)]) == 1
    shared_server.start()
    for _ in range(2):
        assert cli.main(["track", "sync", str(folder)]) == 0
        run_id = json.loads((folder / "tracking.json").read_text())["runs"][shared_server.uri]["run_id"]
        assert_whole_and_once(shared_server, run_id)
        run = shared_server.client().get_run(run_id)
        assert run.info.status == "FINISHED" and len(run.data.params) == 120 and run.data.metrics["ludb_f1"] == 0.9
        assert shared_server.rows(run_id)["ludb_f1"] == [0]
        assert [item.path for item in shared_server.client().list_artifacts(run_id)] == ["metrics.jsonl"]
    assert f"run {run_id}, FINISHED" in capsys.readouterr().out
    _a_deleted_run_is_not_made_again(shared_server, folder, run_id)


def _a_deleted_run_is_not_made_again(server: MlflowServer, folder: Path, run_id: str) -> None:
    client = server.client()
    client.delete_run(run_id)
    assert cli.main(["track", "sync", str(folder)]) == 1
    experiment = client.get_experiment_by_name("later").experiment_id
    assert client.search_runs([experiment]) == []
    client.restore_run(run_id)
    assert cli.main(["track", "sync", str(folder)]) == 0


def test_a_run_arrives_whole(server: MlflowServer, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "encoder.json").write_text('{"name": "tiny"}')
    journal = Journal(folder / "metrics.jsonl")
    reported: list[str] = []
    with Tracker(replace(tracking(server.uri, folder, "whole"), on_run=reported.append)) as tracker:
        assert tracker.wait_for_run(60) is not None
        journal.reopen(0)
        write(journal, 0, STEPS)
        tracker.metrics({"ludb.10pct macro_f1": 0.9}, step=1000)
        tracker.artifact(tmp_path / "encoder", "encoder")
    assert reported == [tracker.run_id]
    assert_whole_and_once(server, tracker.run_id)
    run = server.client().get_run(str(tracker.run_id))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "whole")
    assert run.data.params == {f"key.{n}": str(n) for n in range(120)}
    assert run.data.tags["beatray.method"] == "beat_ssl"
    assert run.data.metrics["ludb.10pct macro_f1"] == 0.9
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.digest == "0" * 32 and json.loads(dataset.source) == {"uri": "s3://bucket/corpus"}
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), "artifacts go through the server"
    got = download_artifacts(
        run_id=run.info.run_id, artifact_path="encoder", tracking_uri=server.uri, dst_path=str(tmp_path / "got")
    )
    assert (Path(got) / "encoder.json").read_text() == '{"name": "tiny"}'
    with Tracker(tracking(server.uri, folder, "whole")) as tracker:  # goes on after all, although figures stand at 1000
        journal.reopen(STEPS - 20)
        write(journal, STEPS - 20, STEPS + 30)
    assert_whole_and_once(server, run.info.run_id, STEPS + 30)
    assert server.client().get_run(run.info.run_id).info.status == "FINISHED"


TRIAL = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_mlflow_server import STEPS, Journal, Tracker, replace, tracking, write

def trial(folder):
    journal = Journal(folder / "metrics.jsonl")
    with Tracker(replace(tracking(sys.argv[2], folder, "side by side"), parent_run_id=sys.argv[3])):
        journal.reopen(0)
        write(journal, 0, STEPS, 0.01)
threads = [threading.Thread(target=trial, args=(Path(name),)) for name in sys.argv[4:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_trials_side_by_side_below_one_parent(server: MlflowServer, tmp_path: Path) -> None:
    with Tracker(tracking(server.uri, tmp_path / "sweep", "of another name")) as parent:
        parent_id = parent.wait_for_run(60)
        command = [sys.executable, "-c", TRIAL, str(Path(__file__).parent), server.uri, str(parent_id)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        folders = [str(tmp_path / f"trial-{n}") for n in range(4)]
        processes = [subprocess.Popen([*command, *two], env=environment) for two in (folders[:2], folders[2:])]
        assert [process.wait(240) for process in processes] == [0, 0]
    client = server.client()
    assert [e.name for e in client.search_experiments()].count("side by side") == 1
    experiment = client.get_experiment_by_name("side by side").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    assert sorted(child.info.run_name for child in children) == [f"trial-{n}" for n in range(4)]
    for child in children:
        assert_whole_and_once(server, child.info.run_id)


def test_a_server_that_is_gone_in_the_middle_of_a_run(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed with all its processes while steps are written, started again while they go on."""
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    journal.reopen(0)
    enough = threading.Event()
    times: list[float] = []

    def train() -> None:
        while not enough.is_set():
            times.append(write(journal, len(times), len(times) + 1, 0.05))

    with caplog.at_level(logging.WARNING), Tracker(tracking(server.uri, tmp_path / "run", "outage")) as tracker:
        training = threading.Thread(target=train)
        training.start()
        wait_until(lambda: tracker.run_id and server.rows(tracker.run_id), "the first steps arrived")
        server.kill()
        before = len(server.rows(str(tracker.run_id))["train/loss"])
        wait_until(lambda: len(times) > before + 30, "the training goes on without the server")
        server.start()
        at_return = len(times)
        wait_until(lambda: len(times) > at_return + 30, "the training goes on")
        enough.set()
        training.join()
    assert 0 < before < at_return - 30
    assert_whole_and_once(server, tracker.run_id, len(times))
    assert server.client().get_run(str(tracker.run_id)).info.status == "FINISHED"
    warnings = [record for record in caplog.records if "does not answer" in record.getMessage()]
    assert len(warnings) == 1, caplog.text
    print(f"{len(times)} steps, {before} before the outage; a step waited at most {1000 * max(times):.1f} ms for it")


@pytest.mark.parametrize("call", [b'"metrics"', b'"params"', b"runs/create", b"runs/update"])
def test_an_answer_that_is_lost_stores_nothing_twice(server: MlflowServer, tmp_path: Path, call: bytes) -> None:
    """The request is carried out, its answer never comes: what a server does that dies after the commit."""
    proxy = Proxy(server.port)
    folder = tmp_path / "run"
    experiment = f"lost {call.decode()}"
    journal = Journal(folder / "metrics.jsonl")
    journal.reopen(0)
    try:
        proxy.swallow = call
        with Tracker(tracking(proxy.uri, folder, experiment)) as tracker:
            write(journal, 0, STEPS // 2)
            if call == b"runs/update":  # comes at the end of the run only
                threading.Timer(2.0, lambda: setattr(proxy, "swallow", None)).start()
            else:
                wait_until(lambda: proxy.swallowed >= 1, f"{call!r} was called")
            if call == b'"metrics"':  # a rank died at the same time, and replays steps that the server has
                wait_until(lambda: server.rows(str(tracker.run_id)).get("train/loss"), "the batch was stored")
                journal.reopen(STEPS // 4)
                for step in range(STEPS // 4, STEPS // 2):
                    journal.write({**line(step), "time_ms": 5})
                proxy.swallow = None
            write(journal, STEPS // 2, STEPS)
            if call != b"runs/update":
                time.sleep(0.5)  # several tries that end the same way
                proxy.swallow = None
        assert proxy.swallowed >= 1
        known = server.client().get_experiment_by_name(experiment)
        assert len(server.client().search_runs([known.experiment_id])) == 1
        assert_whole_and_once(server, tracker.run_id)
        run = server.client().get_run(str(tracker.run_id))
        assert len(run.data.params) == 120 and run.info.status == "FINISHED"
        assert json.loads((folder / "tracking.json").read_text())["runs"][proxy.uri]["status_sent"] == "FINISHED"
    finally:
        proxy.close()


def wait_until(true: object, what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_the_same_batch_twice_is_stored_once(server: MlflowServer, tmp_path: Path) -> None:
    """What time_ms is for: MLflow itself drops a metric that it has with this step, value and time."""
    folder = tmp_path / "twice"
    with Tracker(tracking(server.uri, folder, "twice")) as tracker:
        run_id = str(tracker.wait_for_run(60))
    points = [("train/loss", 1 / (step + 1), 1_700_000_000_000 + step, step) for step in range(STEPS)]
    points += [("train/epoch", 0.0, time_ms, step) for _, _, time_ms, step in points]
    for _ in range(2):
        tracker._server.log(run_id, points)
    assert_whole_and_once(server, run_id)


def test_a_server_with_a_login(
    locked_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    journal = Journal(folder / "metrics.jsonl")
    journal.reopen(0)
    write(journal, 0, STEPS)
    (tmp_path / "note.txt").write_text("hello")
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(tracking(locked_server.uri, folder, "locked")).__enter__()
        tracker.artifact(tmp_path / "note.txt")
        wait_until(lambda: caplog.records, "a refusal is reported")
        time.sleep(1.0)  # ten times every_s: it is reported once
        # A refusal is no outage: nobody waits an hour for it to pass.
        assert not tracker.finish("FINISHED", patience_s=3600)
    messages = [record.getMessage() for record in caplog.records]
    assert ["401" in text and "MLFLOW_TRACKING_USERNAME" in text for text in messages] == [True, False], messages
    assert "beatray track sync" in messages[1]
    assert tracker.run_id is None
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-horse-battery")
    assert cli.main(["track", "sync", str(folder)]) == 1
    assert "refuses the login given" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN[1])
    assert cli.main(["track", "sync", str(folder)]) == 0
    run_id = json.loads((folder / "tracking.json").read_text())["runs"][locked_server.uri]["run_id"]
    assert_whole_and_once(locked_server, run_id)
    assert [item.path for item in locked_server.client().list_artifacts(run_id)] == ["note.txt"]


def test_a_login_appears_nowhere(
    locked_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The login in the tracking URI, a key in the corpus URI, and secrets of the environment in words."""
    secrets = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "HUB_TOKEN": "hf_abcdef123456", "DB_PASSWORD": "tulip-bulb-9"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    user, password = LOGIN
    uri = f"http://{user}:{password}@127.0.0.1:{locked_server.port}"
    folder = tmp_path / "run"
    leaky = replace(
        tracking(uri, folder, "secret"),
        params={"tracking.uri": uri, "corpus": "s3://AKIA:" + "tulip-bulb-9@bucket/x?secret_key=geheim99", "depth": 5},
        tags={"note": f"token {secrets['HUB_TOKEN']}", "mlflow.note.content": secrets["AWS_SECRET_ACCESS_KEY"]},
        dataset={"name": "corpus", "digest": "0" * 32, "source": f"s3://AKIA:{password}@bucket/corpus"},
    )
    journal = Journal(folder / "metrics.jsonl")
    journal.reopen(0)
    with caplog.at_level(logging.DEBUG):
        tracker = Tracker(replace(leaky, uri=uri.replace(str(locked_server.port), "1"))).__enter__()  # nobody there
        write(journal, 0, STEPS)
        assert not tracker.finish("FINISHED", patience_s=0.0)
        with Tracker(leaky) as tracker:
            tracker.artifact(journal.path)
        print(repr(leaky), "params and tags aside") if "params" not in repr(leaky) else None
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    assert_whole_and_once(locked_server, tracker.run_id)
    run = locked_server.client().get_run(str(tracker.run_id))
    assert run.data.params == {
        "tracking.uri": f"http://127.0.0.1:{locked_server.port}",
        "corpus": "s3://bucket/x?secret_key=***",
        "depth": "5",
    }
    assert run.data.tags["note"] == "token ***"
    printed = capfd.readouterr()
    written = {"printed": printed.out + printed.err, "logged": caplog.text}
    for path in [*folder.rglob("*"), *locked_server.folder.rglob("*")]:
        if path.is_file() and path.name not in ("auth.ini", "auth.db"):  # where the server itself keeps its users
            written[str(path)] = path.read_bytes().decode("latin-1")
    assert len(written) > 5
    for shared_server, text in written.items():
        for secret in (password, "geheim99", *secrets.values()):
            assert secret not in text, f"{secret} stands in {shared_server}"
