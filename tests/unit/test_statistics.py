"""Paired tests against scipy, and the refusal to call anything significant that the number of runs cannot support."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from torch import nn, zeros

from beatray.evaluate.statistics import (
    MOST_EXACT,
    compare,
    friedman_p,
    hodges_lehmann,
    rank_biserial,
    runs_needed,
    signed_rank_p,
    smallest_attainable_p,
)


def fully_separated(runs: int) -> dict[str, np.ndarray]:
    steps = np.linspace(0.001, 0.01, runs)
    return {"a": 0.9 + steps, "b": 0.8 + 0.5 * steps, "c": 0.7 + 0.1 * steps}


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 6])
def test_few_runs_never_report_significance(runs: int) -> None:
    found = compare(fully_separated(runs))
    assert {row.verdict for row in found.comparisons} == {"too few runs"}
    assert all(row.p_bonferroni > 0.05 for row in found.comparisons)
    assert found.refusal is not None and f"{runs} paired runs cannot show a difference" in found.refusal
    assert found.refusal.endswith("It takes 7.")


def test_attainable_p_is_the_one_of_the_exact_test() -> None:
    for runs in (5, 7, 9, 10):
        found = compare(fully_separated(runs))
        assert min(row.p_bonferroni for row in found.comparisons) == pytest.approx(smallest_attainable_p(runs, 3))
    assert smallest_attainable_p(5, 3) == pytest.approx(0.1875)
    assert smallest_attainable_p(10, 3) == pytest.approx(0.00586, abs=1e-5)
    assert runs_needed(3) == 7 and runs_needed(1) == 6


def test_methods_may_be_compared_with_one_of_them_alone() -> None:
    found = compare(fully_separated(10), against="b")
    assert [(row.first, row.second, row.verdict) for row in found.comparisons] == [
        ("a", "b", "better"),
        ("c", "b", "worse"),
    ]
    assert found.smallest_p == pytest.approx(smallest_attainable_p(10, 2))
    with pytest.raises(ValueError, match="d is not one of a, b, c"):
        compare(fully_separated(10), against="d")


def test_enough_runs_tell_separated_methods_apart_and_equal_ones_not() -> None:
    assert {row.verdict for row in compare(fully_separated(10)).comparisons} == {"better"}
    random = np.random.default_rng(0)
    noise = {name: random.normal(0.8, 0.01, 12) for name in "ab"}
    assert compare(noise).comparisons[0].verdict == "not told apart"
    same = compare({"a": np.ones(12), "b": np.ones(12)}).comparisons[0]
    assert same.p == 1.0 and same.rank_biserial == 0.0 and same.hodges_lehmann == 0.0


def test_p_values_are_those_of_scipy() -> None:
    random = np.random.default_rng(1)
    scores = {name: random.normal(mean, 0.02, 11) for name, mean in (("a", 0.80), ("b", 0.82), ("c", 0.81))}
    found = compare(scores)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)
    for row in found.comparisons:
        expected = stats.wilcoxon(scores[row.first], scores[row.second], method="exact").pvalue
        assert row.p == pytest.approx(expected)
        assert row.p <= row.p_holm <= row.p_bonferroni


def test_ties_and_zeros_are_counted_exactly() -> None:
    """Against scipy's exhaustive permutation of signs, which is exact with ties, on up to 12 runs."""
    random = np.random.default_rng(3)
    for runs in (2, 5, 8, 12):
        for _ in range(4):
            difference = random.integers(-3, 6, runs) / 100
            if not difference.any():
                continue
            expected = stats.wilcoxon(difference, zero_method="pratt", method=stats.PermutationMethod()).pvalue
            assert signed_rank_p(difference) == pytest.approx(expected), difference


def test_many_runs_meet_the_normal_approximation() -> None:
    difference = np.random.default_rng(4).normal(0.2, 1.0, MOST_EXACT)
    approximate = stats.wilcoxon(difference, method="asymptotic").pvalue
    exact = stats.wilcoxon(difference, method="exact").pvalue
    assert signed_rank_p(difference) == pytest.approx(exact, rel=1e-9)
    assert exact == pytest.approx(approximate, rel=0.15)
    assert signed_rank_p(np.append(difference, 0.1)) == pytest.approx(approximate, rel=0.2)


def test_effect_sizes() -> None:
    difference = np.array([0.04, 0.01, -0.02, 0.03, 0.0])
    walsh = [(a + b) / 2 for i, a in enumerate(difference) for b in difference[i:]]
    assert hodges_lehmann(difference) == pytest.approx(float(np.median(walsh)))
    # ranks of |d| without the zero: 4, 1, 2, 3; in favour 8, against 2, of 10
    assert rank_biserial(difference) == pytest.approx(0.6)
    assert rank_biserial(-difference) == pytest.approx(-0.6)
    assert rank_biserial(np.full(4, 0.1)) == 1.0


def test_without_friedman_no_pair_is_better() -> None:
    """One pair looks different among six methods that Friedman's test does not tell apart."""
    random = np.random.default_rng(0)
    for _ in range(400):
        scores = {name: random.normal(0.8, 0.01, 10) for name in "abcdef"}
        scores["b"] = scores["a"] - np.abs(random.normal(0.0005, 0.0001, 10))
        found = compare(scores)
        separated = next(c for c in found.comparisons if (c.first, c.second) == ("a", "b"))
        assert separated.p_bonferroni <= 0.05
        assert found.friedman_p is not None
        if found.friedman_p > 0.05:
            assert separated.verdict == "not told apart"
            return
    raise AssertionError("no draw passed Friedman's test by")


def test_friedman_with_nothing_to_rank() -> None:
    assert friedman_p([np.ones(5)] * 3) == 1.0
    assert friedman_p([np.array([1.0]), np.array([2.0]), np.array([3.0])]) == 1.0
    with pytest.raises(ValueError, match="same number"):
        compare({"a": [], "b": []})


def test_unpaired_or_missing_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="same number"):
        compare({"a": [1.0, 2.0], "b": [1.0]})
    with pytest.raises(ValueError, match="finite"):
        compare({"a": [1.0, np.nan], "b": [1.0, 2.0]})


def test_length_of_the_ecg_fm_convolution_stack() -> None:
    """Four convolutions of kernel and stride 2 turn 5 s at 500 Hz into 156 tokens of 32 ms, as published."""
    stack = nn.Sequential(*[nn.Conv1d(12 if layer == 0 else 4, 4, 2, stride=2) for layer in range(4)])
    assert stack(zeros(1, 12, 2500)).shape[-1] == 156


def test_holm_decides_what_bonferroni_would_miss() -> None:
    draw = np.random.default_rng(12)
    level = np.full(10, 0.8)
    scores = {name: level + 0.02 + draw.normal(0, 0.002, 10) for name in "ab"}
    scores |= {"c": level + draw.normal(0.003, 0.004, 10), "d": level + draw.normal(0, 0.0005, 10)}
    found = compare(scores, against="d")
    close = next(row for row in found.comparisons if row.first == "c")
    assert close.p_holm <= 0.05 < close.p_bonferroni and found.friedman_p is not None and found.friedman_p < 0.001
    assert close.verdict == "better"
