"""Slow reference for SimDINO: Wu et al., arXiv 2502.10385 (equation of the simplified objective), and the patch term
of SimDINOv2 and xECG (arXiv 2509.10151).

* R(Z) = 1/2 logdet(I + d / (n eps) Z^T Z), Z (n, d) with unit rows: the coding rate;
* compression = mean of cos(teacher_g, student_v) over records and over all g < G, v < V with v != g;
* expansion = mean over the G global views of R(student_g) (the teacher has no gradient);
* L = - coefficient compression - gamma expansion;
* patch term: mean over masked tokens of - cos(predicted, wanted).

Plain loops in float64, written from the formulas alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _cosine(a: list[float], b: list[float]) -> float:
    """a.b / (|a| |b|); 0 with a zero vector, which the formula leaves undefined."""
    norm_a, norm_b = math.sqrt(math.fsum(x * x for x in a)), math.sqrt(math.fsum(y * y for y in b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 0.0
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm_a / norm_b


def log_determinant(matrix: list[list[float]]) -> float:
    """Logarithm of the determinant of a positive definite matrix by elimination (pivots in order: all positive)."""
    rows = [list(row) for row in matrix]
    size = len(rows)
    logs = []
    for k in range(size):
        pivot = rows[k][k]
        if pivot <= 0.0:
            raise ValueError("the matrix is not positive definite")
        logs.append(math.log(pivot))
        for i in range(k + 1, size):
            factor = rows[i][k] / pivot
            for j in range(k, size):
                rows[i][j] -= factor * rows[k][j]
    return math.fsum(logs)


def coding_rate(z: Floats, eps: float) -> float:
    """R(Z) = 1/2 logdet(I + d / (n eps) Z^T Z) of the rows as they are, z (n, d) with n > 0."""
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or z.size == 0 or eps <= 0.0:
        raise ValueError(f"need (n, d) with n > 0 and eps > 0, got {z.shape} and {eps}")
    n, d = z.shape
    matrix = []
    for i in range(d):
        row = []
        for j in range(d):
            gram = math.fsum(float(z[record, i]) * float(z[record, j]) for record in range(n))
            row.append((1.0 if i == j else 0.0) + d / (n * eps) * gram)
        matrix.append(row)
    return 0.5 * log_determinant(matrix)


def compression(teacher: list[Floats], student: list[Floats]) -> float:
    """Mean of cos(teacher_g[b], student_v[b]) over records b and over the pairs with v != g."""
    cosines = []
    for g, target in enumerate(teacher):
        for v, predicted in enumerate(student):
            if v == g:
                continue
            for b in range(len(target)):
                cosines.append(_cosine(np.asarray(target[b]).tolist(), np.asarray(predicted[b]).tolist()))
    if not cosines:
        raise ValueError("need a student's view other than the teacher's")
    return math.fsum(cosines) / len(cosines)


def simdino_loss(teacher: list[Floats], student: list[Floats], eps: float, coefficient: float, gamma: float) -> float:
    """- coefficient compression - gamma (mean of the student's coding rates over the G global views).

    teacher: G arrays (B, d) with unit rows; student: V >= G arrays, the first G of the same views as the teacher's.
    """
    shapes = {np.asarray(view).shape for view in [*teacher, *student]}
    if len(shapes) != 1 or len(student) < len(teacher):
        raise ValueError(f"need views (B, d) of one shape and V >= G, got {shapes}, {len(teacher)}, {len(student)}")
    rates = [coding_rate(student[g], eps) for g in range(len(teacher))]
    return -coefficient * compression(teacher, student) - gamma * math.fsum(rates) / len(rates)


def patch_loss(predicted: Floats, target: Floats, masked: Bools) -> float:
    """Mean over all masked tokens of the batch of - cos(predicted, wanted): (B, T, D), (B, T, D), (B, T) bool."""
    predicted, target = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if predicted.ndim != 3 or predicted.shape != target.shape or np.shape(masked) != predicted.shape[:2]:
        raise ValueError(f"need (B, T, D) twice and (B, T), got {predicted.shape}, {target.shape}, {np.shape(masked)}")
    terms = []
    for b in range(predicted.shape[0]):
        for t in range(predicted.shape[1]):
            if masked[b, t]:
                terms.append(-_cosine(predicted[b, t].tolist(), target[b, t].tolist()))
    if not terms:
        raise ValueError("no token is masked")
    return math.fsum(terms) / len(terms)
