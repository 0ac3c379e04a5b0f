"""A twelve-lead signal whose beats, waves and amplitudes are known exactly. Not a test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 500
# wave: (centre after R in s, width in s, amplitude in I and II in mV)
WAVES = {
    "p": (-0.16, 0.022, (0.08, 0.15)),
    "q": (-0.025, 0.008, (-0.05, -0.10)),
    "r": (0.0, 0.010, (0.60, 1.00)),
    "s": (0.028, 0.009, (-0.10, -0.20)),
    "t": (0.28, 0.045, (0.20, 0.30)),
}
CHEST = {"p": 0.10, "q": -0.05, "r": 0.8, "s": -0.5, "t": 0.3}


def synthetic_ecg(
    r_peaks: NDArray[np.integer], n_time: int = 5000, rate_hz: float = RATE_HZ, *, without: str = ""
) -> NDArray[np.float32]:
    """One record (1, 12, n_time) in mV with beats at `r_peaks`; `without` names waves to leave out, e.g. "p"."""
    t = np.arange(n_time) / rate_hz
    two = np.zeros((2, n_time))
    chest = np.zeros((6, n_time))
    for r in np.asarray(r_peaks) / rate_hz:
        for name, (centre, width, amplitudes) in WAVES.items():
            if name not in without:
                bump = np.exp(-0.5 * ((t - r - centre) / width) ** 2)
                two += np.array(amplitudes)[:, None] * bump
                chest += CHEST[name] * np.linspace(0.6, 1.2, 6)[:, None] * bump
    i, ii = two
    limbs = np.stack([i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2])
    return np.concatenate([limbs, chest])[None].astype(np.float32)
