"""From the class of every sample to waves with an onset, a peak and an offset.

A wave is a run of one class of at least 20 ms (evaluate/waves.py). Its peak is where the signal lies farthest from the
straight line between the wave's ends: in the wave's own lead, or over all leads by the root of the mean square where
the leads share their waves; a lead that was not recorded is zero, does not count and has no waves of its own.

Contract: masks (M, T) int8 with 0 for none and k for the k-th of `WAVE_KINDS`, M = 1 (shared) or 12; samples at 500 Hz.
Waves come in order of onset, then lead; a shared wave has lead -1; onset <= peak <= offset, which is its last sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.waves import runs_of
from beatray.record import WAVE_DTYPE, WAVE_KINDS

Waves = NDArray[np.void]


def found_waves(mask_mt: NDArray[np.int8], signal_lt: NDArray[np.int16]) -> Waves:
    """The waves of one window, whose signal (12, T) in any unit gives the peaks."""
    found = []
    for row, mask in enumerate(mask_mt):
        lead = row if len(mask_mt) > 1 else -1
        own = signal_lt[row : row + 1] if lead >= 0 else signal_lt
        if not own.any():
            continue
        for kind in range(len(WAVE_KINDS)):
            for onset, offset in runs_of(mask, kind + 1).tolist():
                found.append((lead, kind, onset, onset + peak_within(own[:, onset : offset + 1]), offset))
    waves = np.array(found, WAVE_DTYPE)
    return waves[np.lexsort((waves["lead"], waves["onset"]))]


def peak_within(signal_lt: NDArray[np.int16]) -> int:
    """The sample (of those given) farthest from the line between the first and the last one."""
    values = signal_lt.astype(np.float64)
    share = np.linspace(0.0, 1.0, values.shape[1])
    line = values[:, :1] * (1 - share) + values[:, -1:] * share
    return int(np.square(values - line).sum(0).argmax())
