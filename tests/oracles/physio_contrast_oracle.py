"""Slow reference for contrast with physiologically similar recordings: PhysioCLR (arXiv 2509.08116) with the SupCon
loss of Khosla et al. (NeurIPS 2020, equation 2), and the published code's ratio form as a switch.

Rows i are the 2B views, view 1 of all records, then view 2; a never is i. s_ij is the cosine of the two records'
standardised features; z are compared by cosine. The positives P_i are the other view of the same record and both views
of every record with s_ij >= threshold; a record whose features are all 0 (nothing measured) has no others.

* SupCon: - 1 / |P_i| sum_{p in P_i} log [exp(z_i.z_p / t) / sum_{a != i} exp(z_i.z_a / t)], mean over the rows.
* ratio: log sum_{n not in P_i} exp(z_i.z_n / t) - log sum_{p in P_i} exp(z_i.z_p / t), mean over the rows that have a
  negative n. As published the row itself is a positive and the next record in the batch too; both are left out here.

Plain loops in float64, written from the formulas alone.
"""

from __future__ import annotations

import math

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


def similar_records(features: Floats, threshold: float) -> list[list[bool]]:
    """True where two different records' features (B, F) have a cosine >= `threshold`; never with a row of zeros."""
    rows: list[list[float]] = np.asarray(features, dtype=np.float64).tolist()
    out = []
    for i, a in enumerate(rows):
        row = []
        for j, b in enumerate(rows):
            measured = any(value != 0.0 for value in a) and any(value != 0.0 for value in b)
            row.append(i != j and measured and _cosine(a, b) >= threshold)
        out.append(row)
    return out


def physio_loss(z: Floats, features: Floats, threshold: float, temperature: float, ratio: bool = False) -> float:
    """The loss of z (2B, E), view 1 rows then view 2 rows, with features (B, F), B > 0."""
    z, features = np.asarray(z, dtype=np.float64), np.asarray(features, dtype=np.float64)
    records = len(features)
    if z.ndim != 2 or features.ndim != 2 or records == 0 or len(z) != 2 * records:
        raise ValueError(f"need z (2B, E) and features (B, F) with B > 0, got {z.shape} and {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite: what is missing is 0 once standardised")
    similar = similar_records(features, threshold)
    rows: list[list[float]] = z.tolist()
    losses = []
    for i in range(2 * records):
        positives, negatives = [], []
        for a in range(2 * records):
            if a == i:
                continue
            score = _cosine(rows[i], rows[a]) / temperature
            if a % records == i % records or similar[i % records][a % records]:
                positives.append(score)
            else:
                negatives.append(score)
        if ratio:
            if negatives:
                losses.append(_log_sum_exp(negatives) - _log_sum_exp(positives))
        else:
            total = _log_sum_exp(positives + negatives)
            losses.append(math.fsum(total - score for score in positives) / len(positives))
    if not losses:
        raise ValueError("no row has a negative")
    return math.fsum(losses) / len(losses)
