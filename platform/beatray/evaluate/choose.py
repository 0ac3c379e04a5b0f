"""Which hyper-parameter and which thresholds: chosen on validation records, never on test ones.

Two kinds of validation. `inner_folds`: patient-grouped cross-validation inside the training part; every training
record is scored once by a model that has not seen its patient. `held_out`: records of their own, as PTB-XL's fold 9
(Strodthoff et al., IEEE JBHI 25:1519, 2021, section II). The candidate with the highest macro AUROC on the records so
scored wins, the first of equals; its scores there set the threshold of each class for F1. It is then fitted anew on
the whole training part.

Contract: `fit(x, y, candidates)` trains one model per candidate and returns a function from features (m, d) to one
array of probabilities (m, c) per candidate. Truth is read at training and validation records only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.evaluate.split import Index, patient_folds

Candidate = TypeVar("Candidate")
Scores = NDArray[np.float64]
Features = NDArray[np.float32]
Scorer = Callable[[Features], list[Scores]]
Fit = Callable[[Features, NDArray[np.bool_], Sequence[Any]], Scorer]
Folds = list[tuple[Index, Index]]
"""Pairs of records: fit on the first, score the second."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model of the chosen candidate, the thresholds (c,) and the macro AUROC that validation gave it."""

    scores: Callable[[Features], Scores]
    thresholds: NDArray[np.float64]
    candidate: Any
    validation_auroc: float


def inner_folds(patients: Sequence[str | None], train: Index, n_folds: int, seed: int) -> Folds:
    """Folds of the training part, by patient."""
    return [(train[fit_on], train[held]) for fit_on, held in patient_folds(patients, train, n_folds, seed)]


def held_out(train: Index, validation: Index) -> Folds:
    """One fold: all of the training part, and the validation records."""
    return [(train, validation)]


def choose_and_fit(
    fit: Fit, candidates: Sequence[Any], features: Features, truth: NDArray[np.bool_], train: Index, folds: Folds
) -> Chosen:
    """Judge all candidates on the folds, fit the best on `train`. Raises ValueError without a candidate."""
    if not candidates:
        raise ValueError("no candidate to choose from")
    scored = [fit(features[a], truth[a], candidates)(features[b]) for a, b in folds]
    found = [np.concatenate([fold[k] for fold in scored]) for k in range(len(candidates))]
    best, thresholds, reached = judge(found, truth[np.concatenate([b for _, b in folds])])
    scorer = fit(features[train], truth[train], [candidates[best]])
    return Chosen(lambda x: scorer(x)[0], thresholds, candidates[best], reached)


def judge(scores: Sequence[Scores], truth: NDArray[np.bool_]) -> tuple[int, NDArray[np.float64], float]:
    """Position, thresholds and macro AUROC of the best of several arrays of scores of the same records."""
    reached = [macro_auroc(truth, each).value for each in scores]
    best = 0
    for position, value in enumerate(reached):
        if value > reached[best] or (np.isnan(reached[best]) and not np.isnan(value)):
            best = position
    return best, best_thresholds(truth, scores[best]), reached[best]
