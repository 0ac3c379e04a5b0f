"""The background writer: order, the best and the newest kept, and failures reported."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from beatray.errors import CheckpointError
from beatray.models.registry import build_encoder
from beatray.settings import CheckpointSettings
from beatray.storage.store import Store
from beatray.train import checkpoint as checkpoints
from beatray.train.checkpoint import Checkpoint
from beatray.train.writer import CheckpointWriter


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_encoder("tiny")


def snapshot(model: torch.nn.Module, step: int) -> Checkpoint:
    optimiser = torch.optim.AdamW(model.parameters())
    return checkpoints.snapshot(checkpoints.name_of(step), {"global_step": step}, model, optimiser)


def writer(run: Store, settings: CheckpointSettings, before: list[str] | None = None) -> CheckpointWriter:
    notes = before if before is not None else []
    return CheckpointWriter(run, settings, lambda: notes.append("journals"), lambda: True)


def test_a_snapshot_does_not_follow_the_weights(model: torch.nn.Module, tmp_path: Path) -> None:
    with writer(Store(str(tmp_path)), CheckpointSettings()) as to:
        to.submit(snapshot(model, 1))
        name, weight = next(iter(model.named_parameters()))
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1.0)
    found = checkpoints.latest(Store(str(tmp_path)))
    assert found is not None and torch.equal(found.model[name], before)


def test_the_newest_and_the_best_are_kept(model: torch.nn.Module, tmp_path: Path) -> None:
    run, notes = Store(str(tmp_path)), []
    with writer(run, CheckpointSettings(keep=2), notes) as to:
        for step, loss in enumerate([3.0, 1.0, 2.0, None, 1.5, None], start=1):
            assert to.improves(loss) == (step in (1, 2))
            to.submit(snapshot(model, step), loss)
            to.wait()
    assert checkpoints.names(run) == [checkpoints.name_of(step) for step in (2, 5, 6)]
    assert checkpoints.best(run) == (checkpoints.name_of(2), 1.0)
    assert len(notes) == 6  # the journals are made durable before each
    with writer(run, CheckpointSettings(keep=1)) as to:  # a later start knows the best
        assert not to.improves(1.2)
        to.submit(snapshot(model, 7), 0.5)
    assert checkpoints.names(run) == [checkpoints.name_of(7)]


def test_a_write_that_fails_is_reported_unless_it_is_not_required(
    model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Store(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for settings in (CheckpointSettings(), CheckpointSettings(required=False, background=False)):
            with writer(run, settings) as to:
                to.submit(snapshot(model, 1))
                to.wait()
                (tmp_path / "checkpoints").rename(tmp_path / "away")
                (tmp_path / "checkpoints").write_text("no folder any more")
                to.submit(snapshot(model, 2))
                to.wait()
                assert to.failures == 1
                assert (to.fault() is None) == (not settings.required)
                if settings.required:
                    assert isinstance(to.fault(), CheckpointError) and "Older checkpoints are intact" in str(to.fault())
            (tmp_path / "checkpoints").unlink()
            (tmp_path / "away").rename(tmp_path / "checkpoints")
    assert caplog.text.count("training goes on") == 1


def test_a_loss_that_is_not_finite_is_never_the_best(model: torch.nn.Module, tmp_path: Path) -> None:
    with writer(Store(str(tmp_path)), CheckpointSettings()) as to:
        to.submit(snapshot(model, 1), float("nan"))
    assert checkpoints.best(Store(str(tmp_path))) is None


def test_a_best_that_was_not_marked_in_time_is_marked_at_the_next_start(model: torch.nn.Module, tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    checkpoints.save(run, snapshot(model, 1))
    with writer(run, CheckpointSettings()) as to:
        to.mark_if_best(checkpoints.name_of(1), 0.3)
        assert not to.improves(0.4)
    assert checkpoints.best(run) == (checkpoints.name_of(1), 0.3)


def test_a_best_that_is_damaged_is_made_again_when_its_step_is_replayed(
    model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, name = Store(str(tmp_path)), checkpoints.name_of(4)
    with writer(run, CheckpointSettings()) as to:
        to.submit(snapshot(model, 2), 0.5)
        to.submit(snapshot(model, 4), 0.3)
    path = tmp_path / "checkpoints" / name / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING), writer(run, CheckpointSettings()) as to:  # goes on from step 2
        assert "the best checkpoint is forgotten" in caplog.text and checkpoints.best(run) is None
        to.mark_if_best(checkpoints.name_of(2), 0.5)
        assert to.improves(0.3)
        to.submit(snapshot(model, 4), 0.3)
    assert checkpoints.best(run) == (name, 0.3) and checkpoints.load(run, name).state["global_step"] == 4


def test_damaged_checkpoints_are_not_kept_in_place_of_whole_ones(model: torch.nn.Module, tmp_path: Path) -> None:
    """A run that passed over damaged checkpoints goes on below their numbers; what it writes there must stay."""
    run = Store(str(tmp_path))
    for step in (2, 8, 10):
        checkpoints.save(run, snapshot(model, step))
    for step in (8, 10):
        path = tmp_path / "checkpoints" / checkpoints.name_of(step) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
    torn = tmp_path / "checkpoints" / checkpoints.name_of(5)
    torn.mkdir()
    (torn / "state.json").write_text("{}")  # files.json never came
    with writer(run, CheckpointSettings(keep=2)) as to:
        for step in (4, 6):
            to.submit(snapshot(model, step))
    assert checkpoints.names(run) == [checkpoints.name_of(4), checkpoints.name_of(6)]


def test_a_start_that_was_taken_over_writes_nothing(model: torch.nn.Module, tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    with CheckpointWriter(run, CheckpointSettings(), lambda: None, lambda: False) as to:
        to.submit(snapshot(model, 1))
    assert checkpoints.names(run) == []
