"""Slow reference for SwAV: Caron et al., NeurIPS 2020, sections 3.1 and 3.2 and the pseudo-code of appendix A.

Scores S (B, K) are the dot products of unit embeddings with unit prototypes. The codes q of an assign crop are the
Sinkhorn-Knopp scaling of exp(S / eps): by turns the columns (over all rows) and the rows are divided by their sums.
Here every row of q sums to 1 (a row of the transport plan times the number of rows).

L = 1/2 sum_{i in {0, 1}} 1 / (V - 1) sum_{v != i} mean_b [ - sum_k q_i[b, k] log softmax(S_v[b] / temperature)[k] ]

Plain loops in float64, written from the formulas alone; the scaling is of logarithms, so nothing overflows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _log_sum_exp(values: list[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def sinkhorn(scores: Floats, eps: float, iterations: int) -> Floats:
    """Codes (N, K) of scores (N, K): per iteration each column is divided by its sum, then each row by its own."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0 or iterations < 1 or eps <= 0.0:
        raise ValueError(f"need (N, K), at least 1 iteration and eps > 0, got {scores.shape}, {iterations}, {eps}")
    rows, columns = scores.shape
    log_q = [[float(scores[n, k]) / eps for k in range(columns)] for n in range(rows)]
    for _ in range(iterations):
        for k in range(columns):
            total = _log_sum_exp([log_q[n][k] for n in range(rows)])
            for n in range(rows):
                log_q[n][k] -= total
        for n in range(rows):
            total = _log_sum_exp(log_q[n])
            for k in range(columns):
                log_q[n][k] -= total
    return np.array([[math.exp(value) for value in row] for row in log_q], dtype=np.float64)


def swapped_cross_entropy(codes: Floats, scores: Floats, temperature: float) -> float:
    """mean_b [ - sum_k codes[b, k] log softmax(scores[b] / temperature)[k] ], both (B, K)."""
    terms = []
    for b in range(len(scores)):
        logits = [float(score) / temperature for score in scores[b]]
        total = _log_sum_exp(logits)
        products = []
        for k, logit in enumerate(logits):
            products.append(float(codes[b, k]) * (total - logit))
        terms.append(math.fsum(products))
    return math.fsum(terms) / len(terms)


def swav_loss(
    scores: list[Floats], queue_scores: list[Floats], temperature: float, eps: float, iterations: int
) -> float:
    """The loss of V crops of B records: scores[v] (B, K), crops 0 and 1 are the assign crops, V >= 2.

    queue_scores[i] (Q, K), Q may be 0: scores of the queue of assign crop i with the prototypes of now. They stand
    before the crop's own rows in the scaling, and only the last B rows of the codes are used.
    """
    crops = [np.asarray(crop, dtype=np.float64) for crop in scores]
    if len(crops) < 2 or len(queue_scores) != 2 or any(crop.shape != crops[0].shape for crop in crops):
        raise ValueError(f"need crops (B, K) of one shape and two queues, got {[crop.shape for crop in crops]}")
    prototypes = crops[0].shape[1]
    assign_losses = []
    for i in (0, 1):
        queue = np.asarray(queue_scores[i], dtype=np.float64).reshape(-1, prototypes)
        all_rows = np.array(queue.tolist() + crops[i].tolist(), dtype=np.float64)
        codes = sinkhorn(all_rows, eps, iterations)[len(queue) :]
        others = []
        for v in range(len(crops)):
            if v != i:
                others.append(swapped_cross_entropy(codes, crops[v], temperature))
        assign_losses.append(math.fsum(others) / len(others))
    return math.fsum(assign_losses) / 2.0
