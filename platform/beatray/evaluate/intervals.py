"""How sure a difference is: a paired bootstrap over test patients and seeds.

The spread over seeds says how much a repeat of the training varies; with a few dozen test recordings the larger doubt
is which recordings happened to be tested. Both arms are scored on the same resampled patients with the same resampled
seeds, so what they share cancels (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8 and 13).

The interval does not cover the choice of the training records, and with several comparisons some will exclude zero by
chance: read it as a width, not as a test.

A resample is a row of weights (how often each record was drawn), and every score here is a ratio of sums that are
linear in the weights, so all resamples are scored at once. With weights of one, the scores are those of `metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.metrics import SegmentCounts, record_dice
from beatray.evaluate.results import Decisions

LEVEL = 0.95

Outcome = SegmentCounts | Decisions
Truth = NDArray[np.bool_] | None


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
    first: Sequence[Outcome], second: Sequence[Outcome], truth: Truth, patients: Sequence[str], n_bootstraps: int
) -> dict[str, Interval]:
    """Mean over seeds of first - second for each score, with its interval.

    `first[s]` and `second[s]` belong to the same seed and the same test records; `patients` names the owner of each.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} runs cannot be paired by seed")
    generator = np.random.default_rng(0x1B0075)
    weights = patient_weights(patients, n_bootstraps, generator)
    everything = np.ones((1, len(patients)))
    seeds = generator.multinomial(len(first), np.full(len(first), 1 / len(first)), n_bootstraps) / len(first)
    intervals = {}
    for name in weighted_scores(first[0], truth, everything):
        pairs = list(zip(first, second, strict=True))
        value = float(np.mean([_gap(a, b, truth, everything, name)[0] for a, b in pairs]))
        resampled = np.stack([_gap(a, b, truth, weights, name) for a, b in pairs], axis=1)
        drawn = np.where(seeds > 0, resampled * seeds, 0.0).sum(axis=1)
        known = drawn[np.isfinite(drawn)]
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known.size > 1 else (np.nan, np.nan)
        intervals[name] = Interval(value, float(low), float(high))
    return intervals


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
        areas = [_weighted_auroc(truth[:, k], outcome.scores[:, k], weights_bn) for k in range(truth.shape[1])]
        decided = outcome.scores >= outcome.thresholds
        f1 = 2 * (weights_bn @ (truth & decided)) / (weights_bn @ (truth.astype(float) + decided))
        present = weights_bn @ truth > 0
        return {"auroc": _mean_known(np.stack(areas, axis=1)), "f1": _mean_known(np.where(present, f1, np.nan))}


def _gap(a: Outcome, b: Outcome, truth: Truth, weights: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    return weighted_scores(a, truth, weights)[name] - weighted_scores(b, truth, weights)[name]


def _weighted_auroc(
    truth: NDArray[np.bool_], score: NDArray[np.float64], weights_bn: NDArray[np.float64]
) -> NDArray[np.float64]:
    order = np.argsort(score, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))
    sorted_weights = weights_bn[:, order]
    positive = np.add.reduceat(sorted_weights * truth[order], ties, axis=1)
    negative = np.add.reduceat(sorted_weights * ~truth[order], ties, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)), np.float64)


def _mean_known(scores_bc: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(scores_bc)
    return np.asarray(np.where(known, scores_bc, 0.0).sum(axis=1) / known.sum(axis=1), np.float64)
