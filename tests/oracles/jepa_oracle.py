"""Slow reference for latent prediction: the losses, targets and momentum of JEPA and data2vec.

* ECG-JEPA (Weimann and Conrad, arXiv 2410.13867): mean over records, masked tokens and dimensions of |predicted - h|,
  h the target encoder's output; momentum linear over the steps.
* ECG-JEPA of Kim (arXiv 2410.08559): targets through a layer norm, SmoothL1 with beta 1.
* data2vec (Baevski et al., ICML 2022, section 3): target = layer norm of the mean of the top layers' outputs.

Plain loops in float64, written from the formulas alone. All layer norms are without scale and shift.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _differences(predicted: Floats, target: Floats) -> list[float]:
    predicted, target = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if predicted.shape != target.shape or predicted.size == 0:
        raise ValueError(f"need two equal shapes that are not empty, got {predicted.shape} and {target.shape}")
    return [p - w for p, w in zip(predicted.ravel().tolist(), target.ravel().tolist(), strict=True)]


def jepa_loss(predicted: Floats, target: Floats) -> float:
    """Mean of |predicted - wanted| over records, masked tokens and dimensions: both (B, M, D)."""
    absolute = [abs(difference) for difference in _differences(predicted, target)]
    return math.fsum(absolute) / len(absolute)


def smooth_l1(predicted: Floats, target: Floats, beta: float = 1.0) -> float:
    """Mean of d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, with d = predicted - wanted."""
    if beta <= 0.0:
        raise ValueError(f"beta must be positive, not {beta}")
    terms = []
    for difference in _differences(predicted, target):
        distance = abs(difference)
        terms.append(distance**2 / (2.0 * beta) if distance < beta else distance - beta / 2.0)
    return math.fsum(terms) / len(terms)


def layer_norm(x: Floats, eps: float = 1e-5) -> Floats:
    """(x - mean) / sqrt(var + eps) over the last axis of (..., D); var divides by D."""
    x = np.asarray(x, dtype=np.float64)
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        values = x[index].tolist()
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        out[index] = [(value - mean) / math.sqrt(variance + eps) for value in values]
    return out


def data2vec_targets(outputs: list[Floats], eps: float = 1e-5) -> Floats:
    """Layer norm of the mean of some layers' outputs, each (B, T, D). The layers are not normalised one by one."""
    if not outputs:
        raise ValueError("need the output of at least one layer")
    layers = [np.asarray(output, dtype=np.float64) for output in outputs]
    mean = np.empty_like(layers[0])
    for index in np.ndindex(layers[0].shape):
        mean[index] = math.fsum(float(layer[index]) for layer in layers) / len(layers)
    return layer_norm(mean, eps)


def linear_momentum(step: int, steps: int, start: float, end: float) -> float:
    """start + (end - start) step / steps: start at step 0, end at step `steps`."""
    if steps <= 0 or not 0 <= step <= steps:
        raise ValueError(f"need 0 <= step <= steps and steps > 0, got {step} of {steps}")
    return start + (end - start) * (step / steps)
