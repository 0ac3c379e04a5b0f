"""Many L2 logistic regressions of the same records at once: every class under every penalty.

Why our own: a probe fits (classes x penalties x folds) regressions on one matrix. Solved one by one, each step reads
the whole matrix from memory for one column of results; solved together, a step is a product of matrices. The penalised
loss is strictly convex, so the solution is that of any other solver.

Objective of one column, as scikit-learn's `LogisticRegression(C)`: sum_i log(1 + exp(-y_i (x_i w + b))) + |w|^2 / 2C;
the intercept b is not penalised. Method: Newton steps solved by preconditioned conjugate gradients until the residual
is small enough for the step (inexact Newton; Nocedal & Wright, Numerical Optimization, 2006, sections 5.1 and 7.1;
Lin, Weng & Keerthi, JMLR 9:627, 2008), with backtracking. The features are first turned into the principal axes of X'X,
in which the Hessian X'DX + I/C is nearly diagonal: its diagonal with the mean of D is the preconditioner. With fewer
records than features the axes come from XX' and there are at most as many as records.

Contract: x (n, d) float64 with columns of mean 0, y (n, c) bool with both values in every column; coefficients are
(p, d, c) float64 and intercepts (p, c), in the order of `inverse_penalties`. The answer is a function of the input
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Matrix = NDArray[np.float64]

NEWTON_STEPS = 100
CG_STEPS = 200
TOLERANCE = 1e-12
"""Of the squared Newton decrement (twice the distance of the loss from its minimum) by record."""
LEAST_LEFT = 1e-8
"""Of the squared residual of a step: products in single precision give no more."""
LEAST_VARIANCE = 1e-12
"""Share of the largest variance below which an axis is left out: no penalty lets it matter."""
COLUMNS = 256
"""Regressions that are solved together, at most: it bounds the memory."""
ARMIJO = 1e-4


@dataclass(frozen=True, slots=True)
class Regressions:
    """`coefficients` (p, d, c) and `intercepts` (p, c)."""

    coefficients: Matrix
    intercepts: Matrix

    def probabilities(self, x: Matrix) -> list[Matrix]:
        """One array (n, c) for each penalty."""
        return [expit(x @ w + b) for w, b in zip(self.coefficients, self.intercepts, strict=True)]


def fit_regressions(x: Matrix, y: NDArray[np.bool_], inverse_penalties: Sequence[float]) -> Regressions:
    """The regressions of every class (column of `y`) under every inverse penalty."""
    turned, back = principal_axes(x)
    n_classes = y.shape[1]
    penalty = np.repeat(1.0 / np.asarray(inverse_penalties, np.float64), n_classes)
    targets = np.tile(y.astype(np.float64), (1, len(inverse_penalties)))
    weights, intercepts = np.empty((turned.shape[1], len(penalty))), np.empty(len(penalty))
    for first in range(0, len(penalty), COLUMNS):
        part = slice(first, first + COLUMNS)
        weights[:, part], intercepts[part] = _solve(turned, targets[:, part], penalty[part])
    shape = (len(inverse_penalties), n_classes)
    coefficients = (back @ weights).reshape(-1, *shape).transpose(1, 0, 2)
    return Regressions(np.ascontiguousarray(coefficients), intercepts.reshape(shape))


def principal_axes(x: Matrix) -> tuple[Matrix, Matrix]:
    """x in its principal axes (n, r), and the axes (d, r): a weight vector a there is `axes @ a` here."""
    n, d = x.shape
    if n > d:
        variances, axes = np.linalg.eigh(x.T @ x)
        axes = axes[:, _kept(variances)]
        return x @ axes, axes
    variances, vectors = np.linalg.eigh(x @ x.T)
    kept = _kept(variances)
    scale = np.sqrt(variances[kept])
    return vectors[:, kept] * scale, x.T @ (vectors[:, kept] / scale)


def _kept(variances: Matrix) -> NDArray[np.bool_]:
    return np.asarray(variances > LEAST_VARIANCE * max(float(variances.max(initial=0.0)), 1e-300), np.bool_)


def _solve(z: Matrix, y: Matrix, penalty: Matrix) -> tuple[Matrix, Matrix]:
    """Weights (r, k) and intercepts (k,) of k regressions: 0/1 targets y (n, k), penalties (k,)."""
    n, _ = z.shape
    single = z.astype(np.float32)
    prevalence = y.mean(axis=0)
    weights, intercepts = np.zeros((z.shape[1], y.shape[1])), np.log(prevalence / (1 - prevalence))
    variances = np.einsum("nr,nr->r", z, z)
    active = np.arange(y.shape[1])
    for _ in range(NEWTON_STEPS):
        w, c, of = weights[:, active], penalty[active], y[:, active]
        eta = z @ w + intercepts[active]
        chance = expit(eta)
        error, curvature = chance - of, chance * (1 - chance)
        slope, slope_b = z.T @ error + w * c, error.sum(axis=0)
        mean_curvature = np.maximum(curvature.mean(axis=0), 1e-12)
        inverse, inverse_b = 1 / (variances[:, None] * mean_curvature + c), 1 / (n * mean_curvature)
        decrement = np.einsum("rk,rk,rk->k", slope, slope, inverse) + slope_b**2 * inverse_b
        going = decrement > TOLERANCE * n
        if not going.all():
            active = active[going]
            if not active.size:
                break
            w, c, of, eta, curvature = w[:, going], c[going], of[:, going], eta[:, going], curvature[:, going]
            slope, slope_b, decrement = slope[:, going], slope_b[going], decrement[going]
            inverse, inverse_b = inverse[:, going], inverse_b[going]
        problem = _Quadratic(single, curvature.astype(np.float32), c, inverse, inverse_b)
        step, step_b, along = _newton_step(problem, slope, slope_b, np.clip(decrement / n, LEAST_LEFT, 0.1))
        length = _backtracked(eta, of, w, c, step, along, _dots(slope, step) + slope_b * step_b)
        weights[:, active] += length * step
        intercepts[active] += length * step_b
    return weights, intercepts


@dataclass(frozen=True, slots=True)
class _Quadratic:
    """The Hessians at a point and the diagonals that precondition them. Products are in single precision: they decide
    how good a step is, not where the minimum lies."""

    z: NDArray[np.float32]
    curvature: NDArray[np.float32]
    penalty: Matrix
    inverse: Matrix
    inverse_b: Matrix

    def of(self, columns: NDArray[np.bool_]) -> _Quadratic:
        return _Quadratic(
            self.z,
            self.curvature[:, columns],
            self.penalty[columns],
            self.inverse[:, columns],
            self.inverse_b[columns],
        )


def _newton_step(
    problem: _Quadratic, slope: Matrix, slope_b: Matrix, share_left: Matrix
) -> tuple[Matrix, Matrix, Matrix]:
    """Steps (r, k) and (k,) that solve H step = -slope until `share_left` of the squared residual is left, and what
    they do to the logits (n, k)."""
    step, step_b = np.zeros_like(slope), np.zeros_like(slope_b)
    along = np.zeros_like(problem.curvature)
    live = np.arange(len(slope_b))  # a column that is solved leaves the products
    rest, rest_b = -slope, -slope_b
    way, way_b = problem.inverse * rest, problem.inverse_b * rest_b
    size = _dots(rest, way) + rest_b * way_b
    enough = size * share_left
    for _ in range(CG_STEPS):
        moved = problem.z @ way.astype(np.float32) + way_b.astype(np.float32)
        weighted = problem.curvature * moved
        bent, bent_b = problem.z.T @ weighted + problem.penalty * way, weighted.sum(axis=0, dtype=np.float64)
        bend = _dots(way, bent) + way_b * bent_b
        share = np.where(bend > 0, size / np.where(bend > 0, bend, 1.0), 0.0)
        step[:, live] += share * way
        step_b[live] += share * way_b
        along[:, live] += (share * moved).astype(np.float32)
        rest, rest_b = rest - share * bent, rest_b - share * bent_b
        ready, ready_b = problem.inverse * rest, problem.inverse_b * rest_b
        size, before = _dots(rest, ready) + rest_b * ready_b, size
        going = (size > enough[live]) & (bend > 0)
        if not going.any():
            break
        way, way_b = ready + size / before * way, ready_b + size / before * way_b
        if not going.all():
            live, problem = live[going], problem.of(going)
            rest, rest_b, way, way_b, size = rest[:, going], rest_b[going], way[:, going], way_b[going], size[going]
    return step, step_b, along.astype(np.float64)


def _backtracked(
    eta: Matrix, y: Matrix, weights: Matrix, penalty: Matrix, step: Matrix, along: Matrix, descent: Matrix
) -> Matrix:
    """How much of each step (k,) lowers the loss enough: 1, or halves of it."""
    at_w, w_step, step_step = (_dots(a, b) for a, b in ((weights, weights), (weights, step), (step, step)))

    def loss(length: Matrix) -> Matrix:
        moved = eta + length * along
        ridge = at_w + 2 * length * w_step + length**2 * step_step
        return np.asarray((np.logaddexp(0.0, moved) - y * moved).sum(axis=0) + 0.5 * penalty * ridge, np.float64)

    length = np.ones(eta.shape[1])
    before = loss(np.zeros_like(length))
    slack = 1e-12 * np.abs(before)  # rounding: at the minimum no step lowers the loss
    for _ in range(30):
        missed = loss(length) > before + ARMIJO * length * descent + slack
        if not missed.any():
            break
        length = np.where(missed, length / 2, length)
    return length


def _dots(a: Matrix, b: Matrix) -> Matrix:
    """The dot products of the columns, (k,)."""
    return np.asarray(np.einsum("rk,rk->k", a, b))
