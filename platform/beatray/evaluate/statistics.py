"""Paired comparison of methods over runs, and an honest refusal where the runs are too few.

Friedman's test asks whether any of three or more methods differs; only then Wilcoxon's signed-rank test, exact and
two-sided, compares each pair, corrected for the number of pairs by Bonferroni and by Holm (Demsar, JMLR 7:1-30, 2006).
Holm's p decides: it is never the larger one and keeps the same rate of errors.
Beside every p stand two effect sizes: the matched-pairs rank-biserial correlation, from -1 (the second is always
better) to 1 (Kerby, Comprehensive Psychology 3:1, 2014), and the Hodges-Lehmann estimate of the shift, the median of
all means of two differences, in the units of the score (Annals of Mathematical Statistics 34:598-611, 1963).

With n runs the smallest p that Wilcoxon's test can reach at all is 2^(1-n); if that, times the number of comparisons,
lies above alpha, no data could be significant, and the verdict states that instead of "not significant".

Contract: scores are (n runs,) per method, paired by position (same split, same seed); finite. Differences
count to 9 decimals, so that what is a tie in decimal text is one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALPHA = 0.05
DECIMALS = 9
MOST_EXACT = 200
"""Runs up to which p is exact; beyond, the normal approximation is as good."""

TOO_FEW, NOT_TOLD_APART = "too few runs", "not told apart"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair: raw and corrected p, and how large the difference (first - second) is."""

    first: str
    second: str
    median_difference: float
    hodges_lehmann: float
    rank_biserial: float  # -1..1
    p: float
    p_bonferroni: float
    p_holm: float
    verdict: str  # "better", "worse", NOT_TOLD_APART or TOO_FEW


@dataclass(frozen=True, slots=True)
class Statistics:
    """All pairs of one comparison of methods; `friedman_p` is None with fewer than three methods."""

    runs: int
    alpha: float
    friedman_p: float | None
    smallest_p: float  # the smallest corrected p that this many runs can reach
    comparisons: tuple[Comparison, ...]

    @property
    def refusal(self) -> str | None:
        """Why nothing may be called significant, or None where the number of runs allows it."""
        if self.smallest_p <= self.alpha:
            return None
        pairs = len(self.comparisons)
        runs, asked = ("s" if number > 1 else "" for number in (self.runs, pairs))
        return (
            f"{self.runs} paired run{runs} cannot show a difference at {self.alpha:g}: with {pairs} comparison{asked} "
            f"the smallest p they can give is {self.smallest_p:.2g}, whatever the scores. It takes "
            f"{runs_needed(pairs, self.alpha)}."
        )


def smallest_attainable_p(runs: int, comparisons: int) -> float:
    """The smallest Bonferroni-corrected two-sided p of the exact signed-rank test: 2^(1-n) times the comparisons."""
    return min(1.0, 2.0 ** (1 - runs) * comparisons)


def runs_needed(comparisons: int, alpha: float = ALPHA) -> int:
    """The fewest paired runs that could reach `alpha` after correction."""
    runs = 1
    while smallest_attainable_p(runs, comparisons) > alpha:
        runs += 1
    return runs


def compare(scores: Mapping[str, ArrayLike], alpha: float = ALPHA, against: str | None = None) -> Statistics:
    """Compare all pairs of methods, or each with the one named `against`, which then is the second of every pair.

    Raises ValueError for fewer than two methods, unpaired or non-finite scores, no runs, or an alpha outside 0..1.
    """
    names = list(scores)
    values = {name: np.asarray(scores[name], np.float64) for name in names}
    lengths = {len(runs) for runs in values.values()}
    if against is not None and against not in values:
        raise ValueError(f"{against} is not one of {', '.join(names)}")
    if len(names) < 2 or len(lengths) != 1 or lengths == {0}:
        raise ValueError("compare needs at least two methods with the same number of paired runs")
    if not all(np.isfinite(runs).all() for runs in values.values()):
        raise ValueError("every score must be finite: a failed run must be repeated, not left out of its pair")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    n = lengths.pop()
    pairs = list(combinations(names, 2)) if against is None else [(name, against) for name in names if name != against]
    smallest = smallest_attainable_p(n, len(pairs))
    differences = [np.round(values[a] - values[b], DECIMALS) for a, b in pairs]
    raw = [signed_rank_p(difference) for difference in differences]
    friedman = friedman_p(list(values.values())) if len(names) > 2 else None
    rows = []
    for (a, b), difference, p, p_holm in zip(pairs, differences, raw, holm(raw), strict=True):
        effect = rank_biserial(difference)
        bonferroni = min(1.0, p * len(pairs))
        if smallest > alpha:
            verdict = TOO_FEW
        elif p_holm <= alpha and (friedman is None or friedman <= alpha):
            verdict = "better" if effect > 0 else "worse"
        else:
            verdict = NOT_TOLD_APART
        median = float(np.median(difference))
        rows.append(Comparison(a, b, median, hodges_lehmann(difference), effect, p, bonferroni, p_holm, verdict))
    return Statistics(n, alpha, friedman, smallest, tuple(rows))


def signed_rank_p(difference: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over differences (n,); 1 if all are zero.

    Zero differences are ranked, then dropped (Pratt, JASA 54:655-667, 1959); equal ones share their mean rank. Exact
    given these ranks: all 2^n choices of signs are counted.
    """
    kept = difference != 0
    if not kept.any():
        return 1.0
    if len(difference) > MOST_EXACT:
        return float(stats.wilcoxon(difference, zero_method="pratt", method="asymptotic").pvalue)
    doubled = np.rint(2 * stats.rankdata(np.abs(difference)))[kept].astype(np.int64)  # mean ranks are halves
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1.0
    for rank in doubled.tolist():
        ways[rank:] = 0.5 * (ways[rank:] + ways[: len(ways) - rank])
        ways[:rank] *= 0.5
    positive = int(doubled[difference[kept] > 0].sum())
    tail = min(positive, len(ways) - 1 - positive)
    return min(1.0, 2.0 * float(ways[: tail + 1].sum()))


def friedman_p(scores: list[NDArray[np.float64]]) -> float:
    """p of Friedman's test that three or more methods (n,) do not differ; 1 where every run finds them equal."""
    table = np.round(np.stack(scores), DECIMALS)
    if table.shape[1] < 2 or (table == table[0]).all():
        return 1.0
    return float(stats.friedmanchisquare(*table).pvalue)


def holm(raw: list[float]) -> list[float]:
    """Step-down corrected p values, in the order given (Holm, Scandinavian Journal of Statistics 6:65-70, 1979)."""
    corrected = [0.0] * len(raw)
    worst = 0.0
    for rank, position in enumerate(np.argsort(raw, kind="stable").tolist()):
        worst = max(worst, min(1.0, raw[position] * (len(raw) - rank)))
        corrected[position] = worst
    return corrected


def rank_biserial(difference: NDArray[np.float64]) -> float:
    """Share of the rank sum in favour minus that against, zero differences left out; 0 if all are zero."""
    kept = difference[difference != 0]
    if len(kept) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(kept))
    return float((ranks * np.sign(kept)).sum() / ranks.sum())


def hodges_lehmann(difference: NDArray[np.float64]) -> float:
    """Median of the means of all pairs of differences (n,), each with itself included."""
    first, second = np.triu_indices(len(difference))
    return float(np.median((difference[first] + difference[second]) / 2))
