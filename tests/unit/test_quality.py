from __future__ import annotations

import numpy as np
import pytest
from synthetic_ecg import RATE_HZ, synthetic_ecg

from beatray.dsp.delineate import find_waves
from beatray.dsp.peaks import find_r_peaks
from beatray.dsp.quality import Flag, assess

R = np.arange(450, 4700, 430).astype(np.int32)


@pytest.fixture
def clean() -> np.ndarray:
    rng = np.random.default_rng(0)
    signal = synthetic_ecg(R)
    for lead in (0, 1, 6, 7, 8, 9, 10, 11):
        signal[0, lead] += rng.normal(0, 0.004, 5000)
    i, ii = signal[0, :2]
    signal[0, 2:6] = np.stack([ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2])
    return signal


def _flags(signal: np.ndarray, n_samples: int = 5000, lead_mask: int = 4095) -> tuple[Flag, int]:
    r = find_r_peaks(signal, RATE_HZ, n_samples=n_samples, lead_mask=lead_mask)
    waves = find_waves(signal, RATE_HZ, r, n_samples=n_samples, lead_mask=lead_mask)
    flags, usable = assess(signal, [n_samples], [lead_mask], r_peaks=r, waves=waves)
    assert flags.dtype == np.int32
    assert usable.dtype == np.int16
    return Flag(int(flags[0])), int(usable[0])


def test_clean_recording_has_no_flag(clean: np.ndarray) -> None:
    assert _flags(clean) == (Flag(0), 4095)


def test_flat_lead(clean: np.ndarray) -> None:
    clean[0, 8] = 0.3
    assert _flags(clean) == (Flag.FLAT_LEAD, 4095 & ~(1 << 8))
    assert _flags(clean, lead_mask=4095 & ~(1 << 8)) == (Flag(0), 4095 & ~(1 << 8))


def test_lead_that_falls_off_after_a_second(clean: np.ndarray) -> None:
    clean[0, 8, 600:] = clean[0, 8, 600]
    flags, usable = _flags(clean)
    assert flags == Flag.FLAT_LEAD
    assert not usable & (1 << 8)


def test_clipped(clean: np.ndarray) -> None:
    clean[0, 9] = np.clip(clean[0, 9] * 4, -0.6, 1.2)
    assert _flags(clean)[0] == Flag.CLIPPED


def test_often_at_the_same_highest_value_is_not_clipped(clean: np.ndarray) -> None:
    """Beats of one height, in whole steps: each is at the top for a moment, together for longer than a clipped one."""
    for r in R:
        clean[0, 9, r - 2 : r + 3] = 1.5  # 10 ms at each of ten beats
    assert np.count_nonzero(clean[0, 9] == 1.5) == 50
    assert _flags(clean)[0] == Flag(0)
    clean[0, 9, R[4] - 6 : R[4] + 7] = 1.5  # 26 ms at one
    assert _flags(clean)[0] == Flag.CLIPPED


def test_noisy(clean: np.ndarray) -> None:
    clean[0, 10] += np.random.default_rng(1).normal(0, 0.1, 5000)
    assert _flags(clean)[0] == Flag.NOISY


def test_baseline_wander(clean: np.ndarray) -> None:
    clean[0, 7] += 0.8 * np.sin(2 * np.pi * 0.1 * np.arange(5000) / RATE_HZ)
    assert _flags(clean)[0] == Flag.BASELINE_WANDER


def test_leads_inconsistent(clean: np.ndarray) -> None:
    clean[0, 2] *= -1
    assert _flags(clean)[0] == Flag.LEADS_INCONSISTENT
    clean[0, 2] = 0
    assert Flag.LEADS_INCONSISTENT not in _flags(clean, lead_mask=4095 & ~(1 << 2))[0]


def test_swapped_arms(clean: np.ndarray) -> None:
    swapped = clean.copy()
    swapped[0, :6] = np.stack([-clean[0, 0], clean[0, 2], clean[0, 1], clean[0, 4], clean[0, 3], clean[0, 5]])
    assert _flags(swapped)[0] == Flag.LIMB_SWAP_SUSPECT


@pytest.mark.parametrize("gain", [0.02, 10.0, 1000.0])
def test_wrong_gain(clean: np.ndarray, gain: float) -> None:
    assert Flag.MIS_SCALED in _flags(clean * np.float32(gain))[0]


def test_a_large_lead_is_no_wrong_gain(clean: np.ndarray) -> None:
    clean[0, 8] += 8 * np.sin(2 * np.pi * 0.3 * np.arange(5000) / RATE_HZ)
    assert _flags(clean)[0] == Flag.LARGE_LEAD | Flag.BASELINE_WANDER
    clean[0, 9] *= 12
    flags = _flags(clean)[0]
    assert Flag.MIS_SCALED not in flags


def test_drift_of_the_limb_electrodes_is_no_wrong_gain(clean: np.ndarray) -> None:
    """The right arm's electrode drifts by 8 mV: large in I, II, aVR, aVL, aVF and all chest leads."""
    drift = (4 * np.sin(2 * np.pi * 0.2 * np.arange(5000) / RATE_HZ)).astype(np.float32)
    weights = np.array([-1, -1, 0, 1, -0.5, -0.5] + [-1 / 3] * 6, np.float32) * 3
    clean[0] += weights[:, None] * drift
    assert _flags(clean)[0] == Flag.LARGE_LEAD | Flag.BASELINE_WANDER


def test_no_beats_and_few_beats(clean: np.ndarray) -> None:
    assert Flag.NO_BEATS in _flags(np.zeros((1, 12, 5000)))[0]
    two = synthetic_ecg(np.array([1000, 4000]))
    flags, _ = assess(two, 5000, 4095, r_peaks=[np.array([1000, 4000], np.int32)])
    assert Flag(int(flags[0])) & (Flag.FEW_BEATS | Flag.NO_BEATS) == Flag.FEW_BEATS


def test_short(clean: np.ndarray) -> None:
    clean[..., 2000:] = 0
    assert _flags(clean, n_samples=2000)[0] == Flag.SHORT


def test_invalid_samples(clean: np.ndarray) -> None:
    clean[0, 3, 100:104] = np.nan
    assert Flag.NOT_FINITE not in _flags(clean)[0]
    clean[0, 3, :3000] = np.inf
    flags, usable = _flags(clean)
    assert Flag.NOT_FINITE in flags
    assert not usable & (1 << 3)


@pytest.mark.parametrize("n_samples", [0, 1, 15, 16, 40])
def test_almost_no_signal(clean: np.ndarray, n_samples: int) -> None:
    flags, _ = assess(clean, n_samples, 4095, r_peaks=[np.array([], np.int32)])
    assert Flag(int(flags[0])) & Flag.SHORT


def test_refuses_other_lead_counts() -> None:
    with pytest.raises(ValueError, match="batch, 12, time"):
        assess(np.zeros((1, 8, 5000)), 5000, 255)
