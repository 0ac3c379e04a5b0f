"""Waves that the start or the end of a recording cuts are left out, not measured short: bundled recordings, cut."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from test_analysis_unchanged import sample_windows

from beatray.dsp.delineate import find_waves
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES, measure
from beatray.dsp.peaks import find_r_peaks

RATE_HZ = 500
Whole = tuple[NDArray[np.float32], list[NDArray[np.int32]], list[NDArray[np.void]]]


@pytest.fixture(scope="module")
def whole() -> Whole:
    """Every third bundled recording of at least seven beats (B, 12, 5000), its R-peaks and waves."""
    x_mv = np.stack([window.signal_uv for window in sample_windows()[::3]]).astype(np.float32) / 1000
    x_mv = x_mv[[len(r) >= 7 for r in find_r_peaks(x_mv, RATE_HZ)]]
    r_peaks = find_r_peaks(x_mv, RATE_HZ)
    return x_mv, r_peaks, find_waves(x_mv, RATE_HZ, r_peaks)


def ended(whole: Whole, after_s: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """End of the T wave of beat 3, in the whole recording and in one that ends `after_s` behind its R-peak, where the
    next beat begins later."""
    x_mv, r_peaks, waves = whole
    ends = np.array([r[3] + round(after_s * RATE_HZ) for r in r_peaks])
    some = [k for k, r in enumerate(r_peaks) if ends[k] < r[4] - 30]
    short = [r_peaks[k][:4] for k in some]
    cut = find_waves(x_mv[some], RATE_HZ, short, n_samples=ends[some])
    return np.array([waves[k]["t_offset"][3] for k in some]), np.array([beats["t_offset"][3] for beats in cut])


def begun(whole: Whole, before_s: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start of the P wave of beat 2, where it has one, in the whole recording and in one that begins `before_s` before
    its R-peak, where the beat before has ended."""
    x_mv, r_peaks, waves = whole
    starts = [int(r[2]) - round(before_s * RATE_HZ) for r in r_peaks]
    some = [k for k, r in enumerate(r_peaks) if starts[k] > r[1] + 30 and waves[k]["p_onset"][2] >= 0]
    shifted = np.zeros((len(some), 12, 5000), np.float32)
    for row, k in enumerate(some):
        shifted[row, :, : 5000 - starts[k]] = x_mv[k, :, starts[k] :]
    later = [r_peaks[k][2:] - starts[k] for k in some]
    cut = find_waves(shifted, RATE_HZ, later, n_samples=[5000 - starts[k] for k in some])
    onset = np.array([beats["p_onset"][0] for beats in cut])
    there = np.array([starts[k] for k in some])
    return np.array([waves[k]["p_onset"][2] for k in some]), np.where(onset >= 0, onset + there, -1)


def test_a_t_wave_is_whole_or_absent(whole: Whole) -> None:
    errors_ms = []
    for after_s in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45):
        known, found = ended(whole, after_s)
        both = (known >= 0) & (found >= 0)
        errors_ms += (2 * np.abs(found - known)[both]).tolist()
    assert len(errors_ms) > 100
    assert np.mean(np.array(errors_ms) > 40) < 0.05  # without the rule more than a quarter
    known, found = ended(whole, 0.2)
    assert np.mean(found[known >= 0] >= 0) < 0.1


def test_a_t_wave_with_signal_behind_it_is_kept(whole: Whole) -> None:
    known, found = ended(whole, 0.55)
    assert len(known) > 40 and np.mean(found[known >= 0] >= 0) > 0.95


def test_a_p_wave_is_whole_or_absent(whole: Whole) -> None:
    errors_ms = []
    for before_s in (0.1, 0.14, 0.18, 0.22, 0.26, 0.3):
        known, found = begun(whole, before_s)
        errors_ms += (2 * np.abs(found - known)[found >= 0]).tolist()
    assert len(errors_ms) > 100
    assert np.mean(np.array(errors_ms) > 24) < 0.05  # without the rule a third
    known, found = begun(whole, 0.4)
    assert len(known) > 60 and np.mean(found >= 0) > 0.95


def test_a_p_wave_that_could_not_be_seen_is_no_absent_one(whole: Whole) -> None:
    x_mv, r_peaks, waves = whole
    k = next(k for k, beats in enumerate(waves) if (beats["p_peak"][1:] >= 0).all())
    start = int(r_peaks[k][2]) - 40  # 80 ms before an R-peak: its P wave is gone
    cut = np.zeros((1, 12, 5000), np.float32)
    cut[0, :, : 5000 - start] = x_mv[k, :, start:]
    r = [r_peaks[k][2:] - start]
    n = [5000 - start]
    beats, records = measure(cut, RATE_HZ, find_waves(cut, RATE_HZ, r, n_samples=n), n_samples=n)
    present = beats[0][:, BEAT_FEATURES.index("p_present")]
    assert np.isnan(present[0]) and (present[1:] == 1).all()
    assert records[0, RECORD_FEATURES.index("p_fraction")] == 1


def test_one_interval_has_no_sd(whole: Whole) -> None:
    x_mv, r_peaks, waves = whole
    _, of_three = measure(x_mv[:1], RATE_HZ, [waves[0][:3]])
    _, of_two = measure(x_mv[:1], RATE_HZ, [waves[0][:2]])
    mean, sd = (RECORD_FEATURES.index(name) for name in ("rr_mean_s", "rr_sd_s"))
    assert of_two[0, mean] == pytest.approx((r_peaks[0][1] - r_peaks[0][0]) / RATE_HZ)
    assert np.isnan(of_two[0, sd]) and np.isfinite(of_three[0, sd])
