"""Physio-contrast against a slow oracle, its closed forms, the shuffled beats and the low-rate decoder."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from physio_contrast_oracle import physio_loss

from beatray.augment.beats import shuffle_beats
from beatray.models.encoder import Stage
from beatray.models.registry import build_encoder
from beatray.models.signal_decoder import SignalDecoder, low_rate
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Progress
from beatray.objectives.pairs import encode_views, nt_xent_term
from beatray.objectives.physio_contrast import PhysioContrast, PhysioContrastSettings, region_error
from beatray.objectives.statistics import FeatureStatistics, FeatureTable
from beatray.objectives.terms import combine_terms
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = {"signal_weight": 0.0, "peak_weight": 0.0}
RECORDS = 7


def statistics() -> FeatureStatistics:
    return FeatureStatistics.from_dict(rows_of(RECORDS)[1])


def built(known: FeatureStatistics | None = None, **settings: Any) -> PhysioContrast:
    torch.manual_seed(0)
    encoder = build_encoder("tiny", channels=(4, 4, 8))
    sizes = {"projector_hidden": 16, "projector_dim": 8, "decoder_width": 4}
    return PhysioContrast(encoder, PhysioContrastSettings(**{**sizes, **settings}), known or statistics()).double()


def views(objective: PhysioContrast, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return views_of(objective, {**batch_of(objective, rows_of(RECORDS)[0]), **changes}, exact=True)


def embedded(objective: PhysioContrast, made: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = objective.projector(encode_views(objective.encoder, made)[1]).numpy()
    return found


def standardised(objective: PhysioContrast, made: dict[str, torch.Tensor]) -> np.ndarray:
    known = objective.known
    found: np.ndarray = known.standardise(known.impute(made["record_features"])).clamp(-5, 5).numpy()
    return found


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("threshold", [0.05, 0.25, 0.45])
def test_the_contrast_is_that_of_the_formula(threshold: float, ratio: bool) -> None:
    objective = built(**ALONE, threshold=threshold, ratio=ratio)
    made = views(objective)
    features = standardised(objective, made)
    expected = physio_loss(embedded(objective, made), features, threshold, 0.1, ratio)
    result = objective(made, Progress())
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-9)
    assert float(result.means["record/loss"]) == pytest.approx(expected, abs=1e-5)
    lengths = np.linalg.norm(features, axis=1)
    cosines = features @ features.T / np.outer(lengths, lengths)
    assert 0 < (cosines[~np.eye(RECORDS, dtype=bool)] >= threshold).mean() < 1  # the threshold decides something


def test_a_threshold_above_1_leaves_nt_xent() -> None:
    objective = built(**ALONE, threshold=1.5)
    made = views(objective)
    z = torch.from_numpy(embedded(objective, made))
    expected = combine_terms([nt_xent_term("record", 1.0, z, 0.1)])
    assert float(objective(made, Progress()).loss) == pytest.approx(float(expected.loss), abs=1e-6)


def test_equal_recordings_cannot_be_told() -> None:
    for threshold in (0.25, 1.5):
        objective = built(**ALONE, threshold=threshold, mask_fraction=0.0)
        made = views(objective)
        made["view_2"] = made["view_1"] = made["view_1"][:1].expand_as(made["view_1"])
        made["n_valid"] = made["n_valid"][:1].expand(RECORDS)
        assert float(objective(made, Progress()).loss) == pytest.approx(math.log(2 * RECORDS - 1), abs=1e-9)


def test_a_recording_without_features_has_its_own_view_alone() -> None:
    objective = built(**ALONE)
    nothing = torch.full_like(batch_of(objective, rows_of(RECORDS)[0])["record_features"], torch.nan)
    made = views(objective, record_features=nothing)
    z = embedded(objective, made)
    expected = physio_loss(z, np.zeros((RECORDS, 3)), 0.25, 0.1)
    result = objective(made, Progress())
    assert float(result.loss) == pytest.approx(expected, abs=1e-9)
    assert float(result.means["record/positive_mass"]) == 1.0


def test_the_unit_of_a_feature_does_not_matter() -> None:
    before = statistics()
    factor = np.ones(len(before.record.names))
    factor[3] = 10.0
    table = before.record
    scaled = FeatureTable(table.names, *(getattr(table, part) * factor for part in ("mean", "sd", "min", "max")))
    plain, other = built(**ALONE), built(FeatureStatistics(scaled, before.beat), **ALONE)
    made = views(plain)
    changed = {**made, "record_features": made["record_features"] * torch.from_numpy(factor)}
    assert float(other(changed, Progress()).loss) == pytest.approx(float(plain(made, Progress()).loss), abs=1e-9)


def test_it_needs_the_statistics_of_the_corpus_and_warns_where_all_are_alike() -> None:
    with pytest.raises(ValueError, match="needs the feature statistics"):
        PhysioContrast(build_encoder("tiny"), PhysioContrastSettings())
    found = PhysioContrast.warnings(PhysioContrastSettings(), {"record/target_entropy": 0.95}, Progress(50, 100))
    assert "raise objective.threshold (now 0.25)" in found["record/target_entropy"]


def beats_of(x: np.ndarray, cuts: list[int]) -> list[bytes]:
    return [x[:, a:b].tobytes() for a, b in itertools.pairwise(cuts)]


def test_shuffled_beats_are_the_same_beats_in_another_order() -> None:
    x = torch.arange(2 * 2400.0).view(1, 2, 2400)
    peaks = torch.tensor([[300, 700, 1000, 1500, 1800, 2200, -1, -1]])
    cuts = [540, 880, 1300, 1680, 2040]  # two fifths of the way back from each R-peak but the first
    drawn = np.array([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.4, 0.6]])
    turned = shuffle_beats(x, peaks, torch.tensor([2400]), drawn)
    assert turned.shape == x.shape
    assert torch.equal(turned[..., : cuts[0]], x[..., : cuts[0]])  # all before the first R-peak among it
    assert torch.equal(turned[..., cuts[-1] :], x[..., cuts[-1] :])
    before = beats_of(x[0].numpy(), cuts)
    lengths = [340, 420, 380, 360]
    order = [1, 3, 2, 0]
    new = np.cumsum([540, *(lengths[i] for i in order)]).tolist()
    assert beats_of(turned[0].numpy(), new) == [before[i] for i in order]  # leads together, no sample lost
    assert sorted(turned.flatten().tolist()) == sorted(x.flatten().tolist())


def test_a_recording_of_few_beats_keeps_their_order() -> None:
    x = torch.randn(4, 12, 1000)
    peaks = torch.tensor([[-1, -1, -1, -1], [500, -1, -1, -1], [100, 400, 800, -1], [100, 300, 500, 900]])
    drawn = np.tile([0.9, 0.5, 0.1, 0.0], (4, 1))
    turned = shuffle_beats(x, peaks, torch.tensor([1000, 1000, 1000, 600]), drawn)
    assert torch.equal(turned, x)  # of the last one only three beats lie in its signal
    turned = shuffle_beats(x, peaks, torch.full((4,), 1000), drawn)
    assert torch.equal(turned[:3], x[:3]) and not torch.equal(turned[3], x[3])
    assert shuffle_beats(x[:0], peaks[:0], torch.zeros(0, dtype=torch.int64), drawn[:0]).shape == (0, 12, 1000)


def test_views_differ_in_the_order_of_beats_alone() -> None:
    objective = built(mask_fraction=0.0, crop_seconds=None)
    made = views(objective)
    assert "plain" not in made  # the first view is what is drawn
    for one, other in zip(made["view_1"], made["view_2"], strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one.sort(1).values, other.sort(1).values, rtol=0, atol=0)
    without = views(objective, r_peaks=torch.full_like(made["peaks"], -1))
    assert torch.equal(without["view_1"], without["view_2"])


def test_errors_are_those_of_a_loop_and_only_what_is_near_a_peak_counts_in_the_second() -> None:
    objective = built(crop_seconds=2.0)
    made = views(objective)
    made["plain"][1, 5] = 0.0
    made["n_valid"][2] = 460
    made["peaks"][3] = -1
    result = objective(made, Progress())
    records, samples = RECORDS, 1000
    with torch.no_grad():
        drawn = objective.decoder(encode_views(objective.encoder, made)[0][:records]).numpy()
    target = objective.encoder.lead_scale(made["plain"]).numpy()
    whole, near = [], []
    for b in range(records):
        errors, at_peak = [], []
        leads = [lead for lead in range(12) if made["plain"][b, lead].any()]
        for k in range(drawn.shape[2]):
            at = 16 * (k // 2) + (4 if k % 2 else -4)
            if not 0 <= at < min(int(made["n_valid"][b]), samples):
                continue
            error = [(drawn[b, i, k] - target[b, i, max(at - 4, 0) : at + 5].mean()) ** 2 for i in leads]
            errors += error
            if any(p >= 0 and abs(at - int(p)) <= 30 for p in made["peaks"][b]):
                at_peak += error
        whole.append(np.mean(errors))
        near += [np.mean(at_peak)] if at_peak else []
    assert 0 < len(near) < records
    assert float(result.means["signal/loss"]) == pytest.approx(np.mean(whole), rel=1e-6)
    assert float(result.means["peak/loss"]) == pytest.approx(np.mean(near), rel=1e-6)
    total = result.means["record/loss"] + 0.2 * result.means["signal/loss"] + 0.1 * result.means["peak/loss"]
    assert float(result.loss) == pytest.approx(float(total), rel=1e-5)


def test_an_error_far_from_every_peak_is_none_of_peaks() -> None:
    squared = torch.zeros(1, 12, 40)
    squared[..., 20:] = 3.0
    near = torch.zeros(1, 40, dtype=torch.bool)
    near[:, 5:10] = True
    leads = torch.ones(1, 12, dtype=torch.bool)
    assert [float(part) for part in region_error(squared, leads, near)] == [0.0, 1.0]
    assert float(region_error(squared, leads, ~near & True)[0]) == pytest.approx(3.0 * 20 / 35)
    assert [float(part) for part in region_error(squared, leads, near & False)] == [0.0, 0.0]


@pytest.mark.parametrize(("stage", "parts"), [(Stage(8, 16), 2), (Stage(8, 8), 1), (Stage(8, 25), 3), (Stage(8, 4), 1)])
def test_the_decoder_draws_at_62_hz_around_its_cells(stage: Stage, parts: int) -> None:
    decoder = SignalDecoder(stage, 4)
    cells = -(-1000 // stage.stride)
    assert decoder(torch.zeros(2, 8, cells)).shape == (2, 12, cells * parts)
    positions = decoder.sample_positions(cells, torch.device("cpu"))
    middles = positions.view(cells, parts).double().mean(1)
    np.testing.assert_allclose(middles, np.arange(cells) * stage.stride, atol=0.5)
    assert (positions.diff() > 0).all() and decoder.step_smp == pytest.approx(stage.stride / parts)
    ramp = torch.arange(1000.0, dtype=torch.float64).expand(1, 12, 1000)
    inside = (positions > 10) & (positions < 989)  # the mean around a sample of a ramp is the ramp
    torch.testing.assert_close(low_rate(ramp, positions, decoder.step_smp)[0, 3, inside], positions[inside].double())


def test_without_weights_nothing_is_drawn_and_no_decoder_is_made() -> None:
    objective = built(**ALONE)
    assert not hasattr(objective, "decoder") and "plain" not in views(objective)
    assert unit_rows(torch.zeros(0, 3)).shape == (0, 3)
    only_peaks = built(signal_weight=0.0)
    only_peaks(views(only_peaks), Progress()).loss.backward()
    assert all(p.grad is not None for p in only_peaks.parameters())
