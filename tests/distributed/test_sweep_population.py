"""Population based training through real Ray: the worst trial goes on from the weights of the best."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from beatray.cli import main
from beatray.storage.store import Store
from beatray.sweep.record import SweepRecord, read
from counts import count

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(count(0, 1) == 0, reason="minutes of whole sweeps: runs with BEATRAY_CHAOS=1"),
]

OVERRIDES = (
    "sweep=pbt", "run=people", "sweep.num_samples=4", "sweep.grace_period=1", "sweep.fixed={}", "encoder=tiny",
    "train=small", "train.workers=1", "train.batch_size=24", "train.precision=fp32", "train.epochs=2",
    "train.warmup_epochs=0.5", "train.validate_every_epochs=1", "train.readers_per_worker=1",
    "tracking.uri=null",
)  # fmt: skip


def record_of(out: Path) -> SweepRecord:
    record = read(Store(str(out / "people")))
    assert record is not None
    return record


def outcome(out: Path) -> list[tuple[Any, ...]]:
    """What must not depend on kills: who took over what, and the weights that came of it."""
    return [
        (
            trial.name,
            trial.status,
            trial.steps,
            json.dumps(trial.exploits, sort_keys=True),
            (out / "people" / trial.name / "encoder" / "model.safetensors").read_bytes(),
        )
        for trial in record_of(out).trials
    ]


def test_the_worst_goes_on_from_the_best(
    sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*OVERRIDES, f"corpus={sample_corpus}", f"out={tmp_path}"]
    assert main(["sweep", *overrides]) == 0
    assert "continues from" in capsys.readouterr().out
    record = record_of(tmp_path)
    assert {trial.status for trial in record.trials} == {"finished"}
    (changed,) = [trial for trial in record.trials if trial.exploits]
    (turn,) = changed.exploits
    step = record.trials[0].steps // 2
    first_losses = {trial.name: trial.reports[-2]["validation_loss"] for trial in record.trials}
    assert turn["copied"] and turn["source"] == min(first_losses, key=lambda name: first_losses[name])
    assert changed.name == max(first_losses, key=lambda name: first_losses[name])
    folders = [
        tmp_path / "people" / name / "checkpoints" / f"step-{step:08d}" for name in (changed.name, turn["source"])
    ]
    for file in ("model.safetensors", "optimiser.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    rate, decay = (turn["changes"][f"train.{name}"] for name in ("learning_rate", "weight_decay"))
    assert states[0]["settings"]["train"]["learning_rate"] == rate != states[1]["settings"]["train"]["learning_rate"]
    assert states[0]["optimiser_groups"][0]["weight_decay"] == decay
    assert main(["sweep", *overrides]) == 0 and "nothing to do" in capsys.readouterr().out
    assert main(["sweep", *overrides, "sweep.grace_period=2"]) == 2
    assert "leaves no round" in capsys.readouterr().err
    ended = outcome(tmp_path)
    after_the_decision(tmp_path, changed.name, step)
    assert main(["sweep", *overrides]) == 0
    assert outcome(tmp_path) == ended


def after_the_decision(out: Path, name: str, step: int) -> None:
    """The taker's folder and record as a kill leaves them between what was decided and its copy."""
    folder = out / "people" / name
    for path in (folder / "encoder", folder / "checkpoints" / f"step-{2 * step:08d}"):
        shutil.rmtree(path)
    state = folder / "checkpoints" / f"step-{step:08d}" / "state.json"
    state.write_text("{}")  # half of it: its own or the source's, torn
    record = json.loads((out / "people" / "sweep.json").read_text())
    for trial in record["trials"]:
        if trial["name"] == name:
            trial["exploits"][-1]["copied"] = False
            trial["status"] = "interrupted"
    (out / "people" / "sweep.json").write_text(json.dumps(record))


def test_kills_change_neither_decisions_nor_weights(sample_corpus: str, tmp_path: Path) -> None:
    outs = tmp_path / "whole", tmp_path / "killed"
    overrides = [*OVERRIDES, f"corpus={sample_corpus}", "train.epochs=3", "cluster.cpus=2"]
    command = [sys.executable, "-m", "beatray", "sweep", *overrides]
    assert subprocess.run([*command, f"out={outs[0]}"], check=False).returncode == 0
    for attempts in (3, 5, 9):  # in the first round, in the second, and after its exploit
        process = subprocess.Popen([*command, f"out={outs[1]}"])
        deadline = time.monotonic() + 300
        while True:
            record = read(Store(str(outs[1] / "people")))
            if record is not None and sum(trial.attempts for trial in record.trials) >= attempts:
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert subprocess.run([*command, f"out={outs[1]}"], check=False).returncode == 0
    assert outcome(outs[1]) == outcome(outs[0])
