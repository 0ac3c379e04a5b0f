"""P waves of a Holter recording of two leads, sel100 of QTDB: all there, and all taken out.

Its P waves are marked by a program (.pu1), ten of 1,134 beats have none. Taken out, a straight line stands in place of
each, so that no beat has a P wave and all else is as it was recorded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from beatray.dsp.delineate import find_waves
from beatray.dsp.peaks import find_r_peaks

RATE_HZ = 250
WIDTH = 10 * RATE_HZ
BEYOND_MARKS = 6
"""Samples, 24 ms, by which the line is longer: a cardiologist's marks begin 26 ms before the program's."""

Spans = NDArray[np.int64]


@pytest.fixture(scope="module")
def recording(data_dir: Path) -> tuple[NDArray[np.float32], Spans]:
    """Signal (2, T) in mV, and onset, peak and end (n, 3) of the P waves."""
    path = str(data_dir / "misc" / "qtdb" / "sel100")
    marks = wfdb.rdann(path, "pu1")
    at = [k for k, kind in enumerate(marks.symbol) if kind == "p"]
    assert all(marks.symbol[k - 1] == "(" and marks.symbol[k + 1] == ")" for k in at)
    spans = np.array([marks.sample[k - 1 : k + 2] for k in at], np.int64)
    return wfdb.rdrecord(path).p_signal.T.astype(np.float32), spans


def waves_of(signal_mv: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """R-peaks and P peaks (-1 for none) of all beats, from windows of 10 s; the first beat of each is left out, whose
    P wave may be cut."""
    n = signal_mv.shape[1] // WIDTH
    windows = np.stack(np.split(signal_mv[:, : n * WIDTH], n, axis=1))
    r, p = [], []
    for number, beats in enumerate(find_waves(windows, RATE_HZ, find_r_peaks(windows, RATE_HZ))):
        r += [beats["r_peak"][1:] + number * WIDTH]
        p += [np.where(beats["p_peak"][1:] < 0, -1, beats["p_peak"][1:] + number * WIDTH)]
    return np.concatenate(r), np.concatenate(p)


def test_they_are_found_where_they_are(recording: tuple[NDArray[np.float32], Spans]) -> None:
    signal_mv, spans = recording
    r, p = waves_of(signal_mv)
    marked = spans[np.searchsorted(spans[:, 1], r) - 1, 1]
    has_one = r - marked < 0.4 * RATE_HZ
    found = has_one & (np.abs(p - marked) <= 0.04 * RATE_HZ)
    print(f"P waves within 40 ms: {found.sum()} of {has_one.sum()}")
    assert has_one.sum() > 1000 and found.sum() / has_one.sum() > 0.98


def test_none_is_claimed_where_they_were_taken_out(recording: tuple[NDArray[np.float32], Spans]) -> None:
    signal_mv, spans = recording
    flat = signal_mv.copy()
    for onset, _, end in spans:
        first, last = onset - BEYOND_MARKS, end + BEYOND_MARKS
        flat[:, first : last + 1] = np.linspace(flat[:, first], flat[:, last], last - first + 1, axis=1)
    _, p = waves_of(flat)
    print(f"P waves claimed: {(p >= 0).sum()} of {len(p)}")
    assert len(p) > 1000 and (p >= 0).sum() / len(p) < 0.1
