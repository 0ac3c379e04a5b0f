"""How sure a difference is: a paired bootstrap over test patients and seeds.

The spread over seeds shows how much a repeat of the training varies; with a few dozen test recordings the larger doubt
is which recordings happened to be tested. Both variants are scored on the same resampled patients with the same
resampled seeds, so what they share cancels (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8 and 13).

The interval does not cover the choice of the training records, and with several comparisons some will exclude zero by
chance: read it as a width, not as a test.

A resample is a row of weights (how often each record was drawn), and every score here is made of sums that are linear
in the weights, so all resamples are scored at once. With weights of one, the scores are those of `metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.metrics import IGNORE, SegmentCounts, changes, record_dice
from beatray.evaluate.metrics import Truth as ClassTruth
from beatray.evaluate.results import Decisions
from beatray.evaluate.waves import WaveCounts, weighted_wave_scores

LEVEL = 0.95

Outcome = SegmentCounts | Decisions
Truth = ClassTruth | None
Known = dict[tuple[int, int], dict[str, NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference with the percentile interval around it; NaN bounds if it could not be resampled."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether both ends lie on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_differences(
    first: Sequence[Outcome],
    second: Sequence[Outcome],
    truth: Truth,
    patients: Sequence[str],
    n_bootstraps: int,
    known: Known | None = None,
) -> dict[str, Interval]:
    """Mean over seeds of first - second for each score, with its interval.

    `first[s]` and `second[s]` belong to the same seed and the same test records; `patients` names the owner of each.
    `known` remembers what was scored, for several calls on the same outcomes, patients and number of resamples.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} runs cannot be paired by seed")

    def gaps(weights: NDArray[np.float64]) -> list[dict[str, NDArray[np.float64]]]:
        pairs = zip(first, second, strict=True)
        scored = [(_once(a, truth, weights, known), _once(b, truth, weights, known)) for a, b in pairs]
        return [{name: a[name] - b[name] for name in a} for a, b in scored]

    return {
        name: Interval(float(value), float(low), float(high))
        for name, (value, low, high) in _resampled(gaps, len(first), patients, n_bootstraps).items()
    }


def own_intervals(
    outcomes: Sequence[Outcome],
    truth: Truth,
    patients: Sequence[str],
    n_bootstraps: int,
    known: Known | None = None,
) -> dict[str, Interval]:
    """Mean over seeds of each score of one variant, with its interval over test patients and seeds."""

    def scores(weights: NDArray[np.float64]) -> list[dict[str, NDArray[np.float64]]]:
        return [_once(outcome, truth, weights, known) for outcome in outcomes]

    return {
        name: Interval(float(value), float(low), float(high))
        for name, (value, low, high) in _resampled(scores, len(outcomes), patients, n_bootstraps).items()
    }


def class_intervals(
    outcomes: Sequence[Decisions], truth: ClassTruth, patients: Sequence[str], n_bootstraps: int
) -> dict[str, list[Interval]]:
    """The same for each class by itself: score name to one interval per class."""

    def scores(weights: NDArray[np.float64]) -> list[dict[str, NDArray[np.float64]]]:
        return [class_scores(outcome, truth, weights) for outcome in outcomes]

    return _by_column(_resampled(scores, len(outcomes), patients, n_bootstraps))


def wave_intervals(
    counts: Sequence[WaveCounts], patients: Sequence[str], n_bootstraps: int
) -> dict[str, list[Interval]]:
    """The scores of `waves.weighted_wave_scores` as means over seeds: score name to one interval per wave kind."""

    def scores(weights: NDArray[np.float64]) -> list[dict[str, NDArray[np.float64]]]:
        return [weighted_wave_scores(each, weights) for each in counts]

    return _by_column(_resampled(scores, len(counts), patients, n_bootstraps))


def row_patients(patients: Sequence[str], n_rows: int) -> list[str]:
    """The owner of each row of counts: a record has as many rows, one after the other, as it has masks."""
    return [patient for patient in patients for _ in range(n_rows // max(1, len(patients)))]


def _by_column(
    found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]],
) -> dict[str, list[Interval]]:
    return {
        name: [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(value, low, high, strict=True)]
        for name, (value, low, high) in found.items()
    }


def _once(
    outcome: Outcome, truth: Truth, weights: NDArray[np.float64], known: Known | None
) -> dict[str, NDArray[np.float64]]:
    key = (id(outcome), len(weights))
    if known is None:
        return weighted_scores(outcome, truth, weights)
    if key not in known:
        known[key] = weighted_scores(outcome, truth, weights)
    return known[key]


