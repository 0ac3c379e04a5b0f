"""The logistic regressions that are solved together against scikit-learn's, on measured features of real recordings."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from beatray.evaluate.label_spaces import superclass_targets
from beatray.evaluate.logistic import fit_regressions, principal_axes
from beatray.evaluate.metrics import auroc
from beatray.evaluate.probes import logistic, standardised
from evaluation_rows import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"
C = (1e-4, 1e-2, 1.0, 10.0)


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, np.ndarray]:
    """Standardised measured features, squares and products with the first ones (so that there are many), and truth."""
    rows = read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 150))
    truth = superclass_targets(rows.labels)
    x, _ = standardised(rows.record_features[truth.any(axis=1)])
    x = np.concatenate([x, x**2, x[:, :3].repeat(x.shape[1], 1) * np.tile(x, 3)], axis=1)
    return (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9), truth[truth.any(axis=1)]


@pytest.mark.parametrize("records", [140, 30])
def test_each_is_the_regression_of_sklearn(measured: tuple[np.ndarray, np.ndarray], records: int) -> None:
    x, truth = measured
    fit_on = x[:records] - x[:records].mean(axis=0)
    y = truth[:records]
    assert (fit_on.shape[0] > fit_on.shape[1]) == (records == 140) or fit_on.shape[1] > 140
    learned = np.flatnonzero(y.any(axis=0) & ~y.all(axis=0))
    found = fit_regressions(fit_on, y[:, learned], C)
    for position, c in enumerate(C):
        for column, k in enumerate(learned):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10, max_iter=1000)
                theirs = model.fit(fit_on, y[:, k]).predict_proba(x)[:, 1]
            ours = found.probabilities(x)[position][:, column]
            assert ours == pytest.approx(theirs, abs=1e-4)
            assert auroc(truth[:, k], ours) == pytest.approx(auroc(truth[:, k], theirs), abs=1e-3)


def test_the_slope_vanishes_at_the_solution(measured: tuple[np.ndarray, np.ndarray]) -> None:
    x, truth = measured
    x = x[:, :40]
    found = fit_regressions(x, truth, (0.1,))
    error = found.probabilities(x)[0] - truth
    slope = x.T @ error + found.coefficients[0] / 0.1
    start = x.T @ (truth.mean(axis=0) - truth)
    assert np.abs(slope).max() < 1e-4 * np.abs(start).max()
    assert np.abs(error.sum(axis=0)).max() < 1e-3  # the intercept is not penalised


def test_a_class_does_not_depend_on_its_company(measured: tuple[np.ndarray, np.ndarray]) -> None:
    x, truth = measured
    together = fit_regressions(x, truth, (0.01, 1.0)).probabilities(x)
    alone = fit_regressions(x, truth[:, 2:3], (1.0,)).probabilities(x)
    assert alone[0][:, 0] == pytest.approx(together[1][:, 2], abs=1e-4)


def test_constant_features_and_separable_classes_are_no_trouble() -> None:
    x = np.stack([np.linspace(-1, 1, 20), np.zeros(20)], axis=1)
    y = np.stack([x[:, 0] > 0, x[:, 0] > 0.9], axis=1)
    found = fit_regressions(x, y, (1e-4, 1e4))
    assert np.isfinite(found.coefficients).all() and np.isfinite(found.intercepts).all()
    assert (found.probabilities(x)[1][:, 0] > 0.5).tolist() == y[:, 0].tolist()
    turned, back = principal_axes(x)
    assert turned.shape == (20, 1) and back.shape == (2, 1)
    one_value = logistic(x.astype(np.float32), np.ones((20, 1), bool), (1.0,))(x.astype(np.float32))
    assert one_value[0].tolist() == [[1.0]] * 20
