"""Tracking into a real MLflow store: everything arrives once, resumed runs go on, a dead server holds up nothing."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

from beatray.track.journal import Journal
from beatray.track.tracker import Tracker, Tracking, default_uri


def tracking(folder: Path, uri: str | None = None) -> Tracking:
    store, artifacts = default_uri(folder)
    return Tracking(
        uri=uri or store,
        experiment="test",
        run_name="a run",
        folder=folder / "run",
        params={f"key.{n}": n for n in range(120)},
        tags={"beatray.method": "beat_ssl"},
        dataset={"name": "corpus", "digest": "0" * 32, "source": "corpus/"},
        artifact_location=artifacts,
        every_s=0.05,
    )


def test_a_run_and_its_continuation_arrive_whole_and_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    with Tracker(tracking(tmp_path)) as tracker:
        journal.reopen(0)
        for step in range(30):
            journal.write({"step": step, "loss": 1.0 / (step + 1), "gradient_norm": None})
        tracker.metrics({"ludb_f1": 0.9})
        (tmp_path / "note.txt").write_text("hello")
        tracker.artifact(tmp_path / "note.txt")
    first_run = tracker.run_id
    with Tracker(tracking(tmp_path)) as tracker:
        journal.reopen(20)
        for step in range(20, 50):
            journal.write({"step": step, "loss": 1.0 / (step + 1)})
    assert tracker.run_id == first_run
    client = MlflowClient(tracking(tmp_path).uri)
    run = client.get_run(str(first_run))
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 120
    assert run.data.tags["beatray.method"] == "beat_ssl"
    assert run.data.metrics["ludb_f1"] == 0.9
    history = client.get_metric_history(str(first_run), "loss")
    assert sorted(metric.step for metric in history) == list(range(50))
    assert [item.path for item in client.list_artifacts(str(first_run))] == ["note.txt"]
    assert run.inputs.dataset_inputs[0].dataset.digest == "0" * 32


def test_a_server_that_is_gone_holds_up_nothing_and_gets_all_of_it_later(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    tracker = Tracker(tracking(tmp_path, f"http://127.0.0.1:{port}"))
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
    assert not (tmp_path / "run" / "tracking.json").exists()
    with Tracker(tracking(tmp_path)) as later:  # the same run folder, a store that answers
        pass
    client = MlflowClient(tracking(tmp_path).uri)
    assert len(client.get_metric_history(str(later.run_id), "loss")) == 100
    assert json.loads((tmp_path / "run" / "tracking.json").read_text())["next_step"] == 100
