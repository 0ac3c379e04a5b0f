"""`train.lead_dropout`: recordings lose whole leads before views are made of them, in training alone, reproducibly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beatray.augment.draws import VALIDATION_EPOCH, Draws
from beatray.augment.lead_masks import mask_leads, without_leads
from beatray.augment.two_views import crop_window
from beatray.errors import SettingsError
from beatray.train.composed import pretrain_settings
from beatray.train.run_spec import ViewsOnWorker, build_model, to_tensors, views_of
from evaluation_rows import read_rows
from pretraining import run_spec_of

SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"
N = 400


def batch() -> dict[str, torch.Tensor]:
    """Recordings in which no sample is zero."""
    return {
        "signal_uv": torch.full((N, 12, 50), 7, dtype=torch.int16),
        "n_samples": torch.full((N,), 50),
        "record_key": torch.arange(N),
    }


def test_leads_go_as_often_as_set_never_all_and_nothing_else_changes() -> None:
    whole = batch()
    for probability in (0.3, 0.97):
        few = without_leads(whole, Draws.of(whole, 0, 3), probability)
        left = few["signal_uv"] != 0
        assert (left.all(-1) | ~left.any(-1)).all()  # a lead goes as a whole
        kept = left.all(-1)
        assert kept.any(1).all()
        if probability == 0.3:
            assert abs(kept.float().mean() - 0.7) < 0.02
        assert few["signal_uv"].dtype == torch.int16 and few["n_samples"] is whole["n_samples"]
        assert (whole["signal_uv"] == 7).all()
    one, other = (without_leads(whole, Draws.of(whole, 0, epoch), 0.3)["signal_uv"] for epoch in (3, 4))
    assert not torch.equal(one, other)  # other leads in every epoch
    part = {name: values[100:] for name, values in whole.items()}
    assert torch.equal(without_leads(part, Draws.of(part, 0, 3), 0.3)["signal_uv"], one[100:])  # in any batch
    draws = Draws.of(whole, 0, 3)
    assert not torch.equal(mask_leads(whole["signal_uv"], draws, 0, 0.3), one)  # not the leads that a method masks


def test_nothing_is_lost_in_validation_or_unless_it_is_asked_for() -> None:
    whole = batch()
    assert without_leads(whole, Draws.of(whole, 0, VALIDATION_EPOCH), 0.5) is whole
    assert without_leads(whole, Draws.of(whole, 0, 3), 0.0) is whole


def test_all_views_are_made_of_what_is_left_here_and_on_workers(sample_files: str, tmp_path: Path) -> None:
    run_spec = run_spec_of(sample_files, tmp_path, "r", "objective=simclr", "train.lead_dropout=0.5")
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 6))
    arrays = {
        "signal_uv": rows.signal_uv,
        "n_samples": rows.n_samples.astype(np.int64),
        "record_key": np.arange(6),
    }
    settings = run_spec.settings
    objective = build_model(settings.objective, settings.encoder, 0, run_spec.statistics)
    given = to_tensors(arrays, torch.device("cpu"))
    here = views_of(objective, given, settings.seed, 2, settings.train.lead_dropout)
    there = ViewsOnWorker.of(run_spec)(arrays, 2)
    assert all(np.array_equal(here[name].numpy(), there[name]) for name in here)
    few = without_leads(given, Draws.of(given, settings.seed, 2), 0.5)
    kept = (few["signal_uv"] != 0).any(-1)
    assert 0 < int((~kept).sum()) < kept.numel()
    for view in ("view_1", "view_2"):
        assert torch.equal((here[view] != 0).any(-1), kept)
    plain = ViewsOnWorker.of(
        replace(run_spec, settings=replace(settings, train=replace(settings.train, lead_dropout=0.0)))
    )
    assert (plain(arrays, 2)["view_1"] != 0).any(-1).all()
    assert crop_window(given, None, Draws.of(given, 0, 2))["plain"].shape == (6, 12, 5000)


@pytest.mark.parametrize(
    "words",
    [
        ("objective=three_kg", "objective.augment.mask_fraction=0"),
        ("objective=beat_ssl", "objective.augment.mask_fraction=0"),
        ("objective=beat_ssl", "objective.augment.mask_fraction=0", "objective.augment.mode=project"),
    ],
)
def test_a_rotated_heart_gives_no_lead_that_was_not_recorded(
    words: tuple[str, ...], sample_files: str, tmp_path: Path
) -> None:
    run_spec = run_spec_of(sample_files, tmp_path, "r", *words)
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 6))
    signal_uv = rows.signal_uv.copy()
    signal_uv[0, 7] = 0
    signal_uv[1, [0, *range(2, 12)]] = 0
    peaks = np.stack([np.resize(r, 12) for r in rows.r_peaks]).astype(np.int64)
    arrays = {"signal_uv": signal_uv, "n_samples": rows.n_samples.astype(np.int64), "record_key": np.arange(6)}
    given = to_tensors({**arrays, "r_peaks": peaks}, torch.device("cpu"))
    settings = run_spec.settings
    objective = build_model(settings.objective, settings.encoder, 0, run_spec.statistics)
    given |= {name: torch.zeros(6, 1) for name in set(objective.reads) - set(given)}
    views = views_of(objective, given, settings.seed, 2, 0.3)
    kept = (without_leads(given, Draws.of(given, settings.seed, 2), 0.3)["signal_uv"] != 0).any(-1)
    assert not kept[0, 7] and kept[1].tolist() == [lead == 1 for lead in range(12)]
    for view in ("view_1", "view_2"):
        assert torch.equal((views[view] != 0).any(-1), kept)


def test_a_lead_that_was_recorded_stays_where_others_are_missing() -> None:
    few = batch()
    few["signal_uv"] = few["signal_uv"].clone()
    few["signal_uv"][:, [0, *range(2, 12)]] = 0
    left = without_leads(few, Draws.of(few, 0, 3), 0.97)
    assert (left["signal_uv"][:, 1] == 7).all()
    assert left["recorded_uv"] is few["signal_uv"]


def test_a_probability_of_one_is_refused() -> None:
    with pytest.raises(SettingsError, match="lead_dropout must be"):
        pretrain_settings(["corpus=/c", "train.lead_dropout=1.0"])
