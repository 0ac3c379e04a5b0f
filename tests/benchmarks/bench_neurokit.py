"""NeuroKit2 beside this package in what `beatray ingest` can take from either: R-peaks, waves, signal quality and heart
rate variability.

    BEATRAY_DATA=... python tests/benchmarks/bench_neurokit.py

Prints the figures of docs/signal-analysis.md: R-peaks and waves of LUDB (200 recordings, annotations of lead II), of
the half of Challenge 2011, set A, that set no threshold, the recordings that experts called unacceptable, and measures
of heart rate variability. NeuroKit2 reads lead II; its quality is the method of Zhao and Zhang (Front Physiol 2018,
9:727).
"""

from __future__ import annotations

import datetime
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import neurokit2 as nk
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from bench_quality_flags import UNUSUAL, percent, read, second_half
from reference_beats import data_for_benchmark, match_all, match_boundary, read_ludb, unpack_for_benchmark

from beatray.dsp import neurokit
from beatray.dsp.analyse import analyse
from beatray.dsp.delineate import find_waves
from beatray.dsp.features import HRV_FEATURES, RECORD_FEATURES
from beatray.dsp.peaks import find_r_peaks
from beatray.train.timing import processor

BOUNDARIES = ("p_onset", "p_offset", "qrs_onset", "qrs_offset", "t_onset", "t_offset")


def beats(folder: Path) -> None:
    """R-peaks found, and waves at annotated R-peaks: F1 in %."""
    ludb = read_ludb(unpack_for_benchmark("ludb", folder))
    x, r = ludb.signal_mv, ludb.r_peaks
    waves = {
        "beatray": find_waves(x, 500, r),
        "beatray, lead II": find_waves(x[:, 1:2], 500, r),
        "NeuroKit2 `prominence`": neurokit.find_waves(x, 500, r, lead_mask=2),
        "NeuroKit2 `dwt`": neurokit.find_waves(x, 500, r, lead_mask=2, method="dwt"),
    }
    beatray_peaks, lead_ii = find_r_peaks(x, 500), find_r_peaks(x[:, 1:2], 500)
    theirs = neurokit.find_r_peaks(x, 500, lead_mask=2)
    peaks = dict(zip(waves, (beatray_peaks, lead_ii, theirs, theirs), strict=True))
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
    beatray_peaks = analyse(signal_uv[other], 5000, 4095).flags & UNUSUAL
    theirs = neurokit.unacceptable(signal_uv[other] / np.float32(1000), 500, lead_mask=2)
    flagged = {
        "beatray, any flag but `limb_swap_suspect`, `few_beats`": beatray_peaks != 0,
        "NeuroKit2: unacceptable, or it fails": theirs,
    }
    print("\n| Challenge 2011, set A | of the unacceptable, % | specificity, % |\n|---|---|---|")
    bad = ~acceptable[other]
    for name, found in flagged.items():
        kept = int(np.count_nonzero(~found & ~bad))
        print(f"| {name} | {percent(int((found & bad).sum()), int(bad.sum()))} | {percent(kept, int((~bad).sum()))} |")


def variability(folder: Path) -> None:
    """The three measures that are record features here, too, from the same R-peaks."""
    ludb = read_ludb(unpack_for_benchmark("ludb", folder))
    signal_uv = np.rint(ludb.signal_mv * 1000).astype(np.int16)
    found = analyse(signal_uv, signal_uv.shape[-1], 4095)
    began = time.process_time()
    theirs = neurokit.hrv(found.r_peaks, 500).astype(np.float64)
    seconds = (time.process_time() - began) / len(signal_uv)
    intervals = np.array([len(r) - 1 for r in found.r_peaks])
    print("\n| LUDB, 200 recordings | beatray and NeuroKit2 differ by at most, ms |\n|---|---|")
    for beatray_peaks, name in (("rr_mean_s", "HRV_MeanNN"), ("rr_sd_s", "HRV_SDNN"), ("rr_rmssd_s", "HRV_RMSSD")):
        here = 1e3 * found.record_features[:, RECORD_FEATURES.index(beatray_peaks)].astype(np.float64)
        if beatray_peaks == "rr_sd_s":  # theirs divides by n - 1
            here *= np.sqrt(intervals / (intervals - 1))
        apart = np.abs(here - theirs[:, HRV_FEATURES.index(name)])
        print(f"| `{beatray_peaks}`, {name} | {np.nanmax(apart):.3f} |")
    print(f"\nNeuroKit2's `hrv_time` takes {1e3 * seconds:.1f} ms a recording")


def main() -> None:
    print(f"{processor()}, {datetime.date.today().isoformat()}, NeuroKit2 {nk.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        beats(Path(folder))
        quality(Path(folder))
        variability(Path(folder))


if __name__ == "__main__":
    main()
