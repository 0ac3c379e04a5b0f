"""The evaluation of a model on a part of a corpus: scores with 95 % intervals over patients, unknown labels left out.

The scores of a yes-or-no target are those of evaluate/metrics.py over the recordings whose label is known; macro scores
are means over the targets for which they are defined. Intervals are percentiles over resampled patients
(evaluate/intervals.py), so the spread of a repeated training is not in them.

Contract: probabilities (n, C), truth (n, C) int8 or (n,) with -1, numbers (n, C) with NaN, all of recordings;
`patients` names the owner of each. A score is {"value", "low", "high"}, null where it is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.intervals import LEVEL, class_scores, own_intervals, patient_weights, row_patients
from beatray.evaluate.metrics import SegmentCounts, segment_counts
from beatray.evaluate.results import Decisions, score
from beatray.evaluate.waves import wave_counts, wave_scores

RESAMPLES = 1000
_SEED = 0x1B0075

Scores = dict[str, Any]


def multilabel_scores(
    probabilities: NDArray[np.float64],
    truth: NDArray[Any],
    thresholds: NDArray[np.float64],
    patients: Sequence[str],
    names: Sequence[str],
) -> Scores:
    """AUROC, average precision and F1 at the thresholds: macro, and of each target."""

    def scored(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        columns = []
        for k in range(truth.shape[1]):
            known = truth[:, k] >= 0
            outcome = Decisions(probabilities[known, k : k + 1], thresholds[k : k + 1])
            columns.append(class_scores(outcome, truth[known, k : k + 1] > 0, weights[:, known]))
        return {name: np.concatenate([column[name] for column in columns], axis=1) for name in columns[0]}

    return _with_intervals(scored, patients, truth >= 0, names)


def class_of_scores(
    probabilities: NDArray[np.float64], truth: NDArray[Any], patients: Sequence[str], names: Sequence[str]
) -> Scores:
    """Accuracy, and of each class against all others AUROC, average precision and F1 of the likeliest class."""
    known = truth >= 0
    chance, hot = probabilities[known], truth[known][:, None] == np.arange(probabilities.shape[1])
    decided = chance.argmax(1)[:, None] == np.arange(chance.shape[1])
    hits = (hot & decided).any(1)

    def scored(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        own = weights[:, known]
        found = class_scores(Decisions(chance, np.full(chance.shape[1], 0.5)), hot, own)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = 2 * (own @ (hot & decided)) / (own @ (hot.astype(float) + decided))
            return {
                **found,
                "f1": np.where(own @ hot > 0, f1, np.nan),
                "accuracy": (own @ hits / own.sum(1))[:, None],
            }

    return _with_intervals(scored, patients, np.repeat(known[:, None], len(names), axis=1), names)


def number_scores(
    predicted: NDArray[np.float64], truth: NDArray[Any], patients: Sequence[str], names: Sequence[str]
) -> Scores:
    """Mean absolute error and R squared of each number, and the mean of R squared: errors of several have no unit."""
    known = np.isfinite(truth)
    target = np.where(known, truth, 0.0).astype(np.float64)
    errors = np.where(known, predicted - target, 0.0)
    centred = np.where(known, target - _medians(truth), 0.0)  # squares of large numbers would cancel

    def scored(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        with np.errstate(invalid="ignore", divide="ignore"):
            count = weights @ known
            spread = weights @ centred**2 / count - (weights @ centred / count) ** 2
            square = weights @ errors**2 / count
            return {"mae": weights @ np.abs(errors) / count, "r2": np.where(spread > 0, 1 - square / spread, np.nan)}

    scores = _with_intervals(scored, patients, known, names)
    if len(names) > 1:
        scores.pop("mae", None)
    return scores


def _medians(truth: NDArray[Any]) -> NDArray[np.float64]:
    """Of the known numbers of each column; 0 where there are none. Of equal numbers it is that number, to the bit."""
    known = [column[np.isfinite(column)].astype(np.float64) for column in truth.T]
    return np.array([np.median(column) if len(column) else 0.0 for column in known])


def wave_scores_of(
    predicted: NDArray[np.int8], truth: NDArray[np.int8], patients: Sequence[str], starts: NDArray[np.int64]
) -> Scores:
    """F1 of samples and Dice with intervals, and how well the waves and their ends were found. Both (n, M, 5000).

    Rows are windows; recordings, of `patients`, begin at `starts`.
    """
    if not len(truth):
        return {"f1": _score(np.nan, np.nan, np.nan), "dice": _score(np.nan, np.nan, np.nan), "waves": {}}
    flat_truth, flat = (masks.reshape(-1, masks.shape[-1]) for masks in (truth, predicted))
    found = segment_counts(flat_truth, flat)
    by_window = (each.reshape(len(truth), -1, each.shape[1]) for each in (found.both, found.truth, found.predicted))
    counts = SegmentCounts(*(np.add.reduceat(each, starts).reshape(-1, each.shape[2]) for each in by_window))
    owners = row_patients(patients, len(counts.both))
    means: Scores = {
        name: _score(each.value, each.low, each.high)
        for name, each in own_intervals([counts], None, owners, RESAMPLES).items()
    }
    by_wave = {name: value for name, value in score(counts, None).items() if name not in means}
    by_wave |= wave_scores(wave_counts(flat_truth, flat))
    return {**means, "waves": {name: _finite(value) for name, value in by_wave.items()}}


def _with_intervals(scored: Any, patients: Sequence[str], known: NDArray[np.bool_], names: Sequence[str]) -> Scores:
    """Macro scores and, under `each`, those of every output, whose labels are `known` (n, C)."""
    if not len(patients):
        return {"each": {}}
    owners = np.asarray(patients, np.str_)
    several = [len(np.unique(owners[column])) > 1 for column in known.T]
    together = len(np.unique(owners[known.any(axis=1)])) > 1
    plain = scored(np.ones((1, len(patients))))
    drawn = scored(patient_weights(patients, RESAMPLES, np.random.default_rng(_SEED)))
    scores: Scores = {name: _interval(_mean(plain[name]), _mean(drawn[name]), together) for name in plain}
    scores["each"] = {
        output: {
            name: _interval(plain[name][:, k], drawn[name][:, k], several[k])
            for name in plain
            if plain[name].shape[1] == len(names)
        }
        for k, output in enumerate(names)
    }
    return scores


def _interval(plain: NDArray[np.float64], drawn: NDArray[np.float64], several: bool) -> dict[str, float | None]:
    """No interval unless there are `several` patients to draw from: a width of zero would pass for certainty."""
    known = drawn[np.isfinite(drawn)] if several else drawn[:0]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known.size > 1 else (np.nan, np.nan)
    return _score(float(plain[0]), float(low), float(high))


def _mean(scores_bc: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the outputs for which a score is defined."""
    known = np.isfinite(scores_bc)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, scores_bc, 0.0).sum(1) / known.sum(1), np.float64)


def _score(value: float, low: float, high: float) -> dict[str, float | None]:
    return {"value": _finite(value), "low": _finite(low), "high": _finite(high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
