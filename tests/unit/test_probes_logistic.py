"""The logistic regressions that are solved together against scikit-learn's, on measured features of real recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from beatray.evaluate.label_spaces import superclass_targets
from beatray.evaluate.logistic import fit_regressions, principal_axes
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


def converged(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    """scikit-learn's own, far beyond its default tolerance."""
    return LogisticRegression(C=c, tol=1e-8, max_iter=20_000).fit(x, y)


def loss(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: float, c: float) -> float:
    logits = x @ w + b
    return float((np.logaddexp(0.0, logits) - y * logits).sum() + 0.5 * (w @ w) / c)


def agrees(x: np.ndarray, y: np.ndarray, penalties: tuple[float, ...]) -> None:
    """Every class under every penalty, at the optimum of scikit-learn or below it."""
    found = fit_regressions(x, y, penalties)
    for position, c in enumerate(penalties):
        chances = found.probabilities(x)[position]
        for k in range(y.shape[1]):
            theirs = converged(x, y[:, k], c)
            w, b = found.coefficients[position, :, k], float(found.intercepts[position, k])
            assert w == pytest.approx(theirs.coef_[0], abs=1e-3 * np.abs(theirs.coef_).max())
            assert chances[:, k] == pytest.approx(theirs.predict_proba(x)[:, 1], abs=1e-5)
            least = loss(x, y[:, k], theirs.coef_[0], float(theirs.intercept_[0]), c)
            assert loss(x, y[:, k], w, b, c) < least + 1e-7


@pytest.mark.parametrize(("records", "columns"), [(140, 24), (140, 160), (30, 160), (12, 160)])
def test_each_is_the_regression_of_sklearn(measured: tuple[np.ndarray, np.ndarray], records: int, columns: int) -> None:
    x, truth = measured
    assert len(x) >= 140 and x.shape[1] == 160
    x, y = x[:records, :columns] - x[:records, :columns].mean(axis=0), truth[:records]
    agrees(x, y[:, y.any(axis=0) & ~y.all(axis=0)], C)


def test_one_positive_a_separable_class_and_a_constant_feature_under_any_penalty(
    measured: tuple[np.ndarray, np.ndarray],
) -> None:
    x = np.concatenate([measured[0][:60, :20], np.zeros((60, 2))], axis=1)
    x -= x.mean(axis=0)
    agrees(x, np.stack([np.arange(60) == 17, x[:, 0] > 0], axis=1), (1e-8, 1e-4, 1.0, 100.0))
    huge = fit_regressions(x, x[:, :1] > 0, (1e8,))
    assert np.isfinite(huge.coefficients).all()
    assert ((huge.probabilities(x)[0] > 0.5) == (x[:, :1] > 0)).all()


def test_two_records_and_no_feature_that_varies() -> None:
    x = np.array([[-1.0, 2.0, 0.5], [1.0, -2.0, -0.5]])
    agrees(x, np.array([[True], [False]]), C)
    nothing = fit_regressions(np.zeros((10, 3)), np.arange(10)[:, None] < 3, (1.0,))
    assert not nothing.coefficients.any()
    assert nothing.probabilities(np.ones((1, 3)))[0] == pytest.approx(0.3)


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
    assert alone[0][:, 0] == pytest.approx(together[1][:, 2], abs=1e-7)  # rounding of other products


def test_a_class_with_one_value_scores_it_and_empty_axes_are_left_out() -> None:
    x = np.stack([np.linspace(-1, 1, 20), np.zeros(20)], axis=1)
    turned, back = principal_axes(x)
    assert turned.shape == (20, 1) and back.shape == (2, 1)
    one_value = logistic(x.astype(np.float32), np.ones((20, 1), bool), (1.0,))(x.astype(np.float32))
    assert one_value[0].tolist() == [[1.0]] * 20
