"""Delineation of LUDB given the annotated R-peaks, beside NeuroKit2's `prominence` and `dwt`: lead II, then each lead.

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

from reference_beats import BOUNDARIES, Ludb, match_boundary, read_ludb, together, unpack_for_benchmark

from beatray.dsp import neurokit
from beatray.dsp.delineate import find_waves
from beatray.record import LEADS

Waves = list[NDArray[np.void]]


def main(n_records: int = 200) -> None:
    with tempfile.TemporaryDirectory() as folder:
        compare(unpack_for_benchmark("ludb", Path(folder)), slice(0, n_records))


def compare(folder_of_ludb: Path, part: slice) -> None:
    """Lead II in all ways, then every lead."""
    whole = read_ludb(folder_of_ludb)
    ludb = Ludb(whole.signal_mv[part], whole.boundaries[part], whole.r_peaks[part], whole.extent[part])
    x, r = ludb.signal_mv, ludb.r_peaks
    methods: dict[str, Callable[[], Waves]] = {
        "beatray, 8 leads shared": lambda: find_waves(x, 500, r),
        "beatray, lead II": lambda: find_waves(x[:, 1:2], 500, r),
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
        show(f"{name}: {rate[name]:,.0f} records/s", [(ludb, waves)])
    base = rate["neurokit2 prominence, lead II"]
    print(
        "\nspeed against neurokit2 prominence:",
        ", ".join(f"{name} {value / base:.1f} x" for name, value in rate.items()),
    )

    every_lead(folder_of_ludb, part)


def every_lead(folder: Path, part: slice) -> None:
    """Each of the twelve leads alone, against its own annotations and with its own annotated R-peaks."""
    found: list[tuple[Ludb, Waves]] = []
    theirs: list[tuple[Ludb, Waves]] = []
    for lead in range(len(LEADS)):
        whole = read_ludb(folder, lead)
        ludb = Ludb(whole.signal_mv[part], whole.boundaries[part], whole.r_peaks[part], whole.extent[part])
        found.append((ludb, find_waves(ludb.signal_mv[:, lead : lead + 1], 500, ludb.r_peaks)))
        theirs.append((ludb, neurokit.find_waves(ludb.signal_mv, 500, ludb.r_peaks, lead_mask=1 << lead)))
        show(f"beatray, lead {LEADS[lead]}", found[-1:])
    show("beatray, all 12 leads, each by itself", found)
    show("neurokit2 prominence, all 12 leads, each by itself", theirs)


def show(title: str, found: list[tuple[Ludb, Waves]]) -> None:
    """Sensitivity, PPV, F1 within 40 ms, mean and SD of the error of each boundary, over all that was found."""
    print(f"\n{title}\n{'':12s} Se     PPV    F1@40   error ms")
    for boundary in BOUNDARIES:
        m = together([match_boundary(ludb, waves, boundary) for ludb, waves in found])
        close = together([match_boundary(ludb, waves, boundary, 40) for ludb, waves in found]).f1
        sensitivity, ppv = 100 * m.hits / max(1, m.hits + m.missed), 100 * m.hits / max(1, m.hits + m.extra)
        error = f"{2 * m.errors.mean():6.1f} +- {2 * m.errors.std():4.1f}"
        print(f"{boundary:12s} {sensitivity:6.2f} {ppv:6.2f} {close:6.2f}  {error}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
