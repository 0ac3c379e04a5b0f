"""Noise for test recordings, in millivolts at 500 Hz: modelled at six levels, and real segments at a chosen ratio.

Modelled: baseline wander, muscle noise, power line and baseline shifts one after the other, each with an amplitude
C ~ U(0, C_max) of its level, after the robustness protocol of Mehari & Strodthoff (arXiv 2103.12676).
  wander      C sum_{k=1..50} a_k cos(2 pi 0.01 k t + phi_k), a ~ U(0, 1): up to 0.5 Hz
  muscle      white, N(0, C)
  power line  C g sum_{h=1..3} a_h cos(2 pi 50 h t + phi_h), a ~ U(0, 1), one gain g ~ U(-1, 1) per lead
  shift       up to 0.3 stretches per second of N(3 s, 0.6 s), each at a level C U(-1, 1) per lead
There the signals were in units of their SD; here the amplitudes are millivolts, which is what an amplifier adds.

Real: the MIT-BIH Noise Stress Test segments at a signal-to-noise ratio as its `nst` program defines it (Moody, Muldrow
& Mark, Computers in Cardiology 11:381, 1984): the signal's power is an eighth of the squared mean peak-to-peak height
of the QRS complexes, the noise's its mean square. They are not bundled: `read_noise` takes them from a folder.

Contract: each of the eight independent leads has noise of its own, the other four limb leads follow from I and II, so
that III = II - I and the rest hold under noise. Arrays are (12, T) mV; all draws come from the generator given.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.signal import resample_poly

from beatray.record import INDEPENDENT_LEADS, LEADS, RATE_HZ

LEVELS = {
    1: (0.05, 0.25, 0.1, 0.5),
    2: (0.1, 0.5, 0.2, 1.0),
    3: (0.1, 1.0, 0.2, 2.0),
    4: (0.2, 1.0, 0.4, 2.0),
    5: (0.2, 1.5, 0.4, 2.5),
    6: (0.3, 2.0, 0.5, 3.0),
}
"""Largest amplitude in mV of wander, muscle noise, power line and shift."""

KINDS = ("BW", "EM", "MA")
"""Baseline wander, electrode motion, muscle artefact of the Noise Stress Test."""

MAT_RATE_HZ = 360
HALF_QRS = 25  # samples: the QRS complex lies within 50 ms of its peak

_LIMB = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
"""Weights of leads I and II."""


def modelled_noise(level: int, n_samples: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """All four kinds together at `level` 1..6, (12, n_samples) mV. Raises ValueError for another level."""
    if level not in LEVELS:
        raise ValueError(f"noise level {level} is not one of {', '.join(map(str, LEVELS))}")
    wander, muscle, line, shift = (chance.uniform(0, most) for most in LEVELS[level])
    t = np.arange(n_samples) / RATE_HZ
    leads = len(INDEPENDENT_LEADS)
    amplitude, phase = chance.uniform(0, 1, (leads, 50)), chance.uniform(0, 2 * np.pi, (leads, 50))
    cosine, sine = _slow_waves(n_samples)  # cos(w + p) = cos p cos w - sin p sin w
    noise = wander * ((amplitude * np.cos(phase)) @ cosine - (amplitude * np.sin(phase)) @ sine)
    noise += chance.normal(0, muscle, noise.shape)
    harmonic, phase_of = chance.uniform(0, 1, 3), chance.uniform(0, 2 * np.pi, 3)
    hum = sum(a * np.cos(2 * np.pi * 50 * h * t + p) for h, a, p in zip((1, 2, 3), harmonic, phase_of, strict=True))
    noise += line * chance.uniform(-1, 1, (leads, 1)) * hum
    for _ in range(int(chance.integers(0, int(0.3 * n_samples / RATE_HZ) + 1))):
        length = max(1, round(chance.normal(3.0, 0.6) * RATE_HZ))
        start = int(chance.integers(0, n_samples))
        noise[:, start : start + length] += shift * chance.uniform(-1, 1, (leads, 1))
    return _all_leads(noise)


def real_noise(
    signal_mv: NDArray[np.float64],
    r_peaks: NDArray[np.int32],
    noise: NDArray[np.float64],
    snr_db: float,
    chance: np.random.Generator,
) -> NDArray[np.float64]:
    """Pieces of `noise` (channels, n) scaled to the ratio in each lead of `signal_mv` (12, T): (12, T) mV."""
    length = signal_mv.shape[1]
    if noise.shape[1] < length:
        raise ValueError(f"the noise lasts {noise.shape[1] / RATE_HZ:.1f} s, a recording {length / RATE_HZ:.1f} s")
    pieces = []
    for lead in INDEPENDENT_LEADS:
        start = int(chance.integers(0, noise.shape[1] - length + 1))
        piece = noise[int(chance.integers(0, len(noise))), start : start + length]
        piece = piece - piece.mean()
        wanted = qrs_height(signal_mv[lead], r_peaks) ** 2 / 8 / 10 ** (snr_db / 10)
        pieces.append(piece * np.sqrt(wanted / float(np.mean(piece**2))))
    return _all_leads(np.stack(pieces))


def qrs_height(lead_mv: NDArray[np.float64], r_peaks: NDArray[np.int32]) -> float:
    """Mean peak-to-peak height in mV of the whole QRS complexes of one lead; 1 mV without any."""
    whole = [at for at in r_peaks.tolist() if HALF_QRS <= at < len(lead_mv) - HALF_QRS]
    heights = [float(np.ptp(lead_mv[at - HALF_QRS : at + HALF_QRS])) for at in whole]
    return float(np.mean(heights)) if heights else 1.0


@cache
def read_noise(folder: str, kind: str) -> NDArray[np.float64]:
    """(channels, n) at 500 Hz with mean 0 and unit variance: `bw.hea` (WFDB, as published) or `BW.mat` (360 Hz).

    A .mat file holds one matrix of the kind's name, a row per sample; a first column that counts samples is left out.
    Raises ValueError if the folder has neither file.
    """
    header = Path(folder) / f"{kind.lower()}.hea"
    matrix = Path(folder) / f"{kind.upper()}.mat"
    if header.is_file():
        import wfdb

        record = wfdb.rdrecord(str(header.with_suffix("")))
        stored, rate = np.asarray(record.p_signal, np.float64), round(record.fs)
    elif matrix.is_file():
        stored, rate = np.asarray(scipy.io.loadmat(matrix)[kind.upper()], np.float64), MAT_RATE_HZ
        if stored.shape[1] > 1 and (np.diff(stored[:, 0]) == 1).all():
            stored = stored[:, 1:]
    else:
        raise ValueError(f"no {header.name} and no {matrix.name} in {folder}: noise of the MIT-BIH Noise Stress Test")
    noise = resample_poly(stored.T, RATE_HZ, rate, axis=1)
    noise -= noise.mean(axis=1, keepdims=True)
    return np.asarray(noise / noise.std(axis=1, keepdims=True))


@lru_cache(maxsize=4)
def _slow_waves(n_samples: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines of 0.01, 0.02, ... 0.5 Hz, (50, n_samples) each."""
    angle = 2 * np.pi * 0.01 * np.arange(1, 51)[:, None] * np.arange(n_samples) / RATE_HZ
    return np.cos(angle), np.sin(angle)


def _all_leads(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise of the eight independent leads to that of all twelve."""
    whole = np.empty((len(LEADS), noise.shape[1]))
    whole[list(INDEPENDENT_LEADS)] = noise
    for name, (of_one, of_two) in _LIMB.items():
        whole[LEADS.index(name)] = of_one * whole[0] + of_two * whole[1]
    return whole
