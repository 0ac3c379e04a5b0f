"""Paired tests against scipy, and the refusal to call anything significant that the number of runs cannot support."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from torch import nn, zeros

from beatray.evaluate.statistics import compare, runs_needed, smallest_attainable_p


def fully_separated(runs: int) -> dict[str, np.ndarray]:
    steps = np.linspace(0.001, 0.01, runs)
    return {"a": 0.9 + steps, "b": 0.8 + 0.5 * steps, "c": 0.7 + 0.1 * steps}


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 6])
def test_few_runs_never_report_significance(runs: int) -> None:
    found = compare(fully_separated(runs))
    assert {row.verdict for row in found.comparisons} == {"too few runs"}
    assert all(row.p_bonferroni > 0.05 for row in found.comparisons)


def test_attainable_p_is_the_one_of_the_exact_test() -> None:
    for runs in (5, 7, 9, 10):
        found = compare(fully_separated(runs))
        assert min(row.p_bonferroni for row in found.comparisons) == pytest.approx(smallest_attainable_p(runs, 3))
    assert smallest_attainable_p(5, 3) == pytest.approx(0.1875)
    assert smallest_attainable_p(10, 3) == pytest.approx(0.00586, abs=1e-5)
    assert runs_needed(3) == 7 and runs_needed(1) == 6


def test_enough_runs_tell_separated_methods_apart_and_equal_ones_not() -> None:
    assert {row.verdict for row in compare(fully_separated(10)).comparisons} == {"better"}
    random = np.random.default_rng(0)
    noise = {name: random.normal(0.8, 0.01, 12) for name in "ab"}
    assert compare(noise).comparisons[0].verdict == "not told apart"
    same = compare({"a": np.ones(12), "b": np.ones(12)}).comparisons[0]
    assert same.p == 1.0 and same.rank_correlation == 0.0


def test_p_values_are_those_of_scipy() -> None:
    random = np.random.default_rng(1)
    scores = {name: random.normal(mean, 0.02, 11) for name, mean in (("a", 0.80), ("b", 0.82), ("c", 0.81))}
    found = compare(scores)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)
    for row in found.comparisons:
        expected = stats.wilcoxon(scores[row.first], scores[row.second], method="exact").pvalue
        assert row.p == pytest.approx(expected)
        assert row.p <= row.p_holm <= row.p_bonferroni


def test_unpaired_or_missing_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="same number"):
        compare({"a": [1.0, 2.0], "b": [1.0]})
    with pytest.raises(ValueError, match="finite"):
        compare({"a": [1.0, np.nan], "b": [1.0, 2.0]})


def test_length_of_the_ecg_fm_convolution_stack() -> None:
    """Four convolutions of kernel and stride 2 turn 5 s at 500 Hz into 156 tokens of 32 ms, as published."""
    stack = nn.Sequential(*[nn.Conv1d(12 if layer == 0 else 4, 4, 2, stride=2) for layer in range(4)])
    assert stack(zeros(1, 12, 2500)).shape[-1] == 156
