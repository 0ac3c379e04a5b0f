"""Slow reference for one channel of the S4D layer: Gu et al., arXiv 2206.11893.

Plain loops in float64, written from the formulas alone. One channel has n = N/2 complex modes (their conjugates are
implied by 2 Re): log_dt is a number, log_a and b are (n,), D is a number, and C is (n,) complex or (n, 2) real pairs.

A = -exp(log_a) + i b;  dt = exp(log_dt);  B = 1;  zero-order hold: Bbar = (exp(dt A) - 1) / A,  Cbar = C Bbar.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Modes = NDArray[Any]


def complex_expm1(z: complex) -> complex:
    """exp(z) - 1 without cancellation near 0: Re = expm1(a) cos b - 2 sin^2(b/2), Im = e^a sin b for z = a + ib."""
    a, b = z.real, z.imag
    return complex(math.expm1(a) * math.cos(b) - 2.0 * math.sin(b / 2.0) ** 2, math.exp(a) * math.sin(b))


def _system(log_dt: float, log_a: Floats, b: Floats, C: Modes) -> tuple[list[complex], list[complex], list[complex]]:
    """Per mode: dt A, Bbar and C."""
    log_a, b, C = np.asarray(log_a, dtype=np.float64), np.asarray(b, dtype=np.float64), np.asarray(C)
    if C.ndim == 2 and C.shape[1] == 2 and not np.iscomplexobj(C):
        output = [complex(real, imaginary) for real, imaginary in C.tolist()]
    else:
        output = [complex(value) for value in C.tolist()]
    if log_a.ndim != 1 or log_a.shape != b.shape or len(output) != len(log_a):
        raise ValueError(f"one channel needs n modes each, got {log_a.shape}, {b.shape} and {C.shape}")
    dt = math.exp(log_dt)
    poles = [complex(-math.exp(decay), frequency) for decay, frequency in zip(log_a.tolist(), b.tolist(), strict=True)]
    return [dt * pole for pole in poles], [complex_expm1(dt * pole) / pole for pole in poles], output


def kernel(log_dt: float, log_a: Floats, b: Floats, C: Modes, L: int) -> Floats:
    """k_l = 2 Re sum_n Cbar_n exp(dt A_n l), l = 0 .. L-1; the result is (L,) real. D is not part of it."""
    exponents, inputs, outputs = _system(log_dt, log_a, b, C)
    values = []
    for lag in range(L):
        total = 0j
        for exponent, b_bar, c in zip(exponents, inputs, outputs, strict=True):
            total += c * b_bar * cmath.exp(exponent * lag)
        values.append(2.0 * total.real)
    return np.array(values, dtype=np.float64)


def recurrence(u: Floats, log_dt: float, log_a: Floats, b: Floats, C: Modes, D: float) -> Floats:
    """The streaming form on u (L,), from a zero state; returns y (L,). For each t in turn

    x <- exp(dt A) x + Bbar u_t, and only then y_t = 2 Re sum_n C_n x_n + D u_t,

    so y_t sees u_t at lag 0 and equals the convolution sum_{l=0..t} k_l u_{t-l} + D u_t.
    """
    exponents, inputs, outputs = _system(log_dt, log_a, b, C)
    steps = [cmath.exp(exponent) for exponent in exponents]
    state = [0j] * len(steps)
    y = []
    for sample in np.asarray(u, dtype=np.float64).tolist():
        total = 0j
        for n in range(len(state)):
            state[n] = steps[n] * state[n] + inputs[n] * sample
            total += outputs[n] * state[n]
        y.append(2.0 * total.real + D * sample)
    return np.array(y, dtype=np.float64)


def convolution(k: Floats, u: Floats, D: float) -> Floats:
    """The causal (linear, not circular) convolution of u (L,) by k (at least L): sum_{l=0..t} k_l u_{t-l} + D u_t."""
    kernel_values, samples = np.asarray(k, dtype=np.float64).tolist(), np.asarray(u, dtype=np.float64).tolist()
    y = []
    for t in range(len(samples)):
        y.append(math.fsum(kernel_values[lag] * samples[t - lag] for lag in range(t + 1)) + D * samples[t])
    return np.array(y, dtype=np.float64)


def toeplitz(k_forward: Floats, k_backward: Floats, u: Floats, D: float) -> Floats:
    """Bidirectional, by a dense L x L matrix: y_t = sum_{l>=0} k_l u_{t-l} + sum_{l>=1} k'_l u_{t+l} + D u_t.

    Both kernels are indexed by the size of the lag and hold at least L values. Lag 0 comes from k_forward alone:
    k_backward[0] is never read.
    """
    forward, backward = np.asarray(k_forward, dtype=np.float64), np.asarray(k_backward, dtype=np.float64)
    u = np.asarray(u, dtype=np.float64)
    length = len(u)
    if u.ndim != 1 or len(forward) < length or len(backward) < length:
        raise ValueError(f"u {u.shape} needs kernels at least as long, got {forward.shape} and {backward.shape}")
    matrix = np.zeros((length, length))
    for t in range(length):
        for s in range(length):
            matrix[t, s] = forward[t - s] if s <= t else backward[s - t]
        matrix[t, t] += D
    y = [math.fsum(float(matrix[t, s]) * float(u[s]) for s in range(length)) for t in range(length)]
    return np.array(y, dtype=np.float64)


def s4d_lin(n_half: int) -> Floats:
    """S4D-Lin: b_n = pi n, n = 0 .. n_half-1."""
    return np.array([math.pi * n for n in range(n_half)], dtype=np.float64)


def s4d_inv(n_half: int, N: int) -> Floats:
    """S4D-Inv: b_n = (N/pi)(N/(2n+1) - 1), n = 0 .. n_half-1; N is the full state size, 2 n_half in the layer."""
    return np.array([(N / math.pi) * (N / (2 * n + 1) - 1.0) for n in range(n_half)], dtype=np.float64)
