"""Epochs that end between two reports of a trial: every one of them reaches the record of the sweep and its search."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beatray.storage.store import Store
from beatray.sweep.asha import EpochAsha, Pace
from beatray.sweep.callback import SweepCallback
from beatray.sweep.record import RunningSweep, TrialRecord, read
from beatray.sweep.settings import SweepSettings
from beatray.track.journal import read_lines
from beatray.train import loop
from beatray.train.account import Hooks
from beatray.train.epoch_audit import key_sum
from beatray.train.order import MicroBatch
from beatray.train.ranks import Ranks
from beatray.train.stream import Batch
from every_method import rows_of, run_spec_of, settings_of

ROWS = 6


def report(step: int, loss: float, *earlier: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "validation_loss": loss, "earlier": list(earlier)}


def one(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "validation_loss": loss}


def test_the_ranks_report_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The batches come from memory; all else is the loop of a run, which is over before the first look."""
    arrays, statistics = rows_of(ROWS)

    def batches(stream: Any, rank: int, world: int, start: Any, n_steps: int, views: Any) -> Iterator[Batch]:
        for epoch in range(n_steps):
            yield Batch(epoch, 0, (MicroBatch(ROWS, ROWS),), arrays, (0,), ())

    monkeypatch.setattr(loop, "batches", batches)
    settings = settings_of("simclr_tiny", "encoder.channels=[4,4,8]", "train.epochs=3", "train.warmup_epochs=0")
    run_spec = run_spec_of(replace(settings, out=str(tmp_path), run="short"), statistics, ROWS)
    run_spec = replace(run_spec, key_sum=key_sum(arrays["record_key"]))
    reported: list[dict[str, Any]] = []
    assert loop.train(run_spec, Ranks(), Hooks(report=reported.append))
    found = [each for one in reported for each in (*one.pop("earlier"), one)]
    journal = read_lines(tmp_path / "short" / "metrics.jsonl")
    assert found == [{name: line[name] for name in ("step", "epoch", "loss")} for line in journal] and len(found) == 3


def test_a_search_compares_trials_at_the_same_epochs_however_late_they_report() -> None:
    fallen: list[str] = []
    paces = {name: Pace(10, 9) for name in ("prompt", "late", "last")}
    search = EpochAsha("validation_loss", "min", 1, 2, paces, {}, [], fallen.append)
    trials = {name: SimpleNamespace(trial_id=f"id-{name}", config={"trial": name}) for name in paces}
    for trial in trials.values():
        search.on_trial_add(None, trial)

    def comes(name: str, sent: dict[str, Any]) -> None:
        flat = {f"report/{key}": value for key, value in sent.items()}
        assert search.on_trial_result(None, trials[name], flat) == "CONTINUE"

    comes("late", report(39, 0.1, one(9, 0.5), one(19, 0.3), one(29, 0.2)))
    comes("prompt", report(9, 0.4))
    assert fallen == []
    comes("last", report(9, 0.6))
    assert fallen == ["last"]  # it is the worst of three after their first epoch
    comes("prompt", report(39, 0.05, one(19, 0.35), one(29, 0.1)))
    assert fallen == ["last", "prompt"]  # behind after the second epoch, though not after the fourth


def test_the_record_keeps_every_epoch_in_order(tmp_path: Path) -> None:
    folder = Store(str(tmp_path))
    record = RunningSweep(folder, "a sweep", SweepSettings(space={"seed": [0]}), [TrialRecord("a", {})])
    prepared: Any = SimpleNamespace(record=record, plan=None)
    tracking: Any = SimpleNamespace(start=lambda name: None)
    callback = SweepCallback(prepared, tracking, threading.Event(), lambda text: None)
    trial = SimpleNamespace(config={"trial": "a"})
    callback.on_trial_start(0, [], trial)
    for sent in (report(9, 0.5), report(39, 0.2, one(19, 0.4), one(29, 0.3)), report(29, 0.31, one(19, 0.41))):
        callback.on_trial_result(0, [], trial, {"report": sent})  # the last after a restart from step 10
    kept = read(folder)
    assert kept is not None and kept.trials[0].steps == 30
    assert list(kept.trials[0].reports) == [one(9, 0.5), one(19, 0.41), one(29, 0.31)]
