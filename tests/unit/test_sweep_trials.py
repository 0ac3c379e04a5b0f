"""What a sweep knows of its trials from their folders: figures of the weights that are exported, steps, rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from beatray.models.encoder_folder import export_encoder
from beatray.models.registry import build_encoder
from beatray.storage.store import Store
from beatray.sweep.progress import _finished
from beatray.sweep.ranking import figures_of
from beatray.sweep.record import RunningSweep, TrialRecord
from beatray.sweep.run import reached
from beatray.sweep.settings import SweepSettings
from beatray.track.journal import Journal
from beatray.train import checkpoint as checkpoints
from beatray.train.run_folder import METRICS
from every_method import run_spec_of, settings_of


def spec_of(folder: Path, export: str = "best") -> Any:
    return SimpleNamespace(run=Store(str(folder)), settings=SimpleNamespace(checkpoint=SimpleNamespace(export=export)))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A run that learned from labels for two epochs of two steps; it was better after the first."""
    journal = Journal(tmp_path / METRICS)
    journal.reopen(0)
    validated: dict[int, dict[str, float | None]] = {
        1: {"validation_loss": 0.55, "validation_auroc": 0.9, "validation_f1": 0.8},
        3: {"validation_loss": 0.7, "validation_auroc": 0.8, "validation_f1": None, "validation_dice": 0.1},
    }
    for step in range(4):
        journal.write({"step": step, "epoch": step // 2, "loss": 1.0 - 0.1 * step, **validated.get(step, {})})
    journal.close()
    checkpoints.mark_best(Store(str(tmp_path)), checkpoints.name_of(2), -0.9)  # selected by the AUROC
    return tmp_path


def test_the_figures_of_a_validation_are_those_of_the_exported_weights(labelled: Path) -> None:
    assert figures_of(spec_of(labelled)) == {
        "loss": pytest.approx(0.75), "validation_loss": 0.55, "validation_auroc": 0.9, "validation_f1": 0.8,
    }  # fmt: skip
    last = figures_of(spec_of(labelled, "last"))
    assert (last["validation_loss"], last["validation_auroc"], last["validation_dice"]) == (0.7, 0.8, 0.1)


def test_without_a_best_checkpoint_the_figures_are_the_last(labelled: Path) -> None:
    Store(str(labelled)).child(checkpoints.FOLDER).delete(checkpoints.BEST)
    assert figures_of(spec_of(labelled)) == figures_of(spec_of(labelled, "last"))


def save_checkpoint(run: Store, step: int, stopping: list[float | int | None]) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"global_step": step, "stopping": stopping}
    checkpoints.save(run, checkpoints.snapshot(checkpoints.name_of(step), state, model, optimizer))


def test_the_steps_of_a_trial_that_ended_early_stay_those_it_made(tmp_path: Path) -> None:
    settings = replace(settings_of("simclr_tiny", "train.patience=2"), out=str(tmp_path), run="early")
    run_spec = run_spec_of(settings, {}, 4)
    encoder = build_encoder("tiny")
    about = {"name": "tiny", "settings": encoder.described_settings(), "run_steps": run_spec.steps, "ended_at": 7}
    export_encoder(run_spec.run, encoder, about)
    save_checkpoint(run_spec.run, 7, [0.5, 2])
    again = _finished(TrialRecord("early", {}, status="finished", steps=7), run_spec, {})
    assert run_spec.steps == 10 and again.steps == 7
    export_encoder(run_spec.run, encoder, {**about, "ended_at": 10})
    assert _finished(again, run_spec, {}).steps == 10


def test_a_round_does_not_wait_for_trials_that_have_ended_or_failed(tmp_path: Path) -> None:
    trials = [TrialRecord(name, {}) for name in ("whole", "early", "broken")]
    record = RunningSweep(Store(str(tmp_path)), "people", SweepSettings(space={"seed": [0]}), trials)
    run_specs: dict[str, Any] = {each.name: SimpleNamespace(run=Store(str(tmp_path / each.name))) for each in trials}
    for name, step, status in (("whole", 8, "paused"), ("early", 5, "finished"), ("broken", 3, "failed")):
        save_checkpoint(run_specs[name].run, step, [None, 0])
        record.change(name, status=status)
    assert reached(record, run_specs, 8)
    record.change("early", status="interrupted")
    assert not reached(record, run_specs, 8)
