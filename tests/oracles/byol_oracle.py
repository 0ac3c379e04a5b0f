"""Slow reference for BYOL: Grill et al., NeurIPS 2020, section 3.1 (loss, momentum schedule, moving average).

Plain loops in float64, written from the formulas alone. Rows are records: every embedding is (B, D).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cosine(a: list[float], b: list[float]) -> float:
    """a.b / (|a| |b|). The formula leaves a zero vector undefined; here its cosine with anything is 0."""
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    norm_a = math.sqrt(math.fsum(x * x for x in a))
    norm_b = math.sqrt(math.fsum(y * y for y in b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 0.0
    return (dot / norm_a) / norm_b


def _half(predicted: Floats, target: Floats) -> float:
    """2 - 2 mean_b cos(p_b, z'_b): one of the two directions."""
    predicted = np.asarray(predicted, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    if predicted.ndim != 2 or predicted.shape != target.shape or predicted.shape[0] == 0:
        raise ValueError(f"need two equal (B, D) with B > 0, got {predicted.shape} and {target.shape}")
    cosines = []
    for b in range(predicted.shape[0]):
        cosines.append(cosine(predicted[b].tolist(), target[b].tolist()))
    return 2.0 - 2.0 * math.fsum(cosines) / len(cosines)


def byol_loss(p1: Floats, p2: Floats, z1_target: Floats, z2_target: Floats) -> float:
    """L = [2 - 2 mean_b cos(p1_b, z2'_b)] + [2 - 2 mean_b cos(p2_b, z1'_b)], in [0, 8].

    p1, p2 (B, D): predictor outputs of the online network for views 1 and 2.
    z1_target, z2_target (B, D): projections of the target network for views 1 and 2. Note the crossing.
    """
    return _half(p1, z2_target) + _half(p2, z1_target)


def byol_momentum(step: int, steps: int, m0: float) -> float:
    """m(k) = 1 - (1 - m0) (cos(pi k / K) + 1) / 2 with k = step, K = steps; m(0) = m0 and m(K) = 1."""
    if steps <= 0 or not 0 <= step <= steps:
        raise ValueError(f"need 0 <= step <= steps and steps > 0, got {step} of {steps}")
    return 1.0 - (1.0 - m0) * (math.cos(math.pi * step / steps) + 1.0) / 2.0


def ema(teacher: NDArray[Any], student: NDArray[Any], m: float) -> NDArray[Any]:
    """One update of one tensor, m teacher + (1 - m) student entry by entry, in float64; the arguments are not changed.

    `student` holds the weights AFTER the optimiser's step. Integer (and bool) arrays are copied from the student.
    BN running statistics are not averaged in BYOL (the target keeps its own): do not pass them.
    """
    teacher, student = np.asarray(teacher), np.asarray(student)
    if teacher.shape != student.shape:
        raise ValueError(f"shapes differ: {teacher.shape} and {student.shape}")
    if not np.issubdtype(teacher.dtype, np.floating):
        return student.copy()
    updated = np.empty(teacher.shape, dtype=np.float64)
    for index in np.ndindex(teacher.shape):
        updated[index] = m * float(teacher[index]) + (1.0 - m) * float(student[index])
    return updated
