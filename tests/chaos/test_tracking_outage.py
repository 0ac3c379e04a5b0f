"""The tracking server goes away in the middle of a real run: training goes on, all metrics arrive later, none twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from beatray.commands import pretrain
from beatray.track.journal import read_lines
from beatray.track.memory import Memory
from counts import count
from mlflow_server import MlflowServer
from pretraining import losses, run_spec_of, same_weights, start, strikes_at

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

PASSWORD = "tulip-bulb-9"


def assert_whole_and_once(server: MlflowServer, out: Path, run: str) -> str:
    """Every figure of every line of the journal is one row of the server's database, under the time of the line."""
    lines = read_lines(out / run / "metrics.jsonl")
    run_id = next(iter(Memory(out / run).records.values())).run_id
    assert run_id is not None
    stored = server.rows(run_id)
    for name in ("loss", "learning_rate", "records_per_s"):
        assert stored[f"train/{name}"] == [line["step"] for line in lines if line[name] is not None]
    assert max(max(Counter(steps).values()) for steps in stored.values()) == 1, "a figure is stored twice"
    history = server.client().get_metric_history(run_id, "train/loss")
    assert {m.step: (m.value, m.timestamp) for m in history} == {
        line["step"]: (line["loss"], line["time_ms"]) for line in lines if line["loss"] is not None
    }
    assert server.client().get_run(run_id).info.status == "FINISHED"
    return run_id


@pytest.mark.skipif(not count(0, 1), reason="a shorter one is in test_mlflow_server.py: make chaos")
def test_the_server_is_gone_while_training_goes_on(
    sample_corpus: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Killed at a third and started again at two thirds of the run; under `make chaos` four times in a longer run."""
    outages = count(1, 4)
    overrides = ("train.workers=1", f"train.epochs={count(12, 200)}", "tracking.uri=auto", "tracking.flush_seconds=0.2")
    server = MlflowServer(tmp_path / "mlflow").start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", f"//user:{PASSWORD}@"))
    for part in ("USERNAME", "PASSWORD"):  # set from the URI: put back at the end
        monkeypatch.setenv(f"MLFLOW_TRACKING_{part}", "")
    run_spec = run_spec_of(sample_corpus, tmp_path / "runs", "outage", *overrides)
    journal = tmp_path / "runs" / "outage" / "metrics.jsonl"
    steps = [run_spec.steps * (n + 1) // (2 * outages + 1) for n in range(2 * outages)]
    during: list[int] = []

    def strike() -> bool:
        if server.process is not None:
            server.kill()
            during.append(-len(read_lines(journal)))
        else:
            during[-1] += len(read_lines(journal))
            server.start()
        return True

    try:
        with strikes_at(journal, steps, strike) as struck:
            assert pretrain.run(run_spec.settings).finished
        if server.process is None:
            server.start()
        pretrain.run(run_spec.settings)  # a finished run: nothing is trained, what is missing is sent
        assert len(struck) >= 1 and sum(during) > 0, "no step was made without the server"
        run_id = assert_whole_and_once(server, tmp_path / "runs", "outage")
        artifacts = [item.path for item in server.client().list_artifacts(run_id)]
        assert artifacts == ["encoder", "settings.yaml"]
        made = (len(struck) + 1) // 2
        with capfd.disabled():
            print(
                f"{run_spec.steps} steps, {made} outages, {sum(during)} steps made without the server; each stored once"
            )
    finally:
        server.kill()
    printed = capfd.readouterr()
    assert 1 <= caplog.text.count("does not answer") <= outages, "reported once an outage"
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written |= {"printed": (printed.out + printed.err + caplog.text).encode()}
    assert len(written) > 20
    assert not [file for file, data in written.items() if PASSWORD.encode() in data], "the login was written down"
    if count(0, 1):
        assert start(sample_corpus, tmp_path / "runs", "alone", *overrides, "tracking.uri=null").finished
        assert losses(tmp_path / "runs", "alone") == losses(tmp_path / "runs", "outage")
        assert same_weights(tmp_path / "runs", "alone", "outage")


@pytest.mark.skipif(not count(0, 1), reason="a longer count of the test above: make chaos")
def test_a_server_that_is_gone_from_the_start_and_at_the_end(sample_corpus: str, tmp_path: Path) -> None:
    """The run is as if there were no tracking; the same command sends all of it when the server is there."""
    server = MlflowServer(tmp_path / "mlflow")
    overrides = ("train.workers=1", "train.epochs=6", f"tracking.uri={server.uri}", "tracking.flush_seconds=0.2")
    run_spec = run_spec_of(sample_corpus, tmp_path / "runs", "late", *overrides)
    assert pretrain.run(run_spec.settings).finished
    server.start()
    try:
        assert pretrain.run(run_spec.settings).finished
        assert_whole_and_once(server, tmp_path / "runs", "late")
    finally:
        server.kill()
