"""Delineation of LUDB lead II given the annotated R-peaks, beside NeuroKit2's `prominence` and `dwt`, in one run.

    BEATRAY_DATA=... python tests/benchmarks/bench_delineate.py [records]

Prints, per boundary, sensitivity and PPV at 150 ms, F1 at 40 ms, mean and SD of the error, and records per second.
Only what lies between the first and the last annotated sample counts. NeuroKit2's time includes its `ecg_clean`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from reference_beats import BOUNDARIES, Ludb, match_boundary, read_ludb, unpack_for_benchmark

from beatray.dsp import neurokit
from beatray.dsp.delineate import find_waves

Waves = list[NDArray[np.void]]


def main(n_records: int = 200) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = read_ludb(unpack_for_benchmark("ludb", Path(folder)))
    part = slice(0, n_records)
    ludb = Ludb(whole.signal_mv[part], whole.boundaries[part], whole.r_peaks[part], whole.extent[part])
    x, r = ludb.signal_mv, ludb.r_peaks
    methods: dict[str, Callable[[], Waves]] = {
        "beatray, 8 leads shared": lambda: find_waves(x, 500, r),
        "beatray, lead II": lambda: find_waves(x, 500, r, lead=1),
        "neurokit2 prominence, lead II": lambda: neurokit.find_waves(x, 500, r, lead_mask=2),
        "neurokit2 dwt, lead II": lambda: neurokit.find_waves(x, 500, r, lead_mask=2, method="dwt"),
    }
    rate = {}
    for name, call in methods.items():
        repeats = 7 if name.startswith("beatray") else 1
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            waves = call()
            seconds.append(time.perf_counter() - started)
        rate[name] = len(x) / float(np.median(seconds))
        print(f"\n{name}: {rate[name]:,.0f} records/s")
        print(f"{'':12s} Se     PPV    F1@40   error ms")
        for boundary in BOUNDARIES:
            m = match_boundary(ludb, waves, boundary)
            sensitivity, ppv = 100 * m.hits / max(1, m.hits + m.missed), 100 * m.hits / max(1, m.hits + m.extra)
            close = match_boundary(ludb, waves, boundary, 40).f1
            errors_ms = 2 * m.errors
            print(
                f"{boundary:12s} {sensitivity:6.2f} {ppv:6.2f} {close:6.2f}  "
                f"{errors_ms.mean():6.1f} +- {errors_ms.std():4.1f}"
            )
    base = rate["neurokit2 prominence, lead II"]
    print(
        "\nspeed against neurokit2 prominence:",
        ", ".join(f"{name} {value / base:.1f} x" for name, value in rate.items()),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
