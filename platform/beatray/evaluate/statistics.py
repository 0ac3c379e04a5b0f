"""Paired comparison of methods over runs, and an honest refusal where the runs are too few.

Friedman's test asks whether any method differs; then Wilcoxon's signed-rank test, exact and two-sided, compares each
pair, corrected for the number of pairs by Bonferroni and by Holm (Demsar, JMLR 7:1-30, 2006). With n runs the smallest
p that Wilcoxon's test can reach at all is 2^(1-n); if that, times the number of comparisons, lies above alpha, no data
could be significant, and the verdict says so instead of "not significant".

Contract: scores are (n runs,) per method, paired by position (same split, same seed); finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair: raw and corrected p, the median difference (first - second) and the matched-pairs rank correlation."""

    first: str
    second: str
    median_difference: float
    rank_correlation: float  # -1..1, Kerby 2014
    p: float
    p_bonferroni: float
    p_holm: float
    verdict: str  # "better", "worse", "not told apart" or "too few runs"


@dataclass(frozen=True, slots=True)
class Statistics:
    """All pairs of one comparison of methods; `friedman_p` is None with fewer than three methods."""

    runs: int
    friedman_p: float | None
    smallest_p: float  # the smallest corrected p that this many runs can reach
    comparisons: tuple[Comparison, ...]


def smallest_attainable_p(runs: int, comparisons: int) -> float:
    """The smallest Bonferroni-corrected two-sided p of the exact signed-rank test: 2^(1-n) times the comparisons."""
    return min(1.0, 2.0 ** (1 - runs) * comparisons)


def runs_needed(comparisons: int, alpha: float = ALPHA) -> int:
    """The fewest paired runs that could reach `alpha` after correction."""
    runs = 1
    while smallest_attainable_p(runs, comparisons) > alpha:
        runs += 1
    return runs


def compare(scores: Mapping[str, ArrayLike], alpha: float = ALPHA) -> Statistics:
    """Compare all pairs of methods. Raises ValueError for fewer than two methods, unpaired or non-finite scores."""
    names = list(scores)
    values = {name: np.asarray(scores[name], np.float64) for name in names}
    lengths = {len(runs) for runs in values.values()}
    if len(names) < 2 or len(lengths) != 1:
        raise ValueError("compare needs at least two methods with the same number of paired runs")
    if not all(np.isfinite(runs).all() for runs in values.values()):
        raise ValueError("every score must be finite: a failed run must be repeated, not left out of its pair")
    n = lengths.pop()
    pairs = list(combinations(names, 2))
    smallest = smallest_attainable_p(n, len(pairs))
    raw = [_wilcoxon(values[a] - values[b]) for a, b in pairs]
    bonferroni = [min(1.0, p * len(pairs)) for p in raw]
    holm = _holm(raw)
    rows = []
    for (a, b), p, p_bonferroni, p_holm in zip(pairs, raw, bonferroni, holm, strict=True):
        difference = values[a] - values[b]
        correlation = _rank_correlation(difference)
        if smallest > alpha:
            verdict = "too few runs"
        elif p_bonferroni <= alpha:
            verdict = "better" if correlation > 0 else "worse"
        else:
            verdict = "not told apart"
        median = float(np.median(difference))
        rows.append(Comparison(a, b, median, correlation, p, p_bonferroni, p_holm, verdict))
    friedman = float(stats.friedmanchisquare(*values.values()).pvalue) if len(names) > 2 else None
    return Statistics(n, friedman, smallest, tuple(rows))


def _wilcoxon(difference: NDArray[np.float64]) -> float:
    """Two-sided p, exact without ties; zero differences are ranked, then dropped (Pratt 1959); 1 if all are zero."""
    if not difference.any():
        return 1.0
    tied = len(np.unique(np.abs(difference))) < len(difference) or bool((difference == 0).any())
    return float(stats.wilcoxon(difference, zero_method="pratt", method="auto" if tied else "exact").pvalue)


def _holm(raw: list[float]) -> list[float]:
    """Step-down corrected p values, in the order given (Holm 1979)."""
    corrected = [0.0] * len(raw)
    worst = 0.0
    for rank, position in enumerate(np.argsort(raw, kind="stable").tolist()):
        worst = max(worst, min(1.0, raw[position] * (len(raw) - rank)))
        corrected[position] = worst
    return corrected


def _rank_correlation(difference: NDArray[np.float64]) -> float:
    kept = difference[difference != 0]
    if len(kept) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(kept))
    return float((ranks * np.sign(kept)).sum() / ranks.sum())
