"""Slow reference for CLOCS: Kiyasseh, Zhu and Clifton, ICML 2021, and the form of the authors' code.

For a pair of views (a, b) of the records i, with S_ij = exp(cos(a_i, b_j) / temperature), rowsum_i = sum_j S_ij,
colsum_j = sum_i S_ij and P = {(i, j): i != j, same patient}:

* D1 = - mean_i log S_ii / rowsum_i,  D2 = - mean_i log S_ii / colsum_i;
* as published, if P has a pair with i < j:  U = - mean over those of log S_ij / rowsum_i,
  and if it has one with i > j:              W = - mean over those of log S_ij / colsum_j;
* symmetric, if P is not empty:  U = - mean over all P of log S_ij / rowsum_i,  W = - mean over all P of
  log S_ij / colsum_j.

The pair's loss is the sum of its terms over their number (2 to 4); the loss is the mean over all pairs of views.
Nothing is taken out of the denominators: they hold the pairs of the same patient too.
Plain loops in float64, written from the formulas alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _cosine(a: list[float], b: list[float]) -> float:
    """a.b / (|a| |b|); 0 with a zero vector, which the formula leaves undefined."""
    norm_a, norm_b = math.sqrt(math.fsum(x * x for x in a)), math.sqrt(math.fsum(y * y for y in b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 0.0
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm_a / norm_b


def _log_sum_exp(values: list[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def pair_loss(
    a: Sequence[list[float]],
    b: Sequence[list[float]],
    patients: Sequence[Hashable],
    temperature: float,
    symmetric: bool,
) -> float:
    """The loss of one pair of views: row i of a and of b from record i, of patient patients[i]. At least one record."""
    records = len(patients)
    log_s = [[_cosine(a[i], b[j]) / temperature for j in range(records)] for i in range(records)]
    log_row = [_log_sum_exp(log_s[i]) for i in range(records)]
    log_column = [_log_sum_exp([log_s[i][j] for i in range(records)]) for j in range(records)]

    terms = [
        _mean([log_row[i] - log_s[i][i] for i in range(records)]),
        _mean([log_column[i] - log_s[i][i] for i in range(records)]),
    ]
    by_rows, by_columns = [], []
    for i in range(records):
        for j in range(records):
            if i == j or patients[i] != patients[j]:
                continue
            if symmetric or i < j:
                by_rows.append(log_row[i] - log_s[i][j])
            if symmetric or i > j:
                by_columns.append(log_column[j] - log_s[i][j])
    if by_rows:
        terms.append(_mean(by_rows))
    if by_columns:
        terms.append(_mean(by_columns))
    return _mean(terms)


def clocs_loss(
    views: list[Floats],
    patients: Sequence[Hashable],
    temperature: float,
    symmetric: bool = True,
    present: Sequence[Sequence[bool]] | None = None,
) -> float:
    """Mean of `pair_loss` over all unordered pairs of the V views, each (B, E), the earlier view as a.

    `present`: for each view, which of the B records have it. In a pair only the records present in both take part
    (in the terms, the denominators and P); a pair without any is left out of the mean. With no pair at all there is
    no value: ValueError.
    """
    arrays = [np.asarray(view, dtype=np.float64) for view in views]
    records = len(patients)
    for array in arrays:
        if array.ndim != 2 or array.shape != arrays[0].shape or len(array) != records:
            raise ValueError(f"need views of one shape ({records}, E), got {[array.shape for array in arrays]}")
    rows: list[list[list[float]]] = [array.tolist() for array in arrays]

    losses = []
    for first in range(len(rows)):
        for second in range(first + 1, len(rows)):
            taking_part = []
            for i in range(records):
                if present is None or (present[first][i] and present[second][i]):
                    taking_part.append(i)
            if taking_part:
                a, b = [rows[first][i] for i in taking_part], [rows[second][i] for i in taking_part]
                losses.append(pair_loss(a, b, [patients[i] for i in taking_part], temperature, symmetric))
    if not losses:
        raise ValueError("no pair of views has a record")
    return _mean(losses)
