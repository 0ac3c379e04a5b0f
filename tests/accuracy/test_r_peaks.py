"""R-peaks against the annotations of LUDB, and against an independent detector on PTB-XL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray
from reference_beats import BEAT_SYMBOLS, Ludb, match, match_all, read_ludb, read_ptbxl

from beatray.dsp.peaks import find_r_peaks

sleepecg = pytest.importorskip("sleepecg")


@pytest.fixture(scope="module")
def ludb(ludb_dir: Path) -> Ludb:
    return read_ludb(ludb_dir)


@pytest.fixture(scope="module")
def found(ludb: Ludb) -> list[NDArray[np.int32]]:
    return find_r_peaks(ludb.signal_mv, 500)


@pytest.mark.parametrize(("tolerance_ms", "least_f1"), [(50, 99.2), (75, 99.4), (150, 99.8)])
def test_ludb_all_200(ludb: Ludb, found: list[NDArray[np.int32]], tolerance_ms: float, least_f1: float) -> None:
    matches = match_all(ludb.r_peaks, found, tolerance_ms)
    print(f"F1 at {tolerance_ms} ms: {matches.f1:.2f} ({matches.missed} missed, {matches.extra} extra)")
    assert matches.hits + matches.missed == 1831
    assert matches.f1 >= least_f1


def test_ludb_jitter(ludb: Ludb, found: list[NDArray[np.int32]]) -> None:
    errors_ms = 2.0 * np.abs(match_all(ludb.r_peaks, found, 150).errors)
    print(
        f"median absolute jitter {np.median(errors_ms):.1f} ms, 90th percentile {np.percentile(errors_ms, 90):.1f} ms"
    )
    assert np.median(errors_ms) <= 2.0
    assert np.percentile(errors_ms, 90) <= 8.0


@pytest.mark.parametrize("kept", [(6, 7), (1,), (7,), (3, 4, 5)])
def test_ludb_with_few_leads(ludb: Ludb, kept: tuple[int, ...]) -> None:
    few = find_r_peaks(ludb.signal_mv, 500, lead_mask=sum(1 << lead for lead in kept))
    f1 = match_all(ludb.r_peaks, few, 150).f1
    print(f"leads {kept}: F1 at 150 ms {f1:.2f}")
    assert f1 >= 98.5


@pytest.mark.parametrize("rate_hz", [100, 250, 360, 1000])
def test_ludb_at_other_rates(ludb: Ludb, rate_hz: int) -> None:
    instants = np.arange(10 * rate_hz) / rate_hz * 500
    there = np.arange(5000)
    some = ludb.signal_mv[::4]
    resampled = np.stack([[np.interp(instants, there, lead) for lead in record] for record in some])
    found = [np.round(r * 500 / rate_hz).astype(np.int32) for r in find_r_peaks(resampled, rate_hz)]
    assert match_all(ludb.r_peaks[::4], found, 150).f1 >= 99.8
    assert match_all(ludb.r_peaks[::4], found, 75).f1 >= 99.0


def test_ptbxl_agrees_with_another_detector(ptbxl_dir: Path) -> None:
    """Beats that at least five of eight single-lead runs of sleepecg agree on; PTB-XL has no annotated beats."""
    _, signal_mv, _ = read_ptbxl(ptbxl_dir)
    consensus = [_consensus(record) for record in signal_mv]
    found = find_r_peaks(signal_mv, 500)
    matches = match_all(consensus, found, 150)
    print(f"PTB-XL against consensus: F1 {match_all(consensus, found, 75).f1:.2f} at 75 ms, {matches.f1:.2f} at 150 ms")
    assert sum(len(beats) for beats in consensus) > 4000
    assert matches.f1 >= 99.7
    assert match_all(consensus, found, 75).f1 >= 99.5


def _consensus(record_mv: NDArray[np.float32]) -> NDArray[np.int64]:
    """Medians of clusters (gaps of at most 75 ms) in which at least five of the eight independent leads have a beat."""
    pooled = [
        sleepecg.detect_heartbeats(record_mv[lead].astype(float), 500, backend="c")
        for lead in (0, 1, 6, 7, 8, 9, 10, 11)
        if np.ptp(record_mv[lead]) > 0
    ]
    beats = np.sort(np.concatenate(pooled))
    clusters = np.split(beats, np.flatnonzero(np.diff(beats) > 37) + 1)
    return np.array([int(np.median(c)) for c in clusters if len(c) >= 5], np.int64)


@pytest.mark.parametrize(("name", "least_f1"), [("100", 99.9), ("106", 98.9), ("217", 99.8)])
def test_half_an_hour_of_two_leads_at_360_hz(mitdb_dir: Path, name: str, least_f1: float) -> None:
    """MIT-BIH: normal, bigeminy with pauses, paced (217); as good as the first lead alone, by us or by sleepecg."""
    record, annotation = wfdb.rdrecord(str(mitdb_dir / name)), wfdb.rdann(str(mitdb_dir / name), "atr")
    beats = np.array(
        [at for at, kind in zip(annotation.sample, annotation.symbol, strict=True) if kind in BEAT_SYMBOLS]
    )
    x_mv = np.zeros((1, 12, record.sig_len), np.float32)
    x_mv[0, [1, 6]] = record.p_signal.T  # a modified II, and V1 or V5
    (found,) = find_r_peaks(x_mv, 360, lead_mask=1 << 1 | 1 << 6)
    theirs = sleepecg.detect_heartbeats(np.ascontiguousarray(record.p_signal[:, 0]), 360, backend="c")
    (alone,) = find_r_peaks(x_mv, 360, lead_mask=1 << 1)
    f1, f1_theirs, f1_alone = (match(beats, np.asarray(p), 0.150 * 360).f1 for p in (found, theirs, alone))
    print(f"record {name}: {len(beats)} beats, F1 {f1:.2f}, one lead {f1_alone:.2f}, sleepecg {f1_theirs:.2f}")
    assert f1 >= max(least_f1, f1_theirs, f1_alone)
