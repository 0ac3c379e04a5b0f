"""R-peaks of LUDB under real noise: at every level at least as many are found as by sleepecg and by NeuroKit2."""

from __future__ import annotations

from pathlib import Path

import neurokit2 as nk
import numpy as np
import pytest
from numpy.typing import NDArray
from real_noise import KINDS, LEVELS_DB, add_noise, read_noise
from reference_beats import Ludb, match_all, read_ludb

from beatray.dsp.peaks import find_r_peaks

sleepecg = pytest.importorskip("sleepecg")
EVERY = 4  # of the 200 recordings: NeuroKit2 takes 15 ms for each


@pytest.fixture(scope="module")
def ludb(ludb_dir: Path) -> Ludb:
    whole = read_ludb(ludb_dir)
    some = slice(0, None, EVERY)
    return Ludb(whole.signal_mv[some], whole.boundaries[some], whole.r_peaks[some], whole.extent[some])


def by_neurokit(lead_mv: NDArray[np.float64]) -> NDArray[np.int64]:
    try:
        clean = nk.ecg_clean(lead_mv, sampling_rate=500)
        return np.asarray(nk.ecg_peaks(clean, sampling_rate=500)[1]["ECG_R_Peaks"], np.int64)
    except (ValueError, IndexError):
        return np.empty(0, np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_as_good_at_every_level(ludb: Ludb, data_dir: Path, kind: str) -> None:
    noise = read_noise(data_dir / "misc" / "nstdb_segments", kind)
    for level in LEVELS_DB:
        noisy = add_noise(ludb.signal_mv, ludb.r_peaks, noise, level, seed=level)
        leads = [np.ascontiguousarray(record[1], np.float64) for record in noisy]
        f1 = {
            "beatray": match_all(ludb.r_peaks, find_r_peaks(noisy, 500), 150).f1,
            "sleepecg": match_all(
                ludb.r_peaks, [sleepecg.detect_heartbeats(lead, 500, backend="c") for lead in leads], 150
            ).f1,
            "neurokit2": match_all(ludb.r_peaks, [by_neurokit(lead) for lead in leads], 150).f1,
        }
        print(f"{KINDS[kind]} at {level} dB: " + ", ".join(f"{name} {value:.2f}" for name, value in f1.items()))
        assert f1["beatray"] >= max(f1.values())


@pytest.mark.parametrize(("kind", "level"), [("EM", 0), ("EM", -6), ("MA", 0), ("MA", -6), ("BW", -6)])
def test_a_noisy_lead_takes_next_to_nothing_from_a_clean_one(ludb: Ludb, data_dir: Path, kind: str, level: int) -> None:
    noise = read_noise(data_dir / "misc" / "nstdb_segments", kind)
    noisy = add_noise(ludb.signal_mv, ludb.r_peaks, noise, level, seed=1)
    for clean, bad in ((1, 10), (1, 6), (7, 0)):
        pair = np.stack([noisy[:, bad], ludb.signal_mv[:, clean]], axis=1)
        one, both, other = (
            match_all(ludb.r_peaks, find_r_peaks(pair[:, leads], 500), 150).f1 for leads in ([1], [0, 1], [0])
        )
        print(f"{KINDS[kind]} at {level} dB: the clean lead {one:.2f}, both {both:.2f}, the noisy one {other:.2f}")
        assert both >= one - 0.35


def test_the_noise_has_the_level_asked_for(ludb: Ludb, data_dir: Path) -> None:
    noise = read_noise(data_dir / "misc" / "nstdb_segments", "EM")
    noisy = {level: add_noise(ludb.signal_mv, ludb.r_peaks, noise, level, seed=1) for level in (0, 6)}
    power = {level: ((noisy[level] - ludb.signal_mv)[:, 0].astype(np.float64) ** 2).mean(axis=1) for level in noisy}
    assert np.allclose(10 * np.log10(power[0] / power[6]), 6.0, atol=0.05)
    assert np.abs(noisy[0][:, 3:6].sum(axis=1)).max() < 1e-4  # aVR + aVL + aVF = 0: limb leads agree under noise too
