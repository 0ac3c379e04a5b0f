"""Wave boundaries against the lead II annotations of LUDB, side by side with NeuroKit2's most accurate method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from reference_beats import BOUNDARIES, Ludb, match_boundary, read_ludb

from beatray.dsp import neurokit
from beatray.dsp.delineate import find_waves

LEAD_II = 1


@pytest.fixture(scope="module")
def ludb(ludb_dir: Path) -> Ludb:
    return read_ludb(ludb_dir)


@pytest.fixture(scope="module")
def shared(ludb: Ludb) -> list[NDArray[np.void]]:
    return find_waves(ludb.signal_mv, 500, ludb.r_peaks)


@pytest.fixture(scope="module")
def lead_ii(ludb: Ludb) -> list[NDArray[np.void]]:
    return find_waves(ludb.signal_mv, 500, ludb.r_peaks, lead=LEAD_II)


# name: (least sensitivity %, least PPV %, most |mean error| ms, most SD of the error ms)
SHARED_BARS = {
    "p_onset": (97, 97, 8, 13),
    "p_peak": (97, 97, 8, 13),
    "p_offset": (97, 97, 9, 16),
    "qrs_onset": (99.5, 99, 3, 12),
    "qrs_offset": (99.5, 99.5, 4, 15),
    "t_onset": (98.5, 98, 8, 32),
    "t_peak": (98.5, 98, 11, 23),
    "t_offset": (98.5, 98, 5, 25),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_shared_boundaries(ludb: Ludb, shared: list[NDArray[np.void]], name: str) -> None:
    matches = match_boundary(ludb, shared, name)
    sensitivity = 100 * matches.hits / (matches.hits + matches.missed)
    ppv = 100 * matches.hits / (matches.hits + matches.extra)
    errors_ms = 2.0 * matches.errors
    print(f"{name}: Se {sensitivity:.2f} PPV {ppv:.2f} error {errors_ms.mean():.1f} +- {errors_ms.std():.1f} ms")
    least_sensitivity, least_ppv, most_bias, most_sd = SHARED_BARS[name]
    assert sensitivity >= least_sensitivity
    assert ppv >= least_ppv
    assert abs(errors_ms.mean()) <= most_bias
    assert errors_ms.std() <= most_sd


def test_at_least_as_accurate_as_neurokit(ludb: Ludb, lead_ii: list[NDArray[np.void]]) -> None:
    """On every fourth recording, in lead II: hits within 40 ms, and scatter, on at least six of eight boundaries."""
    part = slice(0, 200, 4)
    some = Ludb(ludb.signal_mv[part], ludb.boundaries[part], ludb.r_peaks[part], ludb.extent[part])
    theirs = neurokit.find_waves(some.signal_mv, 500, some.r_peaks, lead_mask=1 << LEAD_II)
    better_f1 = better_sd = 0
    for name in BOUNDARIES:
        ours_40, theirs_40 = match_boundary(some, lead_ii[part], name, 40).f1, match_boundary(some, theirs, name, 40).f1
        ours_sd = 2 * match_boundary(some, lead_ii[part], name).errors.std()
        theirs_sd = 2 * match_boundary(some, theirs, name).errors.std()
        print(f"{name}: F1 at 40 ms {ours_40:.1f} against {theirs_40:.1f}, SD {ours_sd:.1f} against {theirs_sd:.1f} ms")
        better_f1 += ours_40 >= theirs_40
        better_sd += ours_sd <= theirs_sd
    assert better_f1 >= 6
    assert better_sd >= 6


def test_no_p_waves_in_atrial_fibrillation(ludb: Ludb, ludb_dir: Path, shared: list[NDArray[np.void]]) -> None:
    rhythm = pd.read_csv(ludb_dir / "ludb.csv")["Rhythms"].str.strip()
    fraction = np.array([np.mean(beats["p_peak"] >= 0) for beats in shared])
    fibrillation = fraction[rhythm == "Atrial fibrillation"]
    sinus = fraction[rhythm == "Sinus rhythm"]
    assert len(fibrillation) >= 10
    assert len(sinus) >= 100
    print(f"beats given a P wave: {fibrillation.mean():.3f} in fibrillation, {sinus.mean():.3f} in sinus rhythm")
    assert fibrillation.mean() <= 0.1
    assert sinus.mean() >= 0.93
