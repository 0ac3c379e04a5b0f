"""The logistic probe: what a linear reader finds in frozen features.

Standardised features, one L2 logistic regression per class, one penalty for all classes. Penalty and thresholds come
from patient-grouped inner cross-validation on the training part alone: every training record is scored once by a model
that has not seen its patient, and those out-of-fold scores choose both.

Contract: features (n, d) may hold NaN (measured features do): they are replaced by the training median. Scores are
probabilities (n, c). A class with one value in the training part scores its prevalence everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.evaluate.split import Index, patient_folds

MAX_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Test scores (n_test, c), the thresholds (c,) of the training part, the chosen inverse penalty, inner AUROC."""

    scores: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    inverse_penalty: float
    inner_auroc: float


def probe(
    features: NDArray[np.float32],
    truth: NDArray[np.bool_],
    patients: Sequence[str | None],
    train: Index,
    test: Index,
    inverse_penalties: Sequence[float],
    n_folds: int,
    seed: int,
) -> ProbeResult:
    """Fit on the records `train`, score the records `test`; `truth` is read at `train` only."""
    with threadpool_limits(1):  # matrices this small are many times slower when BLAS splits them
        return _probe(features[train], truth[train], patients, train, features[test], inverse_penalties, n_folds, seed)


def _probe(
    x: NDArray[np.float32],
    y: NDArray[np.bool_],
    patients: Sequence[str | None],
    train: Index,
    x_test: NDArray[np.float32],
    inverse_penalties: Sequence[float],
    n_folds: int,
    seed: int,
) -> ProbeResult:
    folds = patient_folds(patients, train, n_folds, seed)
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for inverse_penalty in sorted(inverse_penalties):
        out_of_fold = np.empty(y.shape, np.float64)
        for fit_on, held_out in folds:
            out_of_fold[held_out] = fit_scores(x[fit_on], y[fit_on], x[held_out], inverse_penalty)
        reached = macro_auroc(y, out_of_fold).value
        if best is None or reached > best[0]:  # ties keep the stronger penalty
            best = (reached, inverse_penalty, out_of_fold)
    if best is None:
        raise ValueError("no penalty to choose from: evaluate.inverse_penalties is empty")
    inner_auroc, chosen, out_of_fold = best
    scores = fit_scores(x, y, x_test, chosen)
    return ProbeResult(scores, best_thresholds(y, out_of_fold), chosen, inner_auroc)


def fit_scores(
    x_train: NDArray[np.float32], y_train: NDArray[np.bool_], x_test: NDArray[np.float32], inverse_penalty: float
) -> NDArray[np.float64]:
    """Probabilities (n_test, c) of one logistic regression per class."""
    prepare = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    fitted, applied = prepare.fit_transform(x_train.astype(np.float64)), prepare.transform(x_test.astype(np.float64))
    scores = np.tile(y_train.mean(axis=0), (len(x_test), 1))
    for k in np.flatnonzero(y_train.any(axis=0) & ~y_train.all(axis=0)):
        model = LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties; cross-validation judges them
            scores[:, k] = model.fit(fitted, y_train[:, k]).predict_proba(applied)[:, 1]
    return scores
