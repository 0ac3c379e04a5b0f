"""Slow reference for CREMA, the contrastive-regularised masked autoencoder: Song et al., arXiv 2407.07110.

L = 1/2 sum_v [sum_{masked} mean_{samples, leads} (x - xhat)^2 / n_masked] + lambda NT-Xent, averaged over records.
Plain loops in float64, written from the formulas alone. x_patches (B, T, P): T patches of P = leads * samples values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def masked_mse(x_patches: Floats, predicted: Floats, masked: Bools, counted: Bools | None = None) -> float:
    """Mean over records of [sum over masked patches of the patch's mean squared error / number of masked patches].

    x_patches, predicted (B, T, P); masked (B, T), True where the patch was hidden; counted (B, T, P), True where the
    entry is real (neither padding nor an absent lead), all True when not given.

    * A patch's mean is over its counted entries only; what the others hold (even NaN) does not matter.
    * A patch with nothing counted does not count as masked: it is in neither the sum nor the number of masked patches.
    * A record with no such patch is left out of the mean over records; if all are, there is no value: ValueError.
    """
    x_patches = np.asarray(x_patches, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    masked = np.asarray(masked)
    counted = np.ones(x_patches.shape, dtype=np.bool_) if counted is None else np.asarray(counted)
    if x_patches.ndim != 3 or not x_patches.shape == predicted.shape == counted.shape:
        raise ValueError(f"need equal (B, T, P), got {x_patches.shape}, {predicted.shape} and {counted.shape}")
    if masked.shape != x_patches.shape[:2] or masked.dtype != np.bool_ or counted.dtype != np.bool_:
        raise ValueError(f"need masked {x_patches.shape[:2]} and counted of bool, got {masked.shape} {masked.dtype}")

    records, patches, entries = x_patches.shape
    record_losses = []
    for b in range(records):
        patch_means = []
        for t in range(patches):
            if not masked[b, t]:
                continue
            squares = []
            for i in range(entries):
                if counted[b, t, i]:
                    squares.append((float(x_patches[b, t, i]) - float(predicted[b, t, i])) ** 2)
            if squares:
                patch_means.append(math.fsum(squares) / len(squares))
        if patch_means:
            record_losses.append(math.fsum(patch_means) / len(patch_means))
    if not record_losses:
        raise ValueError("no record has a masked patch with a counted entry")
    return math.fsum(record_losses) / len(record_losses)


def normalise_patches(x: Floats, eps: float = 1e-6) -> Floats:
    """(x - mean) / sqrt(var + eps) within each patch (last axis of (B, T, P)); var divides by P, not by P - 1."""
    x = np.asarray(x, dtype=np.float64)
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        values = x[index].tolist()
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        out[index] = [(value - mean) / math.sqrt(variance + eps) for value in values]
    return out


def _unit(row: Floats) -> list[float]:
    """The row over its length; a zero row stays zero."""
    values: list[float] = row.tolist()
    norm = math.sqrt(math.fsum(value * value for value in values))
    return [value / norm for value in values] if norm > 0.0 else values


def nt_xent(z1: Floats, z2: Floats, tau: float) -> float:
    """NT-Xent of two (B, D): over the 2B rows i of [z1; z2] with partner p(i), the mean of

    -log [exp(cos(z_i, z_p(i)) / tau) / sum_{a != i} exp(cos(z_i, z_a) / tau)].
    """
    z1, z2 = np.asarray(z1, dtype=np.float64), np.asarray(z2, dtype=np.float64)
    if z1.ndim != 2 or z1.shape != z2.shape or z1.shape[0] == 0:
        raise ValueError(f"need two equal (B, D) with B > 0, got {z1.shape} and {z2.shape}")
    records = z1.shape[0]
    rows = [_unit(row) for row in z1] + [_unit(row) for row in z2]
    terms = []
    for i in range(2 * records):
        partner = (i + records) % (2 * records)
        scores = {}
        for a in range(2 * records):
            if a != i:
                scores[a] = math.fsum(x * y for x, y in zip(rows[i], rows[a], strict=True)) / tau
        largest = max(scores.values())
        total = math.fsum(math.exp(score - largest) for score in scores.values())
        terms.append(largest + math.log(total) - scores[partner])
    return math.fsum(terms) / len(terms)


def crema_loss(
    x_patches: Floats,
    predicted1: Floats,
    predicted2: Floats,
    masked1: Bools,
    masked2: Bools,
    z1: Floats,
    z2: Floats,
    lam: float = 0.1,
    tau: float = 0.1,
    counted: Bools | None = None,
) -> float:
    """1/2 (masked_mse of view 1 + masked_mse of view 2) + lam nt_xent(z1, z2, tau).

    The views are two masks of ONE crop, so they share the target x_patches (B, T, P) and `counted`.
    predicted1, predicted2 (B, T, P); masked1, masked2 (B, T) bool; z1, z2 (B, D) contrastive projections.
    """
    first = masked_mse(x_patches, predicted1, masked1, counted)
    second = masked_mse(x_patches, predicted2, masked2, counted)
    return (first + second) / 2.0 + lam * nt_xent(z1, z2, tau)
