"""Twenty steps of Beat-SSL on the bundled recordings must give the losses they always gave.

A change in any part of the way (reader, order, views, encoder, targets, loss, optimiser) shows here. When a change is
meant, run this file with BEATRAY_GOLDEN=write and say in the commit why the curve moved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from beatray.track.journal import read_lines
from beatray.train.composed import pretrain_settings
from beatray.train.loop import train
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks

GOLDEN = Path(__file__).parent / "golden_loss.json"

pytestmark = pytest.mark.ray


def test_twenty_steps(sample_corpus: str, tmp_path: Path) -> None:
    overrides = [f"corpus={sample_corpus}", f"out={tmp_path}", "run=golden", "encoder=tiny", "train=small"]
    overrides += ["train.workers=1", "train.batch_size=24", "train.epochs=5", "train.precision=fp32"]
    overrides += ["train.learning_rate=5e-4", "train.stop_after_steps=20"]
    train(prepare_run(pretrain_settings(overrides)), Ranks())
    lines = read_lines(tmp_path / "golden" / "metrics.jsonl")
    columns = {"loss": "loss", "rhythm_loss": "record/loss", "beat_loss": "beat/loss", "beats": "beats"}
    curves = {name: [round(line[column], 5) for line in lines] for name, column in columns.items()}
    assert len(curves["loss"]) == 20
    if os.environ.get("BEATRAY_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert curves["beats"] == golden["beats"]
    for name in ("loss", "rhythm_loss", "beat_loss"):
        new, old = np.array(curves[name]), np.array(golden[name])
        # other processors round otherwise, and training amplifies it: tight at the start, 2 % at the end
        allowed = np.geomspace(1e-4, 2e-2, len(old)) * np.abs(old)
        assert (np.abs(new - old) <= allowed).all(), f"{name}: {new - old}"
    assert golden["loss"][-1] < golden["loss"][0]
