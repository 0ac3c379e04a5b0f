"""A recording at the corpus's rate, some minutes at a time, so that a day of it does not have to be held at once.

Whole, a recording of 24 h takes 2 GB for each copy of its twelve leads in float64: at its own rate, at 500 Hz, in
microvolts and in the tables of what is beyond their range. In pieces only the first is whole.

Contract: `pieces(signal, ratio)` gives (start, samples) in order; put together they are `resample(signal, ratio)` to
the last bit: every piece is filtered with what lies around it, and beyond the recording's ends with the
straight line by which `scipy.signal.resample_poly` continues it. All pieces but the last are whole windows. A recording
of up to `PIECE_SAMPLES` is one piece, and what comes out may share its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin, resample_poly

from beatray.record import WINDOW_SAMPLES

PIECE_SAMPLES = 30 * WINDOW_SAMPLES
"""Five minutes: 14 MB of twelve leads."""
TAPS_PER_PHASE = 10


def resample(signal: NDArray[np.float64], ratio: Fraction) -> NDArray[np.float64]:
    """Resample along the last axis by `ratio`; ceil(n * ratio) samples come out, the first one in place."""
    if ratio == 1:
        return signal
    up, down = ratio.numerator, ratio.denominator
    out: NDArray[np.float64] = resample_poly(signal, up, down, axis=-1, window=_filter(up, down), padtype="line")
    return out


@lru_cache(maxsize=8)
def _filter(up: int, down: int) -> NDArray[np.float64]:
    slower = max(up, down)
    taps: NDArray[np.float64] = firwin(2 * TAPS_PER_PHASE * slower + 1, 1.0 / slower, window=("kaiser", 5.0))
    return taps


def pieces(signal: NDArray[np.float64], ratio: Fraction) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """See the module's contract; `signal` (L, n)."""
    up, down = ratio.numerator, ratio.denominator
    n_samples = signal.shape[1]
    n_total = math.ceil(n_samples * ratio)
    if n_total <= PIECE_SAMPLES:
        yield 0, resample(signal, ratio)
        return
    unit = math.lcm(WINDOW_SAMPLES, up)  # so that a piece begins on a sample of the recording
    length = unit * max(1, PIECE_SAMPLES // unit)
    margin = down * math.ceil((TAPS_PER_PHASE * max(up, down) / up + 1) / down)
    for start in range(0, n_total, length):
        stop = min(start + length, n_total)
        if ratio == 1:
            yield start, signal[:, start:stop]
            continue
        first, last = start * down // up, math.ceil(stop * down / up)
        around = _continued(signal, first - margin, last + margin)
        cut = margin * up // down
        yield start, resample(around, ratio)[:, cut : cut + stop - start]


def _continued(signal: NDArray[np.float64], first: int, last: int) -> NDArray[np.float64]:
    """Samples [first, last), beyond the ends on the straight line with the slope from the first to the last sample."""
    n_samples = signal.shape[1]
    inside = signal[:, max(first, 0) : min(last, n_samples)]
    if first >= 0 and last <= n_samples:
        return inside
    slope = (signal[:, -1:] - signal[:, :1]) / (n_samples - 1)
    before = signal[:, :1] + np.arange(min(first, 0), 0) * slope
    after = signal[:, -1:] + np.arange(1, max(last - n_samples, 0) + 1) * slope
    return np.concatenate([before, inside, after], axis=1)
