"""The probes against scikit-learn, and that what is chosen is chosen on validation records alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from beatray.evaluate.fit import fit
from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.evaluate.mlp import train_mlps
from beatray.evaluate.probes import (
    _largest,
    choose_and_fit,
    chosen_probe,
    held_out,
    inner_folds,
    judge,
    logistic,
    mlp_fit,
    neighbours,
    standardised,
)
from beatray.evaluate.settings import ClassifySettings, EvaluateSettings, FitSettings
from beatray.models.heads import MlpClassifier

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, VALIDATION, TEST = np.arange(120), np.arange(120, 170), np.arange(170, 240)
PATIENTS = [f"p{i // 2}" for i in range(240)]


def made(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (240, 12) that carry three classes, the last one not linearly; made here, no recordings."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(240, 12)).astype(np.float32) * np.linspace(0.5, 40, 12, dtype=np.float32)
    noise = generator.normal(size=(240, 3))
    unit = features / np.linspace(0.5, 40, 12)
    truth = np.stack([unit[:, 0], unit[:, 1] + unit[:, 2], 2 * unit[:, 3] * unit[:, 4]], axis=1) + 0.3 * noise > 0.4
    return features, truth


def test_neighbours_vote_like_those_of_sklearn() -> None:
    features, truth = made()
    scaler = StandardScaler().fit(features[TRAIN].astype(np.float64))
    found = neighbours(features[TRAIN], truth[TRAIN], (1, 7, 500))(features[TEST])
    for k, scores in zip((1, 7, len(TRAIN)), found, strict=True):
        model = KNeighborsClassifier(k, metric="cosine").fit(scaler.transform(features[TRAIN]), truth[TRAIN])
        theirs = np.stack([p[:, 1] for p in model.predict_proba(scaler.transform(features[TEST]))], axis=1)
        assert scores == pytest.approx(theirs, abs=1e-12)
    assert found[2] == pytest.approx(np.tile(truth[TRAIN].mean(axis=0), (len(TEST), 1)))


def test_the_logistic_probe_is_one_regression_per_class() -> None:
    features, truth = made()
    double = features.astype(np.float64)
    scaler = StandardScaler().fit(double[TRAIN])
    found = logistic(features[TRAIN], truth[TRAIN], (0.1, 1.0))(features[TEST])
    for c, scores in zip((0.1, 1.0), found, strict=True):
        for k in range(3):
            model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)  # its default stops short of the optimum
            model.fit(scaler.transform(double[TRAIN]), truth[TRAIN, k])
            assert scores[:, k] == pytest.approx(model.predict_proba(scaler.transform(double[TEST]))[:, 1], abs=1e-5)


def test_the_mlp_learns_what_no_line_separates() -> None:
    features = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    truth = (features[:, 0] * features[:, 1] > 0)[:, None]
    fit = mlp_fit(FitSettings(steps=300, batch_size=64, head_lr=3e-3), 0)
    curved = macro_auroc(truth[400:], fit(features[:400], truth[:400], (0.1,))(features[400:])[0]).value
    straight = macro_auroc(truth[400:], logistic(features[:400], truth[:400], (1.0,))(features[400:])[0]).value
    assert curved > 0.9 and straight < 0.65


@pytest.mark.parametrize("protocol", ["linear_probe", "mlp", "knn"])
def test_a_probe_with_labels_and_none_with_permuted_ones(protocol: str) -> None:
    features, truth = made()
    settings = EvaluateSettings(
        classify=ClassifySettings(mlp=FitSettings(steps=60, batch_size=32, head_lr=3e-3), mlp_weight_decays=(0.1,))
    )

    def reached(labels: np.ndarray, seed: int) -> float:
        folds = inner_folds(PATIENTS, TRAIN, 3, seed)
        found = chosen_probe(protocol, features, labels, TRAIN, folds, settings, seed)
        return macro_auroc(truth[TEST], found.scores(features[TEST])).value

    assert reached(truth, 0) > 0.7
    chance = []
    for seed in range(8):
        permuted = truth.copy()
        permuted[TRAIN] = truth[np.random.default_rng(seed).permutation(TRAIN)]
        chance.append(reached(permuted, seed))
    assert abs(np.mean(chance) - 0.5) < 0.08


@pytest.mark.parametrize("protocol", ["linear_probe", "mlp", "knn"])
def test_the_choice_reads_validation_records_and_no_others(protocol: str) -> None:
    features, truth = made()
    settings = EvaluateSettings(
        classify=ClassifySettings(mlp=FitSettings(steps=20, batch_size=32), mlp_weight_decays=(0.01, 1.0))
    )
    folds = held_out(TRAIN, VALIDATION)
    first = chosen_probe(protocol, features, truth, TRAIN, folds, settings, 0)
    hidden = truth.copy()
    hidden[TEST] = ~truth[TEST]
    again = chosen_probe(protocol, features, hidden, TRAIN, folds, settings, 0)
    assert again.candidate == first.candidate and np.array_equal(again.thresholds, first.thresholds)
    on_validation = first.scores(features[VALIDATION])
    rounding = 1e-8 if protocol == "linear_probe" else 0.0  # one penalty alone is solved by other products than several
    assert best_thresholds(truth[VALIDATION], on_validation) == pytest.approx(first.thresholds, abs=rounding, rel=0.0)
    assert macro_auroc(truth[VALIDATION], on_validation).value == pytest.approx(first.validation_auroc)
    hidden[VALIDATION] = ~truth[VALIDATION]
    other = chosen_probe(protocol, features, hidden, TRAIN, folds, settings, 0)
    assert not np.array_equal(other.thresholds, first.thresholds)


def test_the_best_candidate_wins_and_equals_go_to_the_first() -> None:
    features, truth = made()

    def fit(x: np.ndarray, y: np.ndarray, candidates: list[float]):  # type: ignore[no-untyped-def]
        """A model that knows the answer, blurred by the candidate."""
        answer = {row.tobytes(): truth[i] for i, row in enumerate(features)}
        return lambda new: [
            np.stack([answer[row.tobytes()] * 1.0 for row in new]) * (c > 0) + abs(c) * 1e-9 for c in candidates
        ]

    found = choose_and_fit(fit, (0.0, 2.0, 1.0), features, truth, TRAIN, inner_folds(PATIENTS, TRAIN, 3, 0))
    assert found.candidate == 2.0 and found.validation_auroc == 1.0
    with pytest.raises(ValueError, match="no candidate"):
        choose_and_fit(fit, (), features, truth, TRAIN, held_out(TRAIN, VALIDATION))
    one_value = np.ones((4, 2), bool)
    assert judge([np.zeros((4, 2)), np.ones((4, 2))], one_value)[0] == 0  # no AUROC at all: the first


def test_folds_of_the_training_part_keep_patients_together() -> None:
    for fit_on, scored in inner_folds(PATIENTS, TRAIN, 4, 1):
        assert not {PATIENTS[i] for i in fit_on} & {PATIENTS[i] for i in scored}
        assert np.array_equal(np.sort(np.concatenate([fit_on, scored])), TRAIN)


def test_mlps_trained_together_are_those_trained_alone() -> None:
    features, truth = made()
    prepared, _ = standardised(features[TRAIN])
    inputs, targets = torch.from_numpy(prepared.astype(np.float32)), torch.from_numpy(truth[TRAIN].astype(np.float32))
    settings, decays = FitSettings(steps=40, batch_size=32, head_lr=3e-3), (1.0, 1e-3)
    for model, decay in zip(train_mlps(inputs, targets, settings, decays, seed=3), decays, strict=True):
        torch.manual_seed(3)
        alone = MlpClassifier(12, 3).train()

        def step_loss(positions: np.ndarray, alone: MlpClassifier = alone) -> torch.Tensor:
            rows = torch.from_numpy(positions)
            return functional.binary_cross_entropy_with_logits(alone(inputs[rows]), targets[rows])

        fit([(alone, 3e-3)], step_loss, len(inputs), replace(settings, weight_decay=decay), seed=3)
        with torch.no_grad():
            assert model(inputs).numpy() == pytest.approx(alone.eval()(inputs).numpy(), abs=1e-4)


def test_a_loss_that_is_not_finite_stops_the_mlp() -> None:
    inputs = torch.full((8, 4), torch.inf)
    with pytest.raises(FloatingPointError, match="step 1 is not finite"):
        train_mlps(inputs, torch.zeros(8, 2), FitSettings(steps=2, batch_size=4), (0.1,), seed=0)


def test_the_nearest_are_those_of_a_full_sort_with_ties_in_order() -> None:
    similarity = np.random.default_rng(0).integers(0, 6, (50, 40)).astype(np.float64)
    for most in (1, 7, 39, 40):
        whole = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
        assert np.array_equal(_largest(similarity, most), whole)


def test_unknown_features_become_the_training_median_also_where_training_knew_all() -> None:
    x = np.array([[1.0, np.nan, np.nan], [2.0, 4.0, np.nan], [9.0, 6.0, np.nan]], np.float32)
    fitted, apply = standardised(x)
    assert fitted[0, 1] == pytest.approx(0.0) and not fitted[:, 2].any()
    new = apply(np.array([[np.nan, np.nan, 3.0]], np.float32))
    assert new[0] == pytest.approx([(2.0 - 4.0) / np.std([1, 2, 9]), 0.0, 3.0])
