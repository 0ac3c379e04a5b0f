"""Slow reference for CPC with one horizon: van den Oord et al., arXiv 1807.03748, equation 4; three kinds of negatives.

Plain loops in float64, written from the formulas alone. Everywhere

* z (B, T, D) are the stem's tokens: they serve as positives and as negatives;
* q (B, T, D) are the predictions W c, already computed; only q_0 .. q_{T-k-1} are used;
* k >= 1 is the only horizon; the positive of t is z_{t+k};
* l_t = -log [exp(q_t.z_{t+k}) / (exp(q_t.z_{t+k}) + sum_j exp(q_t.z_{n_j}))]: no temperature, no normalisation;
* the loss is the mean of l_t over t = 0 .. T-k-1 and over records (the published code SUMS over t).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]


def _checked(z: Floats, q: Floats, k: int) -> tuple[Floats, Floats]:
    z, q = np.asarray(z, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if z.ndim != 3 or z.shape != q.shape or z.shape[0] == 0:
        raise ValueError(f"need z and q of one shape (B, T, D) with B > 0, got {z.shape} and {q.shape}")
    if k < 1 or z.shape[1] <= k:
        raise ValueError(f"need 1 <= k < T, got k {k} and T {z.shape[1]}")
    return z, q


def _dot(a: Floats, b: Floats) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def _term(positive: float, negatives: list[float]) -> float:
    """-log [exp(positive) / (exp(positive) + sum exp(negatives))], shifted by the largest score against overflow."""
    largest = max([positive, *negatives])
    total = math.fsum(math.exp(score - largest) for score in [positive, *negatives])
    return largest + math.log(total) - positive


def circular_negatives(offsets: Ints, length: int, k: int) -> Ints:
    """Offsets d (B, N) in 1..T-1 to positions n (B, T-k, N): n[b, t, j] = (t + k + d[b, j]) mod T, never t + k."""
    offsets = np.asarray(offsets)
    if offsets.ndim != 2 or not np.issubdtype(offsets.dtype, np.integer):
        raise ValueError(f"offsets must be integers (B, N), got {offsets.dtype} {offsets.shape}")
    if offsets.size and (offsets.min() < 1 or offsets.max() > length - 1):
        raise ValueError(f"offsets must lie in 1..{length - 1}")
    records, draws = offsets.shape
    positions = np.empty((records, length - k, draws), dtype=np.int64)
    for b in range(records):
        for t in range(length - k):
            for j in range(draws):
                positions[b, t, j] = (t + k + int(offsets[b, j])) % length
    return positions


def cpc_loss(z: Floats, c_query: Floats, k: int, offsets: Ints) -> float:
    """`negatives = circular`: N offsets d_j (B, N) in 1..T-1 per record, n_j = (t + k + d_j) mod T for every t.

    `c_query` is q, the predictions W c (B, T, D), not the context itself. Offsets may repeat.
    """
    z, q = _checked(z, c_query, k)
    return cpc_loss_iid(z, q, k, circular_negatives(offsets, z.shape[1], k))


def cpc_loss_iid(z: Floats, q: Floats, k: int, negatives: Ints) -> float:
    """`negatives = iid`: explicit positions n (B, T-k, N) in the same record, with replacement, never t + k."""
    z, q = _checked(z, q, k)
    records, length, _ = z.shape
    negatives = np.asarray(negatives)
    if negatives.ndim != 3 or negatives.shape[:2] != (records, length - k):
        raise ValueError(f"negatives must be ({records}, {length - k}, N), got {negatives.shape}")
    terms = []
    for b in range(records):
        for t in range(length - k):
            positive = _dot(q[b, t], z[b, t + k])
            others = []
            for n in negatives[b, t].tolist():
                if n == t + k or not 0 <= n < length:
                    raise ValueError(f"record {b}, t {t}: position {n} is the positive or outside the record")
                others.append(_dot(q[b, t], z[b, n]))
            terms.append(_term(positive, others))
    return math.fsum(terms) / len(terms)


def cpc_loss_all(z: Floats, q: Floats, k: int) -> float:
    """`negatives = all`: each of the other T - 1 positions of the record once (t itself among them)."""
    z, q = _checked(z, q, k)
    records, length, _ = z.shape
    terms = []
    for b in range(records):
        for t in range(length - k):
            positive = _dot(q[b, t], z[b, t + k])
            others = [_dot(q[b, t], z[b, n]) for n in range(length) if n != t + k]
            terms.append(_term(positive, others))
    return math.fsum(terms) / len(terms)


def cpc_loss_batch(z: Floats, q: Floats, k: int, offsets: Ints, others: Ints) -> float:
    """Circular negatives of the same record (offsets (B, N)) and, in the same sum, tokens of other records.

    `others` (B, M, 2) holds (record, position) pairs; record b's M pairs serve all its t. No pair may name record b.
    """
    z, q = _checked(z, q, k)
    records, length, _ = z.shape
    others = np.asarray(others)
    if others.ndim != 3 or others.shape[0] != records or others.shape[2] != 2:
        raise ValueError(f"others must be ({records}, M, 2), got {others.shape}")
    positions = circular_negatives(offsets, length, k)
    terms = []
    for b in range(records):
        for t in range(length - k):
            positive = _dot(q[b, t], z[b, t + k])
            scores = [_dot(q[b, t], z[b, n]) for n in positions[b, t].tolist()]
            for record, position in others[b].tolist():
                if record == b or not 0 <= record < records or not 0 <= position < length:
                    raise ValueError(f"record {b}: ({record}, {position}) is not a token of another record")
                scores.append(_dot(q[b, t], z[record, position]))
            terms.append(_term(positive, scores))
    return math.fsum(terms) / len(terms)


def cpc_backward(z: Floats, q: Floats, k: int, offsets: Ints) -> float:
    """The mirror: q_t predicts z_{t-k}, t = k .. T-1, with negatives (t - k - d_j) mod T.

    z and q are in ordinary time order; both are reversed here and given to `cpc_loss`.
    """
    return cpc_loss(np.asarray(z)[:, ::-1], np.asarray(q)[:, ::-1], k, offsets)
