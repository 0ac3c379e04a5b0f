"""NeuroKit2 beside this package in what `beatray ingest` can take from either: R-peaks, waves and signal quality.

    BEATRAY_DATA=... python tests/benchmarks/bench_neurokit.py

Prints the tables of docs/recordings.md: R-peaks and waves of LUDB (200 recordings, annotations of lead II), and of the
half of Challenge 2011, set A, that set no threshold, the recordings that experts called unacceptable. NeuroKit2 reads
lead II; its quality is the method of Zhao and Zhang (Front Physiol 2018, 9:727).
"""

from __future__ import annotations

import datetime
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import neurokit2 as nk
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from bench_quality_flags import UNUSUAL, percent, read, second_half
from reference_beats import data_for_benchmark, match_all, match_boundary, read_ludb, unpack_for_benchmark

from beatray.dsp import neurokit
from beatray.dsp.analyse import analyse
from beatray.dsp.delineate import find_waves
from beatray.dsp.peaks import find_r_peaks
from beatray.train.timing import processor

BOUNDARIES = ("p_onset", "p_offset", "qrs_onset", "qrs_offset", "t_onset", "t_offset")


def beats(folder: Path) -> None:
    """R-peaks found, and waves at annotated R-peaks: F1 in %."""
    ludb = read_ludb(unpack_for_benchmark("ludb", folder))
    x, r = ludb.signal_mv, ludb.r_peaks
    waves = {
        "beatray": find_waves(x, 500, r),
        "beatray, lead II": find_waves(x, 500, r, lead=1),
        "NeuroKit2 `prominence`": neurokit.find_waves(x, 500, r, lead_mask=2),
        "NeuroKit2 `dwt`": neurokit.find_waves(x, 500, r, lead_mask=2, method="dwt"),
    }
    ours, lead_ii = find_r_peaks(x, 500), find_r_peaks(x[:, 1:2], 500)
    theirs = neurokit.find_r_peaks(x, 500, lead_mask=2)
    peaks = dict(zip(waves, (ours, lead_ii, theirs, theirs), strict=True))
    print("| LUDB, F1 in % | R-peaks | " + " | ".join(BOUNDARIES) + " |\n" + "|---" * 8 + "|")
    for name, found in waves.items():
        scores = [match_all(r, peaks[name], 150).f1, *(match_boundary(ludb, found, each, 40).f1 for each in BOUNDARIES)]
        print(f"| {name} | " + " | ".join(f"{score:.1f}" for score in scores) + " |")


def quality(folder: Path) -> None:
    """Which of the recordings that experts called unacceptable each of the two finds."""
    with tarfile.open(data_for_benchmark() / "misc" / "cinc2011_quality" / "cinc2011-quality.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    names, signal_uv, acceptable = read(folder)
    other = second_half(names)
    ours = analyse(signal_uv[other], 5000, 4095).flags & UNUSUAL
    theirs = [refused(row[1] / 1000.0) for row in signal_uv[other]]
    flagged = {
        "beatray, any flag but `limb_swap_suspect`, `few_beats`": ours != 0,
        "NeuroKit2: `Unacceptable`, or it fails": np.array(theirs),
    }
    print("\n| Challenge 2011, set A | of the unacceptable, % | specificity, % |\n|---|---|---|")
    bad = ~acceptable[other]
    for name, found in flagged.items():
        kept = int(np.count_nonzero(~found & ~bad))
        print(f"| {name} | {percent(int((found & bad).sum()), int(bad.sum()))} | {percent(kept, int((~bad).sum()))} |")


def refused(lead_mv: NDArray[np.float64]) -> bool:
    """Whether NeuroKit2 calls a lead unacceptable, or has no word for it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cleaned = nk.ecg_clean(lead_mv, sampling_rate=500)
            return bool(nk.ecg_quality(cleaned, sampling_rate=500, method="zhao2018") == "Unacceptable")
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, AttributeError, ArithmeticError):
        return True


def main() -> None:
    print(f"{processor()}, {datetime.date.today().isoformat()}, NeuroKit2 {nk.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        beats(Path(folder))
        quality(Path(folder))


if __name__ == "__main__":
    main()