def _resampled(
    scores_of: Callable[[NDArray[np.float64]], list[dict[str, NDArray[np.float64]]]],
    n_seeds: int,
    patients: Sequence[str],
    n_bootstraps: int,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Value and interval of each score; `scores_of(weights)` gives, per seed, arrays of (b,) or (b, c)."""
    generator = np.random.default_rng(0x1B0075)
    weights = patient_weights(patients, n_bootstraps, generator)
    seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_bootstraps) / n_seeds
    plain, drawn = scores_of(np.ones((1, len(patients)))), scores_of(weights)
    found = {}
    for name in plain[0]:
        value = np.mean([each[name][0] for each in plain], axis=0)
        by_seed = np.stack([each[name] for each in drawn], axis=1)  # (b, s) or (b, s, c)
        share = seeds.reshape(seeds.shape + (1,) * (by_seed.ndim - 2))
        mixed = np.where(share > 0, by_seed * share, 0.0).sum(axis=1)
        low, high = _quantiles(mixed)
        if len(set(patients)) < 2:  # nothing to draw from: a width of zero would pass for certainty
            low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
        found[name] = value, low, high
    return found


def _quantiles(drawn: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the interval over the resamples (b,) or (b, c) that are known; NaN with fewer than two."""
    columns = drawn.reshape(len(drawn), -1)
    ends = np.full((2, columns.shape[1]), np.nan)
    for k in range(columns.shape[1]):
        known = columns[np.isfinite(columns[:, k]), k]
        if known.size > 1:
            ends[:, k] = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return ends[0].reshape(drawn.shape[1:]), ends[1].reshape(drawn.shape[1:])


def patient_weights(patients: Sequence[str], n_bootstraps: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each record (b, n) was drawn when patients are drawn with replacement, all their records together."""
    unique, owner = np.unique(np.asarray(patients, np.str_), return_inverse=True)
    drawn = generator.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), n_bootstraps)
    return drawn[:, owner].astype(np.float64)


def weighted_scores(outcome: Outcome, truth: Truth, weights_bn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The main scores of a run for each row of record weights, (b,) each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if isinstance(outcome, SegmentCounts):
            f1 = 2 * (weights_bn @ outcome.both) / (weights_bn @ (outcome.truth + outcome.predicted))
            dice = record_dice(outcome)
            known = ~np.isnan(dice)
            mean_dice = weights_bn[:, known] @ dice[known] / weights_bn[:, known].sum(axis=1)
            return {"f1": _mean_known(f1), "dice": mean_dice}
        if truth is None:
            raise ValueError("classification scores need the truth of the test part")
        return {name: _mean_known(each) for name, each in class_scores(outcome, truth, weights_bn).items()}


def class_scores(
    outcome: Decisions, truth: ClassTruth, weights_bn: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """AUROC, AUPRC and F1 of each class for each row of record weights, (b, c) each; NaN where undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        positive, known = truth == 1, truth != IGNORE
        areas = [
            _weighted_areas(positive[:, k], outcome.scores[:, k], weights_bn)
            if known[:, k].all()
            else _weighted_areas(positive[rows, k], outcome.scores[rows, k], weights_bn[:, rows])
            for k, rows in enumerate(known.T)
        ]
        decided = (outcome.scores >= outcome.thresholds) & known
        f1 = 2 * (weights_bn @ (positive & decided)) / (weights_bn @ (positive.astype(float) + decided))
        present = weights_bn @ positive > 0
        auroc, auprc = (np.stack(curve, axis=1) for curve in zip(*areas, strict=True))
        return {
            "auroc": auroc,
            "auprc": np.where(np.isnan(auroc), np.nan, auprc),
            "f1": np.where(present, f1, np.nan),
        }


def _weighted_areas(
    truth: NDArray[np.bool_], score: NDArray[np.float64], weights_bn: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Area under the ROC and the precision-recall curve of one class for each row of weights, (b,) each."""
    if not len(truth) or np.isnan(score).any():
        unknown = np.full(len(weights_bn), np.nan)
        return unknown, unknown
    order = np.argsort(-score, kind="stable")
    ties = np.flatnonzero(np.append(True, changes(score[order])))
    sorted_weights = weights_bn[:, order]
    positive = np.add.reduceat(sorted_weights * truth[order], ties, axis=1)
    negative = np.add.reduceat(sorted_weights * ~truth[order], ties, axis=1)
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    above = np.cumsum(negative, axis=1)  # wrong ones at or above a score; below it lie the others, and half the ties
    roc = (positive * (negatives[:, None] - above + negative / 2)).sum(axis=1) / (positives * negatives)
    found = np.cumsum(positive, axis=1)
    ranked = found + above
    precision = np.divide(found, ranked, out=np.zeros_like(found), where=ranked > 0)
    return roc, (positive * precision).sum(axis=1) / positives


def _mean_known(scores_bc: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(scores_bc)
    return np.asarray(np.where(known, scores_bc, 0.0).sum(axis=1) / known.sum(axis=1), np.float64)
