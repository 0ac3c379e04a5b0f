"""Scores of the two tasks: multilabel classification and wave segmentation.

Why our own: the averaging is what papers differ in, so it is written out here. Macro AUROC skips a class that has one
value only in the test part and reports how many it counted. Segmentation F1 pools the samples of all records before the
ratio; Dice takes the ratio per record and averages after it (for one class of one record the two are the same number).

Contract: truth and predictions are plain arrays, never probabilities where a decision is meant; `n` records, `c`
classes, `t` samples. Undefined scores are NaN and are left out of averages. Nothing here touches thresholds of the
test part: `best_thresholds` is for training or validation scores only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

IGNORE = -1
"""Value of a sample, or of a class of a record, that is not known and that no score counts."""

DEFAULT_THRESHOLD = 0.5

Truth = NDArray[np.bool_] | NDArray[np.int8]
"""Classes of records, (n, c): bool where all are known, else int8 of 1, 0 and `IGNORE`."""


@dataclass(frozen=True, slots=True)
class MacroScore:
    """A mean over classes: `value`, how many classes it `counted`, and the score of each (NaN where undefined)."""

    value: float
    counted: int
    per_class: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SegmentCounts:
    """Samples per record and wave class, (n, c) int64 each: in both, in the truth, in the prediction."""

    both: NDArray[np.int64]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]


def auroc(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve of one class as the Mann-Whitney statistic, ties counted half; NaN for one value only.

    `truth` (n,) bool, `score` (n,) any monotone score.
    """
    positives = int(np.count_nonzero(truth))
    negatives = truth.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = float(rankdata(score)[np.asarray(truth, bool)].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def macro_auroc(truth_nc: Truth, score_nc: NDArray[np.float64]) -> MacroScore:
    """Mean AUROC over the classes that have both values; (n, c) each."""
    return _macro([auroc(*_known(truth_nc[:, k], score_nc[:, k])) for k in range(truth_nc.shape[1])])


def average_precision(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the precision-recall curve of one class as the sum of (R_k - R_k-1) P_k; NaN without positives.

    No interpolation, records of one score enter together, also of an infinite one; a score that is NaN ranks nowhere
    and makes the area NaN. It is compared with the prevalence, not with 0.5.
    """
    positives = int(np.count_nonzero(truth))
    if positives == 0 or np.isnan(score).any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.append(changes(score[order]), True))
    hits = np.cumsum(np.asarray(truth, bool)[order])[last_of_tie]
    return float((np.diff(hits, prepend=0) * hits / (last_of_tie + 1)).sum() / positives)


def changes(ranked: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Between sorted scores (n,), where the next is another one, (n - 1,): infinities of one sign are equal."""
    return np.asarray(ranked[1:] != ranked[:-1])


def macro_average_precision(truth_nc: Truth, score_nc: NDArray[np.float64]) -> MacroScore:
    """Mean average precision over the classes that have both values, the same ones as `macro_auroc`."""
    columns = [_known(truth_nc[:, k], score_nc[:, k]) for k in range(truth_nc.shape[1])]
    both = [bool(truth.any() and not truth.all()) for truth, _ in columns]
    scores = [average_precision(*column) for column in columns]
    return _macro(np.where(both, np.asarray(scores, np.float64), np.nan))


def f1_per_class(truth_nc: Truth, predicted_nc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 of each class (c,): 2 TP / (2 TP + FP + FN); NaN where a class is neither present nor predicted."""
    truth, predicted = truth_nc == 1, np.asarray(predicted_nc, bool) & (truth_nc != IGNORE)
    return _ratio(2.0 * (truth & predicted).sum(axis=0), truth.sum(axis=0) + predicted.sum(axis=0))


def macro_f1(truth_nc: Truth, predicted_nc: NDArray[np.bool_]) -> MacroScore:
    """Mean F1 over the classes present in the truth: with none of a class to find there is no F1 to average."""
    scores = f1_per_class(truth_nc, predicted_nc)
    return _macro(np.where((truth_nc == 1).any(axis=0), scores, np.nan))


def best_thresholds(truth_nc: Truth, score_nc: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per class the score threshold (c,) with the highest F1 on this data; `predicted = score >= threshold`.

    The threshold lies midway between two neighbouring scores, so it does not hug the record that set it. Among equal
    F1 the one nearest to 0.5 wins; a class without positives gets 0.5. Give it training or validation scores only.
    """
    return np.array([_best_threshold(*_known(truth_nc[:, k], score_nc[:, k])) for k in range(truth_nc.shape[1])])


def segment_counts(truth_nt: NDArray[np.int8], predicted_nt: NDArray[np.int8], n_classes: int = 3) -> SegmentCounts:
    """Count samples per record and class 1..`n_classes` (0 is background) where truth is not `IGNORE`.

    Both (n, t). Raises ValueError for different shapes: a silent broadcast would score the wrong samples.
    """
    if truth_nt.shape != predicted_nt.shape:
        raise ValueError(f"truth {truth_nt.shape} and prediction {predicted_nt.shape} differ in shape")
    scored = truth_nt != IGNORE
    both, truth, predicted = (np.zeros((len(truth_nt), n_classes), np.int64) for _ in range(3))
    for k in range(n_classes):
        in_truth = (truth_nt == k + 1) & scored
        in_prediction = (predicted_nt == k + 1) & scored
        both[:, k] = (in_truth & in_prediction).sum(axis=1)
        truth[:, k] = in_truth.sum(axis=1)
        predicted[:, k] = in_prediction.sum(axis=1)
    return SegmentCounts(both, truth, predicted)


def pooled_f1(counts: SegmentCounts) -> MacroScore:
    """F1 per wave class from the counts summed over all records, and their mean."""
    marked = counts.truth.sum(axis=0) + counts.predicted.sum(axis=0)
    return _macro(_ratio(2.0 * counts.both.sum(axis=0), marked))


def record_dice(counts: SegmentCounts) -> NDArray[np.float64]:
    """Dice of each record (n,): mean over its wave classes; a class neither marked nor predicted is left out."""
    dice = _ratio(2.0 * counts.both, counts.truth + counts.predicted)
    known = ~np.isnan(dice)
    return _ratio(np.where(known, dice, 0.0).sum(axis=1), known.sum(axis=1))


def dice_per_class(counts: SegmentCounts) -> NDArray[np.float64]:
    """Mean over records of the Dice of each wave class (c,); a record without that wave on either side is left out."""
    dice = _ratio(2.0 * counts.both, counts.truth + counts.predicted)
    return np.array([mean_of_known(dice[:, k]) for k in range(dice.shape[1])])


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Mean without the NaN; NaN if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _known(truth: Truth, score: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """One class (n,) at the records where it is known."""
    if truth.dtype == np.bool_:
        return truth.astype(np.bool_, copy=False), score
    known = truth != IGNORE
    return truth[known] == 1, score[known]


def _macro(scores: list[float] | NDArray[np.float64]) -> MacroScore:
    per_class = np.asarray(scores, np.float64)
    return MacroScore(mean_of_known(per_class), int(np.count_nonzero(~np.isnan(per_class))), per_class)


def _ratio(top: NDArray[Any], bottom: NDArray[np.int64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)
    return quotient


def _best_threshold(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    positives = int(np.count_nonzero(truth))
    if positives == 0:
        return DEFAULT_THRESHOLD
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(np.asarray(truth, bool)[order])
    last_of_tie = np.append(changes(ranked), True)
    f1 = 2.0 * hits / (np.arange(1, score.size + 1) + positives)
    following = np.append(ranked[1:], min(ranked[-1], 0.0))
    middle = (ranked + following) / 2
    best = np.flatnonzero(last_of_tie & (f1 >= f1[last_of_tie].max() - 1e-12))
    return float(middle[best[np.argmin(np.abs(middle[best] - DEFAULT_THRESHOLD))]])
