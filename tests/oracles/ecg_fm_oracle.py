"""Slow reference for the wav2vec 2.0 part of ECG-FM: Baevski et al., NeurIPS 2020, section 3.2, equations 3 and 4.

* contrast: for masked position m, - log [exp(cos(c_m, q_m) / t) / (exp(cos(c_m, q_m) / t) + sum_n exp(cos(c_m, q_n)
  / t))] over its negatives n, other masked positions of the same record; a negative with the codes of the positive in
  all G groups is left out. Mean over the masked positions.
* diversity: (G V - sum_g ppl_g) / (G V), ppl_g = exp(- sum_v p_gv log(p_gv + 1e-7)), p_g the mean of the softmax
  over all tokens. (This is the form of the published code, from 0 to (G V - G) / (G V); the paper's equation 4 is the
  negative entropy itself.)

The CMSC part is the symmetric loss of `clocs_oracle` on two views. Plain loops in float64, from the formulas alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]


def _cosine(a: list[float], b: list[float]) -> float:
    """a.b / (|a| |b|); 0 with a zero vector, which the formula leaves undefined."""
    norm_a, norm_b = math.sqrt(math.fsum(x * x for x in a)), math.sqrt(math.fsum(y * y for y in b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 0.0
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm_a / norm_b


def masked_contrast(context: Floats, quantised: Floats, negatives: Ints, codes: Ints, temperature: float) -> float:
    """Mean over the M masked positions of the contrast.

    context, quantised (M, D): transformer output and quantised target of each masked position. negatives (M, N): rows
    of `quantised`, repeats counted as often as they come. codes (M, G): the code of each position in each group.
    """
    context, quantised = np.asarray(context, dtype=np.float64), np.asarray(quantised, dtype=np.float64)
    if context.ndim != 2 or context.shape != quantised.shape or context.size == 0:
        raise ValueError(f"need two equal (M, D) with M > 0, got {context.shape} and {quantised.shape}")
    positions = len(context)
    if len(negatives) != positions or len(codes) != positions:
        raise ValueError(f"need negatives and codes of {positions} positions, got {len(negatives)} and {len(codes)}")
    terms = []
    for m in range(positions):
        query, positive_codes = context[m].tolist(), codes[m].tolist()
        positive = _cosine(query, quantised[m].tolist()) / temperature
        scores = [positive]
        for n in negatives[m].tolist():
            if codes[n].tolist() != positive_codes:
                scores.append(_cosine(query, quantised[n].tolist()) / temperature)
        largest = max(scores)
        total = math.fsum(math.exp(score - largest) for score in scores)
        terms.append(largest + math.log(total) - positive)
    return math.fsum(terms) / len(terms)


def perplexities(probabilities: Floats) -> list[float]:
    """exp(- sum_v p_v log(p_v + 1e-7)) of each group, p the mean over tokens of probabilities (N, G, V)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    tokens, groups, entries = probabilities.shape
    out = []
    for g in range(groups):
        terms = []
        for v in range(entries):
            mean = math.fsum(probabilities[:, g, v].tolist()) / tokens
            terms.append(mean * math.log(mean + 1e-7))
        out.append(math.exp(-math.fsum(terms)))
    return out


def diversity(probabilities: Floats) -> float:
    """(G V - sum_g ppl_g) / (G V) of softmax probabilities (N, G, V), N > 0."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 3 or probabilities.size == 0:
        raise ValueError(f"need (N, G, V) with N > 0, got {probabilities.shape}")
    total = probabilities.shape[1] * probabilities.shape[2]
    return (total - math.fsum(perplexities(probabilities))) / total
