"""R-peak detection on LUDB: accuracy and records per second beside sleepecg (C) and NeuroKit2, in one run.

    BEATRAY_DATA=... python tests/benchmarks/bench_r_peaks.py [repeats]

The repeats of the methods are interleaved and medians compared, so a busy machine slows all of them alike. sleepecg and
NeuroKit2 read one lead; beatray reads eight of the twelve together, and lead II alone for comparison. The last columns
compare with sleepecg on lead II, and on all twelve leads one after the other, in the same round.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import neurokit2 as nk
import numpy as np
import sleepecg
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from reference_beats import match_all, read_ludb, unpack_for_benchmark

from beatray.dsp.peaks import find_r_peaks

Peaks = list[NDArray[np.integer]]
ONE, TWELVE = "sleepecg C, lead II", "sleepecg C, twelve leads"


def main(repeats: int = 7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ludb = read_ludb(unpack_for_benchmark("ludb", Path(folder)))
    signal_mv = ludb.signal_mv
    lead_ii = [np.ascontiguousarray(record[1], np.float64) for record in signal_mv]
    n_records = len(signal_mv)

    def neurokit(signals: list[NDArray[np.float64]]) -> Peaks:
        return [
            np.asarray(nk.ecg_peaks(nk.ecg_clean(x, sampling_rate=500), sampling_rate=500)[1]["ECG_R_Peaks"])
            for x in signals
        ]

    every_lead = [np.ascontiguousarray(record, np.float64) for record in signal_mv[::5]]
    methods: dict[str, tuple[Callable[[], Peaks], int]] = {
        "beatray, 8 leads": (lambda: list(find_r_peaks(signal_mv, 500)), n_records),
        "beatray, 8 leads, one by one": (
            lambda: [find_r_peaks(signal_mv[k : k + 1], 500)[0] for k in range(n_records)],
            n_records,
        ),
        "beatray, lead II": (lambda: list(find_r_peaks(signal_mv[:, 1:2], 500)), n_records),
        TWELVE: (
            lambda: [sleepecg.detect_heartbeats(lead, 500, backend="c") for record in every_lead for lead in record],
            len(every_lead),
        ),
        ONE: (
            lambda: [sleepecg.detect_heartbeats(x, 500, backend="c") for x in lead_ii],
            n_records,
        ),
        "neurokit2, lead II": (lambda: neurokit(lead_ii[::5]), len(lead_ii[::5])),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for call, _ in methods.values():
        call()
    for _ in range(repeats):
        for name, (call, count) in methods.items():
            started = time.process_time()
            call()
            seconds[name].append((time.process_time() - started) / count)
    rate = {name: 1 / float(np.median(values)) for name, values in seconds.items()}
    found = {name: call() for name, (call, n) in methods.items() if n == n_records}
    found["neurokit2, lead II"] = neurokit(lead_ii)
    print(f"{'':30s} F1@50   @75    @150   jitter   records/s   of sleepecg, one  of twelve")
    for name, peaks in found.items():
        f1 = [match_all(ludb.r_peaks, peaks, tolerance).f1 for tolerance in (50, 75, 150)]
        jitter_ms = 2 * np.median(np.abs(match_all(ludb.r_peaks, peaks, 150).errors))
        one, twelve = (float(np.median(np.divide(seconds[other], seconds[name]))) for other in (ONE, TWELVE))
        accuracy = f"{f1[0]:6.2f} {f1[1]:6.2f} {f1[2]:6.2f} {jitter_ms:5.1f} ms"
        print(f"{name:30s} {accuracy} {rate[name]:10,.0f} {one:16.2f} x {twelve:8.1f} x")
    print(f"{TWELVE:30s} {'':35s} {rate[TWELVE]:7,.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
