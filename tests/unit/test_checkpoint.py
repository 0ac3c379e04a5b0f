"""Checkpoints come back exactly, and a flipped bit or a missing file is never loaded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from beatray.errors import CheckpointError
from beatray.models import encoder_folder
from beatray.models.registry import build_encoder
from beatray.storage.store import TEMPORARY_PREFIX, Store
from beatray.train import checkpoint as checkpoints


def trained(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = build_encoder("tiny")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(2, 12, 1000)).sum().backward()
    optimiser.step()
    return model, optimiser


def test_weights_and_moments_come_back_to_the_bit(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    model, optimiser = trained()
    checkpoints.save(run, checkpoints.snapshot(checkpoints.name_of(7), {"global_step": 7}, model, optimiser))
    other, other_optimiser = trained(1)
    found = checkpoints.latest(run)
    assert found is not None and found.state["global_step"] == 7
    checkpoints.restore(found, other, other_optimiser)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    before, after = optimiser.state_dict()["state"], other_optimiser.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k]["exp_avg_sq"], after[k]["exp_avg_sq"]) for k in before)


def test_damage_is_found_and_the_previous_checkpoint_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Store(str(tmp_path))
    model, optimiser = trained()
    for step in (1, 2):
        checkpoints.save(run, checkpoints.snapshot(checkpoints.name_of(step), {"global_step": step}, model, optimiser))
    newest = tmp_path / "checkpoints" / checkpoints.name_of(2)
    chance = random.Random(0)
    for path in sorted(newest.iterdir()):
        good = path.read_bytes()
        for _ in range(25):
            at = chance.randrange(len(good))
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :])
            found = checkpoints.latest(run)
            assert found is not None and found.state["global_step"] == 1
        path.write_bytes(good[:-1])
        found = checkpoints.latest(run)
        assert found is not None and found.state["global_step"] == 1
        path.unlink()
        found = checkpoints.latest(run)
        assert found is not None and found.state["global_step"] == 1
        path.write_bytes(good)
    assert "passed over" in caplog.text
    found = checkpoints.latest(run)
    assert found is not None and found.state["global_step"] == 2


def test_only_damaged_checkpoints_are_not_the_same_as_none(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    assert checkpoints.latest(run) is None and checkpoints.newest_step(run) == 0
    checkpoints.save(run, checkpoints.snapshot(checkpoints.name_of(3), {"global_step": 3}, *trained()))
    (tmp_path / "checkpoints" / checkpoints.name_of(3) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"all checkpoints of .* are damaged"):
        checkpoints.latest(run)


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    model, optimiser = trained()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{TEMPORARY_PREFIX}dead").mkdir()
    Store(str(tmp_path)).clear_temporary("checkpoints")
    for step in (1, 2, 30, 100000000):
        checkpoints.save(run, checkpoints.snapshot(checkpoints.name_of(step), {"global_step": step}, model, optimiser))
    checkpoints.keep_newest(run, 2, checkpoints.names(run)[-1])
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000030", "step-100000000"]


def test_exported_encoder_loads_by_path_and_refuses_damage(tmp_path: Path) -> None:
    import beatray

    model, _ = trained()
    recipe = {"rate_hz": 500}
    encoder_folder.export_encoder(Store(str(tmp_path)), model, {"name": "tiny", "settings": {}, "recipe": recipe})
    x = torch.randn(3, 12, 5000)
    for path in (tmp_path, tmp_path / "encoder"):
        encoder = beatray.load_encoder(str(path))
        assert not encoder.training
        assert torch.equal(encoder(x), model.eval()(x))
        assert encoder.description["recipe"] == recipe
    weights = tmp_path / "encoder" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="SHA-256"):
        beatray.load_encoder(str(tmp_path))
    with pytest.raises(CheckpointError):
        beatray.load_encoder(str(tmp_path / "nothing"))


def test_another_recipe_is_refused_line_by_line() -> None:
    with pytest.raises(CheckpointError, match="rate_hz: 500 against 250"):
        encoder_folder.check_recipe({"rate_hz": 500, "a": 1}, {"rate_hz": 250, "a": 1}, "the encoder")
    encoder_folder.check_recipe({"rate_hz": 500}, {"rate_hz": 500}, "the encoder")
