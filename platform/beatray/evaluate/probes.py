"""Probes: what a simple reader finds in frozen features, and which of several readers is taken.

`logistic`: one L2 logistic regression per class, one penalty for all classes (linear evaluation). `mlp`: one hidden
layer with dropout for all classes at once, chosen among weight decays. `neighbours`: the share of each class among the
k training records of the most similar features (cosine), chosen among several k; it trains nothing. All three read
features standardised by the training part.

Hyper-parameters and thresholds are chosen on validation records, never on test ones. Two kinds of validation.
`inner_folds`: patient-grouped cross-validation inside the training part; every training record is scored once by a
model that has not seen its patient. `held_out`: records of their own, as PTB-XL's fold 9 (Strodthoff et al., IEEE JBHI
25:1519, 2021, section II). The candidate with the highest macro AUROC on the records so scored wins, the first of
equals; its scores there set the threshold of each class for F1. It is then fitted anew on the whole training part.

Contract: features (n, d) may hold NaN (measured features do): they are replaced by the training median. Scores are
probabilities (n, c). A class with one value in the training part scores its prevalence everywhere. A `Fit` trains one
model per candidate and returns a function from features (m, d) to one array of probabilities (m, c) per candidate.
Truth is read at training and validation records only; a class is learned from
the records where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from beatray.evaluate.logistic import fit_regressions
from beatray.evaluate.metrics import IGNORE, Truth, best_thresholds, macro_auroc
from beatray.evaluate.mlp import train_mlps
from beatray.evaluate.settings import EvaluateSettings, FitSettings
from beatray.evaluate.split import Index, patient_folds

SIMILARITY_ROWS = 256

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


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Test scores (n_test, c), the thresholds (c,) of the training part, the chosen inverse penalty, inner AUROC."""

    scores: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    inverse_penalty: float
    inner_auroc: float


def probe(
    features: Features,
    truth: Truth,
    patients: Sequence[str | None],
    train: Index,
    test: Index,
    inverse_penalties: Sequence[float],
    n_folds: int,
    seed: int,
) -> ProbeResult:
    """The logistic probe chosen inside the training part: fit on the records `train`, score the records `test`."""
    with threadpool_limits(1):  # matrices this small are many times slower when BLAS splits them
        folds = inner_folds(patients, train, n_folds, seed)
        found = choose_and_fit(logistic, sorted(inverse_penalties), features, truth, train, folds)
        return ProbeResult(found.scores(features[test]), found.thresholds, found.candidate, found.validation_auroc)


def chosen_probe(
    protocol: str,
    features: Features,
    truth: Truth,
    train: Index,
    folds: Folds,
    settings: EvaluateSettings,
    seed: int,
) -> Chosen:
    """The probe of a protocol, its candidate chosen on the folds. The candidates are in the settings."""
    chosen = settings.classify
    kinds: dict[str, tuple[Fit, Sequence[float]]] = {
        "linear_probe": (logistic, sorted(settings.C)),  # ties keep the stronger penalty
        "mlp": (mlp_fit(chosen.mlp, seed), sorted(chosen.mlp_weight_decays, reverse=True)),
        "knn": (neighbours, sorted(chosen.k, reverse=True)),  # ties keep the smoother vote
    }
    fit, candidates = kinds[protocol]
    if not candidates:
        raise ValueError(f"no candidate to choose from for {protocol}: its list in the settings is empty")
    with threadpool_limits(1):
        return choose_and_fit(fit, candidates, features, truth, train, folds)


def inner_folds(patients: Sequence[str | None], train: Index, n_folds: int, seed: int) -> Folds:
    """Folds of the training part, by patient."""
    return [(train[fit_on], train[held]) for fit_on, held in patient_folds(patients, train, n_folds, seed)]


def held_out(train: Index, validation: Index) -> Folds:
    """One fold: all of the training part, and the validation records."""
    return [(train, validation)]


def choose_and_fit(
    fit: Fit, candidates: Sequence[Any], features: Features, truth: Truth, train: Index, folds: Folds
) -> Chosen:
    """Judge all candidates on the folds, fit the best on `train`. Raises ValueError without a candidate."""
    if not candidates:
        raise ValueError("no candidate to choose from")
    fit = known_only(fit)
    scored = [fit(features[a], truth[a], candidates)(features[b]) for a, b in folds]
    found = [np.concatenate([fold[k] for fold in scored]) for k in range(len(candidates))]
    best, thresholds, reached = judge(found, truth[np.concatenate([b for _, b in folds])])
    scorer = fit(features[train], truth[train], [candidates[best]])
    return Chosen(lambda x: scorer(x)[0], thresholds, candidates[best], reached)


def judge(scores: Sequence[Scores], truth: Truth) -> tuple[int, NDArray[np.float64], float]:
    """Position, thresholds and macro AUROC of the best of several arrays of scores of the same records."""
    reached = [macro_auroc(truth, each).value for each in scores]
    best = 0
    for position, value in enumerate(reached):
        if value > reached[best] or (np.isnan(reached[best]) and not np.isnan(value)):
            best = position
    return best, best_thresholds(truth, scores[best]), reached[best]


