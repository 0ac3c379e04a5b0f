"""Records per second of each step of the signal analysis, and of the whole, on PTB-XL rows; one process, one thread.

    BEATRAY_DATA=... python tests/benchmarks/bench_analyse.py [repeats]

The steps' repeats are interleaved; medians. `sum of steps` is what the whole would reach if it cost nothing else.
NeuroKit2's `ecg_process` on one lead is timed beside them on a few records.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import neurokit2 as nk
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from reference_beats import read_ptbxl, unpack_for_benchmark

from beatray.dsp.analyse import CHUNK, analyse
from beatray.dsp.beats import cut_beats
from beatray.dsp.clean import highpass
from beatray.dsp.delineate import find_waves
from beatray.dsp.features import measure
from beatray.dsp.peaks import find_r_peaks
from beatray.dsp.quality import assess

STEPS = ("to millivolts", "peaks", "delineate", "features", "quality")


def main(repeats: int = 7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, signal_mv, _ = read_ptbxl(unpack_for_benchmark("ptbxl", Path(folder)))
    rows = np.rint(signal_mv * 1000).astype(np.int16)
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    in_mv = [part * np.float32(1e-3) for part in parts]
    peaks = [find_r_peaks(x, 500) for x in in_mv]
    waves = [find_waves(x, 500, r) for x, r in zip(in_mv, peaks, strict=True)]
    buffer = np.empty((CHUNK, *rows.shape[1:]), np.float32)
    three = list(zip(in_mv, peaks, waves, strict=True))
    calls: dict[str, Callable[[], object]] = {
        "to millivolts": lambda: [np.multiply(part, np.float32(1e-3), out=buffer[: len(part)]) for part in parts],
        "peaks": lambda: [find_r_peaks(x, 500) for x in in_mv],
        "delineate": lambda: [find_waves(x, 500, r) for x, r, _ in three],
        "features": lambda: [measure(x, 500, w) for x, _, w in three],
        "quality": lambda: [assess(x, 5000, 4095, r_peaks=r, waves=w) for x, r, w in three],
        "cut beats, 12 leads": lambda: [cut_beats(x, r, 0.25, 0.5, 500) for x, r, _ in three],
        "high-pass, 12 leads": lambda: [highpass(x, 500) for x in in_mv[:6]],
        "analyse, whole": lambda: analyse(rows, 5000, 4095),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            n_records = 6 * CHUNK if name.startswith("high-pass") else len(rows)
            seconds[name].append((time.perf_counter() - started) / n_records)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:24s} {1e6 * value:8.1f} us   {1 / value:10,.0f} records/s")
    print(f"{'sum of steps':24s} {1e6 * sum(median[s] for s in STEPS):8.1f} us")
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in signal_mv[:10]:
            nk.ecg_process(record[1].astype(np.float64), sampling_rate=500)
    theirs = (time.perf_counter() - started) / 10
    own_s = median["analyse, whole"]
    print(f"{'neurokit2 ecg_process':24s} {1e6 * theirs:8.0f} us   {1 / theirs:10,.0f} records/s, one lead")
    print(
        f"analyse against neurokit2 ecg_process: {theirs / own_s:.0f} x; "
        f"1 M records: {own_s * 1e6 / 3600:.2f} core-hours"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
