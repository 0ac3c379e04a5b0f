"""Slow reference for TS2Vec (Yue et al., AAAI 2022, equations 1 to 3 and algorithm 1) and its soft form, SoftCLT (Lee,
Park and Lee, ICLR 2024, section 3).

z1, z2 (B, T, D): two views of the same B records at the same T times. Similarities are raw dot products.

* inst: for each time t, over the 2B rows [z1_:t; z2_:t]: - log softmax over the other 2B - 1 rows at the counterpart
  (same record, other view); mean over rows and times. One record: 0.
* temp: for each record b, over the 2T rows [z1_b:; z2_b:], in the same way. One time: 0.
* levels d = 0, 1, ..: alpha inst + (1 - alpha) temp (temp only if d >= temporal_unit), then both views are max-pooled
  by 2 along time, an odd last time dropped; the level with T = 1 is the last and has alpha inst alone. The loss is the
  sum over levels divided by their number, floor(log2 T) + 1.

Soft: to the row's loss the other pairs add - w log p, weights not renormalised:
* instances: w = instance_weights[i, j] of the two records, for both views of record j (not of i itself);
* times: w = 2 / (1 + exp(tau |t - t'|)) with tau = temporal_tau 2^d at level d, 0 where below 1e-6.

Plain loops in float64, written from the formulas alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _row_losses(rows: list[list[float]], weights: list[list[float]] | None) -> list[float]:
    """Loss of each of 2n rows [view 1; view 2] with counterpart (i + n) mod 2n; weights (n, n), diagonal not read."""
    n = len(rows) // 2
    losses = []
    for i in range(2 * n):
        scores = {}
        for j in range(2 * n):
            if j != i:
                scores[j] = math.fsum(x * y for x, y in zip(rows[i], rows[j], strict=True))
        largest = max(scores.values())
        total = largest + math.log(math.fsum(math.exp(score - largest) for score in scores.values()))
        counterpart = (i + n) % (2 * n)
        parts = []
        for j, score in scores.items():
            if j == counterpart:
                parts.append(total - score)
            elif weights is not None:
                parts.append(weights[i % n][j % n] * (total - score))
        losses.append(math.fsum(parts))
    return losses


def instance_loss(z1: Floats, z2: Floats, weights: Floats | None = None) -> float:
    """Mean over 2B rows and T times of the loss against the other records at the same time; 0 for one record."""
    records, times, _ = z1.shape
    if records == 1:
        return 0.0
    pair_weights: list[list[float]] | None = None if weights is None else np.asarray(weights).tolist()
    losses = []
    for t in range(times):
        rows = [z1[b, t].tolist() for b in range(records)] + [z2[b, t].tolist() for b in range(records)]
        losses.extend(_row_losses(rows, pair_weights))
    return math.fsum(losses) / len(losses)


def temporal_weights(times: int, tau: float) -> list[list[float]]:
    """2 / (1 + exp(tau |t - t'|)), 0 where that is below 1e-6."""
    out = []
    for t in range(times):
        row = []
        for other in range(times):
            exponent = tau * abs(t - other)
            weight = 2.0 / (1.0 + math.exp(exponent)) if exponent < 700.0 else 0.0
            row.append(weight if weight >= 1e-6 else 0.0)
        out.append(row)
    return out


def temporal_loss(z1: Floats, z2: Floats, tau: float | None = None) -> float:
    """Mean over 2T rows and B records of the loss against the other times of the record; 0 for one time."""
    records, times, _ = z1.shape
    if times == 1:
        return 0.0
    weights = None if tau is None else temporal_weights(times, tau)
    losses = []
    for b in range(records):
        losses.extend(_row_losses(z1[b].tolist() + z2[b].tolist(), weights))
    return math.fsum(losses) / len(losses)


def max_pool(z: Floats) -> Floats:
    """The larger of times 2t and 2t + 1, entry by entry: (B, T, D) -> (B, T // 2, D)."""
    records, times, dims = z.shape
    out = np.empty((records, times // 2, dims), dtype=np.float64)
    for b in range(records):
        for t in range(times // 2):
            for d in range(dims):
                out[b, t, d] = max(float(z[b, 2 * t, d]), float(z[b, 2 * t + 1, d]))
    return out


def ts2vec_loss(
    z1: Floats,
    z2: Floats,
    alpha: float = 0.5,
    temporal_unit: int = 0,
    instance_weights: Floats | None = None,
    temporal_tau: float | None = None,
) -> float:
    """The loss of two views (B, T, D), B and T at least 1. Weights (B, B) and tau make its two parts soft."""
    z1, z2 = np.asarray(z1, dtype=np.float64), np.asarray(z2, dtype=np.float64)
    if z1.ndim != 3 or z1.shape != z2.shape or z1.size == 0:
        raise ValueError(f"need two equal (B, T, D) that are not empty, got {z1.shape} and {z2.shape}")
    levels = []
    while True:
        level = len(levels)
        loss = alpha * instance_loss(z1, z2, instance_weights)
        if z1.shape[1] > 1 and level >= temporal_unit:
            tau = None if temporal_tau is None else temporal_tau * 2**level
            loss += (1.0 - alpha) * temporal_loss(z1, z2, tau)
        levels.append(loss)
        if z1.shape[1] == 1:
            return math.fsum(levels) / len(levels)
        z1, z2 = max_pool(z1), max_pool(z2)
