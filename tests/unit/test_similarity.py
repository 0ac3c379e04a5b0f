"""What is logged about soft targets: quantiles of raw and sharpened similarities, against numpy, and warned of once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beatray.commands.pretrain import new_warnings
from beatray.objectives import soft_targets as targets
from beatray.objectives.contrast import unit_rows
from beatray.objectives.row_targets import RowTargets, hard_of, same_ids
from beatray.objectives.soft_targets import QUANTILES, Similarity, others_histogram, quantiles
from beatray.objectives.terms import LossSettings, combine_terms, contrast_term

N = 40
INDEX = torch.arange(2 * N)
RECORD = torch.arange(N).repeat(2)
OWN = targets.own_pairs(RECORD, RECORD, INDEX)
OTHERS = ~(OWN | torch.eye(2 * N, dtype=torch.bool))


def of_records(spread: float) -> torch.Tensor:
    """Raw similarities like those of real feature vectors: squeezed below 1, the same for all views."""
    values = 1.0 + spread * torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
    return targets.soft_1(values[RECORD], values[RECORD], 1.0).raw


@pytest.mark.parametrize("spread", [1e-3, 0.05, 0.5, 2.0])
def test_quantiles_are_those_of_numpy(spread: float) -> None:
    raw = of_records(spread)
    found = quantiles(others_histogram(raw, OWN, INDEX)).numpy()
    expected = np.quantile(raw[OTHERS].numpy(), np.array(QUANTILES) / 100, method="inverted_cdf")
    assert (np.abs(found - expected) <= (1 - expected) / 256 + 1e-6).all(), (found, expected)
    assert (np.diff(found) >= 0).all()


def test_ends_of_the_scale_are_counted() -> None:
    for value in (0.0, 1.0):
        counts = others_histogram(torch.full((2 * N, 2 * N), value, dtype=torch.float64), OWN, INDEX)
        assert int(counts.sum()) == int(OTHERS.sum())
        np.testing.assert_allclose(quantiles(counts), value, atol=0.004)
    nobody = others_histogram(torch.ones(2, 2), ~torch.eye(2, dtype=torch.bool), torch.arange(2))
    assert quantiles(nobody).isnan().all()
    assert (
        quantiles(others_histogram(torch.ones(0, 0), torch.ones(0, 0, dtype=torch.bool), torch.arange(0))).isnan().all()
    )


def test_histograms_of_parts_add_up() -> None:
    raw = of_records(0.1)
    parts = [others_histogram(raw[a:b], OWN[a:b], INDEX[a:b]) for a, b in ((0, 7), (7, 7), (7, 2 * N))]
    torch.testing.assert_close(sum(parts), others_histogram(raw, OWN, INDEX), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["soft_1", "soft_2"])
def test_logs_hold_both_raw_and_sharpened(kind: str) -> None:
    values = torch.rand(N, 6, generator=torch.Generator().manual_seed(2))[RECORD]
    similarity = targets.soft_1(values, values, 50.0) if kind == "soft_1" else targets.soft_2(values, values, 0.5, 20.0)
    reference = similarity.targets(OWN, torch.float32)
    z = unit_rows(torch.randn(2 * N, 8))
    soft = RowTargets(reference, OWN, similarity)
    term = contrast_term("record", 1.0, z, z, INDEX, lambda _: soft, LossSettings(0.1))
    logs = combine_terms([term]).means
    for level in QUANTILES:
        for name, matrix in (("raw", similarity.raw), ("sharp", reference)):
            expected = np.quantile(matrix[OTHERS].numpy(), level / 100, method="inverted_cdf")
            # half a bin of the raw similarity, sharpened
            near = similarity.sharpen(similarity.raw.new_tensor([1 - 1 / 256, 1.0]))
            slack = 0.004 if name == "raw" else 0.01 + float(near[1] - near[0])
            assert float(logs[f"record/{name}_similarity_q{level:02d}"]) == pytest.approx(expected, abs=slack)
    hard = contrast_term("beat", 1.0, z, z, INDEX, hard_of(same_ids(RECORD)), LossSettings(0.1))
    both = combine_terms([hard, term]).means
    assert not [name for name in both if name.startswith("beat/") and "similarity" in name]
    assert both["record/raw_similarity_q50"] == logs["record/raw_similarity_q50"]


def test_power_50_shows_in_the_logs() -> None:
    """The published example: 0.99555 raw is 0.80 sharpened."""
    raw = torch.full((2 * N, 2 * N), 0.99555, dtype=torch.float64)
    found = quantiles(others_histogram(raw, OWN, INDEX))
    assert float(found[2]) == pytest.approx(0.99555, abs=2e-5)
    sharpen = Similarity(raw, lambda s: s.pow(50)).sharpen
    assert float(sharpen(found)[2]) == pytest.approx(0.80, abs=2e-3)


def test_each_warning_is_given_once_and_embeddings_get_time() -> None:
    objective = {"name": "beat_ssl", "rhythm": "soft_1", "exponent": 1.0, "positive_mass": None}
    line = {"step": 0, "loss": None, "record/target_entropy": 0.99, "record/embedding_std": 0.01, "record/rows": 64.0}
    warned: set[str] = set()
    assert ["exponent" in warning for warning in new_warnings(line, objective, 100, warned)] == [True]
    assert list(new_warnings(line, objective, 100, warned)) == []
    assert ["collapsed" in warning for warning in new_warnings(line | {"step": 11}, objective, 100, warned)] == [True]
    assert list(new_warnings(line | {"step": 12}, objective, 100, warned)) == []
