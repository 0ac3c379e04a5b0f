"""Slow reference for VICReg: Bardes, Ponce and LeCun, ICLR 2022, section 4.1, equations 1 to 6.

L = i s(z1, z2) + v (V(z1) + V(z2)) / 2 + c (C(z1) + C(z2))

* s: mean over records and dimensions of (z1 - z2)^2;
* V(z): mean over dimensions of max(0, 1 - sqrt(var_d + eps));
* C(z): sum over i != j of cov_ij^2 / D;
* var and cov are over the records and divide by B - 1 (one record: by 1, so that both are 0).

The mean over dimensions in s and the half of the variance term are those of the published code; the paper's equations
5 and 6 sum the squares over dimensions and add V(z1) + V(z2).
Plain loops in float64, written from the formulas alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def covariance_matrix(z: Floats) -> list[list[float]]:
    """Unbiased covariance of the columns of z (B, D), as D lists of D; zeros for one record."""
    z = np.asarray(z, dtype=np.float64)
    records, dims = z.shape
    centred = []
    for d in range(dims):
        column = z[:, d].tolist()
        mean = math.fsum(column) / records
        centred.append([value - mean for value in column])
    divisor = max(records - 1, 1)
    out = []
    for i in range(dims):
        row = []
        for j in range(dims):
            products = [a * b for a, b in zip(centred[i], centred[j], strict=True)]
            row.append(math.fsum(products) / divisor)
        out.append(row)
    return out


def invariance_term(z1: Floats, z2: Floats) -> float:
    """Mean over records and dimensions of (z1 - z2)^2."""
    squares = [(a - b) ** 2 for a, b in zip(z1.ravel().tolist(), z2.ravel().tolist(), strict=True)]
    return math.fsum(squares) / len(squares)


def variance_term(z: Floats, eps: float) -> float:
    """Mean over dimensions of max(0, 1 - sqrt(var_d + eps)): a hinge at standard deviation 1."""
    covariance = covariance_matrix(z)
    hinges = []
    for d in range(len(covariance)):
        hinges.append(max(0.0, 1.0 - math.sqrt(covariance[d][d] + eps)))
    return math.fsum(hinges) / len(hinges)


def covariance_term(z: Floats) -> float:
    """Sum over i != j of cov_ij^2, over D."""
    covariance = covariance_matrix(z)
    dims = len(covariance)
    squares = []
    for i in range(dims):
        for j in range(dims):
            if i != j:
                squares.append(covariance[i][j] ** 2)
    return math.fsum(squares) / dims


def vicreg_loss(
    z1: Floats, z2: Floats, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, eps: float = 1e-4
) -> float:
    """The loss of two views' projections (B, D), row b of both from the same record, B > 0."""
    z1, z2 = np.asarray(z1, dtype=np.float64), np.asarray(z2, dtype=np.float64)
    if z1.ndim != 2 or z1.shape != z2.shape or z1.size == 0:
        raise ValueError(f"need two equal (B, D) with B > 0, got {z1.shape} and {z2.shape}")
    apart = invariance_term(z1, z2)
    spread = (variance_term(z1, eps) + variance_term(z2, eps)) / 2.0
    correlated = covariance_term(z1) + covariance_term(z2)
    return invariance * apart + variance * spread + covariance * correlated
