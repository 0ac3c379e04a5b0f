"""Recordings under real noise: the segments of the MIT-BIH Noise Stress Test added at a chosen signal-to-noise ratio.

Not a test: `test_noisy_r_peaks.py` and `bench_noise.py` make their noise here, so that both make the same. The ratio is
that of the `nst` program: the power of the signal is that of a sine whose peak-to-peak amplitude is the mean one of the
QRS complexes, an eighth of its square; the power of the noise its mean square (Moody, Muldrow & Mark, Computers in
Cardiology 11:381, 1984). Each of the eight independent leads gets a piece of the noise of its own; the other four
follow from I and II.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.signal import resample_poly

from beatray.ingest.formats.leads import LIMB_WEIGHTS
from beatray.record import INDEPENDENT_LEADS

KINDS = {"BW": "baseline wander", "EM": "electrode motion", "MA": "muscle artefact"}
LEVELS_DB = (24, 12, 6, 0)
RATE_HZ, NOISE_RATE_HZ = 500, 360
HALF_QRS = 25  # samples: the QRS complex lies within 50 ms of its peak


def read_noise(folder: Path, kind: str) -> NDArray[np.float64]:
    """(2, n) at 500 Hz, zero mean, unit variance; `folder` is that of BW.mat, EM.mat and MA.mat."""
    stored = scipy.io.loadmat(folder / f"{kind}.mat")[kind]
    noise = resample_poly(stored[:, 1:].T.astype(np.float64), RATE_HZ, NOISE_RATE_HZ, axis=1)
    noise -= noise.mean(axis=1, keepdims=True)
    return np.asarray(noise / noise.std(axis=1, keepdims=True))


def add_noise(
    signal_mv: NDArray[np.float32],
    r_peaks: list[NDArray[np.int32]],
    noise: NDArray[np.float64],
    snr_db: float,
    seed: int,
) -> NDArray[np.float32]:
    """(B, 12, T) with noise in every lead at `snr_db`; the same seed gives the same pieces."""
    chance = np.random.default_rng(seed)
    noisy = signal_mv.astype(np.float64)
    length = signal_mv.shape[2]
    for number, peaks in enumerate(r_peaks):
        for lead in INDEPENDENT_LEADS:
            start = int(chance.integers(0, noise.shape[1] - length + 1))
            piece = noise[int(chance.integers(0, len(noise))), start : start + length]
            piece = piece - piece.mean()
            power = float(np.mean(piece**2))
            qrs_power = _qrs_height(signal_mv[number, lead], peaks) ** 2 / 8 / 10 ** (snr_db / 10)
            noisy[number, lead] += piece * np.sqrt(qrs_power / power)
    for lead, (of_one, of_two) in LIMB_WEIGHTS.items():
        noisy[:, lead] = of_one * noisy[:, 0] + of_two * noisy[:, 1]
    return noisy.astype(np.float32)


def _qrs_height(lead_mv: NDArray[np.float32], peaks: NDArray[np.int32]) -> float:
    whole = [at for at in peaks.tolist() if HALF_QRS <= at < len(lead_mv) - HALF_QRS]
    heights = [float(np.ptp(lead_mv[at - HALF_QRS : at + HALF_QRS])) for at in whole]
    return float(np.mean(heights)) if heights else 1.0
