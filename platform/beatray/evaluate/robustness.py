"""What is done to test recordings to see how much a trained model takes: noise, and leads that are missing.

A condition has a name, which is its row in the tables: `noise 3` (modelled, level 3), `EM 6 dB` (real electrode
motion), `3 leads`. What reads an encoder is trained without any. Noise is added in millivolts to the stored signal,
before the filter that every signal passes; leads are set to zero after it. The same recording has the same noise in
every variant and seed.

Missing leads: 8 keeps the independent ones, 6 the limb leads, 3 keeps I, II and V2, 2 keeps I and II, 1 keeps I (12, 6,
3 and 2 as in the PhysioNet/CinC Challenge 2021). Of 8, nothing is lost that could not be computed back; whether a model
does so is the question.

Modelled noise: baseline wander, muscle noise, power line and baseline shifts one after the other, each with an
amplitude C ~ U(0, C_max) of its level, after the robustness protocol of Mehari & Strodthoff (arXiv 2103.12676).
  wander      C sum_{k=1..50} a_k cos(2 pi 0.01 k t + phi_k), a ~ U(0, 1): up to 0.5 Hz
  muscle      white, N(0, C)
  power line  C g sum_{h=1..3} a_h cos(2 pi 50 h t + phi_h), a ~ U(0, 1), one gain g ~ U(-1, 1) per lead
  shift       up to 0.3 stretches per second of N(3 s, 0.6 s), each at a level C U(-1, 1) per lead
There the signals were in units of their SD; here the amplitudes are millivolts, which is what an amplifier adds.

Real noise: the MIT-BIH Noise Stress Test segments BW (baseline wander), EM (electrode motion) and MA (muscle artefact)
at a signal-to-noise ratio as its `nst` program defines it (Moody, Muldrow & Mark, Computers in Cardiology 11:381,
1984): the signal's power is an eighth of the squared mean peak-to-peak height of the QRS complexes, the noise's its
mean square. They are not bundled: `read_noise` takes them from a folder.

Contract: `signal_uv` (n, 12, 5000) int16 at 500 Hz; the result is what `encoders.prepared` gives, (n, 12, 5000) float32
mV. Noise arrays are (12, T) mV; all their draws come from the generator given. Each of the eight independent leads has
noise of its own, the other four limb leads follow from I and II, so that III = II - I and the rest hold under noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.signal import resample_poly

from beatray.errors import SettingsError
from beatray.evaluate.encoders import prepared
from beatray.evaluate.settings import RobustnessSettings
from beatray.record import INDEPENDENT_LEADS, LEADS, RATE_HZ

if TYPE_CHECKING:
    from beatray.evaluate.tasks import TaskData

CLEAN = "clean"
CHUNK = 64
LEADS_KEPT = {
    12: LEADS,
    8: ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    6: ("I", "II", "III", "aVR", "aVL", "aVF"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
    1: ("I",),
}

LEVELS = {
    1: (0.05, 0.25, 0.1, 0.5),
    2: (0.1, 0.5, 0.2, 1.0),
    3: (0.1, 1.0, 0.2, 2.0),
    4: (0.2, 1.0, 0.4, 2.0),
    5: (0.2, 1.5, 0.4, 2.5),
    6: (0.3, 2.0, 0.5, 3.0),
}
"""Largest amplitude in mV of wander, muscle noise, power line and shift."""

MAT_RATE_HZ = 360
HALF_QRS = 25  # samples: the QRS complex lies within 50 ms of its peak

_LIMB = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
"""Weights of leads I and II."""


def condition_names(settings: RobustnessSettings) -> tuple[str, ...]:
    """All conditions that the settings ask for, without `clean`; reads the noise folder once, so as to fail early."""
    if settings.noise_folder is not None:
        for kind in settings.noise_kinds:
            read_noise(settings.noise_folder, kind)
    return names_asked_for(settings)


def names_asked_for(settings: RobustnessSettings) -> tuple[str, ...]:
    """The same without a look at the noise folder."""
    names = [f"noise {level}" for level in settings.noise_levels]
    if settings.noise_folder is not None:
        names += [f"{kind} {snr_db:g} dB" for kind in settings.noise_kinds for snr_db in settings.snr_db]
    return (*names, *(f"{count} leads" if count > 1 else "1 lead" for count in settings.leads))


def under(
    condition: str,
    signal_uv: NDArray[np.int16],
    n_samples: NDArray[np.int64],
    lead_mask: NDArray[np.int16],
    r_peaks: Sequence[NDArray[np.int32]],
    record_ids: Sequence[str],
    settings: RobustnessSettings,
) -> NDArray[np.float32]:
    """The recordings under `condition`, prepared. Leads that a recording does not have stay empty."""
    left = leads_left(condition)
    if left is not None:
        return without_leads(prepared(signal_uv, n_samples.astype(np.int32)), left)
    first, second, *_ = condition.split()
    noisy_uv = signal_uv.astype(np.float32)
    for row, record_id in enumerate(record_ids):
        key = hashlib.blake2b(f"{condition}/{record_id}".encode(), digest_size=8).digest()
        chance = np.random.default_rng(int.from_bytes(key, "little"))
        length = int(n_samples[row])
        if first == "noise":
            added = modelled_noise(int(second), length, chance)
        else:
            signal_mv = signal_uv[row, :, :length].astype(np.float64) / 1000.0
            noise = read_noise(str(settings.noise_folder), first)
            added = real_noise(signal_mv, r_peaks[row], noise, float(second), chance)
        present = (int(lead_mask[row]) >> np.arange(len(LEADS)) & 1).astype(bool)
        noisy_uv[row, present, :length] += (1000.0 * added[present]).astype(np.float32)
    return prepared(noisy_uv, n_samples.astype(np.int32))


def leads_left(condition: str) -> int | None:
    """How many leads a condition leaves; None if it is about something else."""
    count, _, what = condition.partition(" ")
    return int(count) if what.startswith("lead") else None


def without_leads(x_mv: NDArray[np.float32], left: int) -> NDArray[np.float32]:
    """Prepared signals (changed in place) with all but the `left` leads at zero."""
    x_mv[:, [k for k, lead in enumerate(LEADS) if lead not in LEADS_KEPT[left]]] = 0.0
    return x_mv


def in_chunks(
    condition: str, data: TaskData, index: NDArray[np.int64], settings: RobustnessSettings
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Signals and lengths of the test records `index` of a task under a condition, some at a time."""
    tested = data.tested
    if tested is None:
        raise ValueError(f"the signals for condition {condition} were not kept")
    stored = np.load(tested.signals, mmap_mode="r")
    for first in range(0, len(index), CHUNK):
        part = index[first : first + CHUNK]
        rows = np.searchsorted(data.test, part)
        peaks, ids = [tested.r_peaks[row] for row in rows], [tested.record_ids[row] for row in rows]
        n_samples = data.n_samples[part]
        yield under(condition, stored[rows], n_samples, tested.lead_mask[rows], peaks, ids, settings), n_samples


def modelled_noise(level: int, n_samples: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """All four kinds together at `level` 1..6, (12, n_samples) mV. Raises ValueError for another level."""
    if level not in LEVELS:
        raise SettingsError(f"noise level {level} is not one of {', '.join(map(str, LEVELS))}")
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
        raise SettingsError(f"the noise lasts {noise.shape[1] / RATE_HZ:.1f} s, a recording {length / RATE_HZ:.1f} s")
    pieces = []
    for lead in INDEPENDENT_LEADS:
        start = int(chance.integers(0, noise.shape[1] - length + 1))
        piece = noise[int(chance.integers(0, len(noise))), start : start + length]
        piece = piece - piece.mean()
        power = qrs_height(signal_mv[lead], r_peaks) ** 2 / 8 / 10 ** (snr_db / 10)
        pieces.append(piece * np.sqrt(power / float(np.mean(piece**2))))
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
        raise SettingsError(
            f"no {header.name} and no {matrix.name} in {folder}: evaluate.robustness.noise_folder needs one of them"
        )
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