def known_only(fit: Fit) -> Callable[[Features, Truth, Sequence[Any]], Scorer]:
    """The fit for truth that is not known everywhere: classes that are known in the same records are learned together.

    A class that is known in none scores 0.
    """

    def of_known(x: Features, y: Truth, candidates: Sequence[Any]) -> Scorer:
        if y.dtype == np.bool_:
            return fit(x, y.astype(np.bool_, copy=False), candidates)
        patterns, pattern_of = np.unique(y != IGNORE, axis=1, return_inverse=True)
        parts = []
        for number, rows in enumerate(patterns.T):
            columns = np.flatnonzero(pattern_of.reshape(-1) == number)
            if rows.any():
                parts.append((columns, fit(x[rows], y[rows][:, columns] == 1, candidates)))

        def scores(new: Features) -> list[Scores]:
            found = [np.zeros((len(new), y.shape[1])) for _ in candidates]
            for columns, scorer in parts:
                for target, chance in zip(found, scorer(new), strict=True):
                    target[:, columns] = chance
            return found

        return scores

    return of_known


def logistic(x: Features, y: NDArray[np.bool_], inverse_penalties: Sequence[float]) -> Scorer:
    """One logistic regression per class and penalty."""
    prepared, apply = standardised(x)
    learned = np.flatnonzero(y.any(axis=0) & ~y.all(axis=0))
    found = fit_regressions(prepared, y[:, learned], inverse_penalties) if learned.size else None

    def scores(new: Features) -> list[Scores]:
        scored = [np.tile(y.mean(axis=0), (len(new), 1)) for _ in inverse_penalties]
        if found is not None:
            for target, chance in zip(scored, found.probabilities(apply(new)), strict=True):
                target[:, learned] = chance
        return scored

    return scores


def neighbours(x: Features, y: NDArray[np.bool_], counts: Sequence[int]) -> Scorer:
    """The share of each class among the `k` most similar training records, for each k of `counts`."""
    prepared, apply = standardised(x)
    known = _unit(prepared)
    most = min(max(counts), len(x))

    def scores(new: Features) -> list[Scores]:
        found = [np.empty((len(new), y.shape[1])) for _ in counts]
        for first in range(0, len(new), SIMILARITY_ROWS):
            part = slice(first, first + SIMILARITY_ROWS)
            similarity = _unit(apply(new[part])) @ known.T
            nearest = _largest(similarity, most)
            votes = np.cumsum(y[nearest], axis=1)
            for position, k in enumerate(counts):
                within = min(k, most)
                found[position][part] = votes[:, within - 1] / within
        return found

    return scores


def mlp_fit(settings: FitSettings, seed: int) -> Fit:
    """The fit of one hidden layer of 256 with dropout 0.5, binary cross-entropy; candidates are weight decays."""

    def fit(x: Features, y: NDArray[np.bool_], weight_decays: Sequence[float]) -> Scorer:
        prepared, apply = standardised(x)
        inputs = torch.from_numpy(prepared.astype(np.float32))
        targets = torch.from_numpy(y.astype(np.float32))
        models = train_mlps(inputs, targets, settings, weight_decays, seed)
        one_value = ~(y.any(axis=0) & ~y.all(axis=0))

        @torch.no_grad()
        def scores(new: Features) -> list[Scores]:
            applied = torch.from_numpy(apply(new).astype(np.float32))
            found = [torch.sigmoid(model(applied)).double().numpy() for model in models]
            return [np.where(one_value, y.mean(axis=0), each) for each in found]

        return scores

    return fit


def standardised(x: Features) -> tuple[NDArray[np.float64], Callable[[Features], NDArray[np.float64]]]:
    """Features with the median in place of NaN (0 where all are), mean 0 and SD 1; and the function that does the same
    to others."""

    @cache
    def median_of(column: int) -> float:
        known = x[~np.isnan(x[:, column]), column]
        return float(np.median(known.astype(np.float64))) if known.size else 0.0

    def filled(features: Features) -> NDArray[np.float64]:
        whole = features.astype(np.float64)
        unknown = np.isnan(whole)
        for column in np.flatnonzero(unknown.any(axis=0)).tolist():  # few columns: a median sorts
            whole[unknown[:, column], column] = median_of(column)
        return whole

    scaler = StandardScaler()
    fitted = np.asarray(scaler.fit_transform(filled(x)), np.float64)
    return fitted, lambda new: np.asarray(scaler.transform(filled(new)), np.float64)


def _largest(similarity: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Columns of the `most` largest values of each row, the largest first, equals in the order of the columns."""
    n_rows, n_columns = similarity.shape
    if most >= n_columns:
        return np.argsort(-similarity, axis=1, kind="stable")
    least = np.partition(similarity, n_columns - most, axis=1)[:, n_columns - most]
    found = np.empty((n_rows, most), np.int64)
    for row, values in enumerate(similarity):
        close = np.flatnonzero(values >= least[row])
        found[row] = close[np.argsort(-values[close], kind="stable")[:most]]
    return found


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float64)
