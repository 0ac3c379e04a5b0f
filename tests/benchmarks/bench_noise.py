"""R-peaks under real noise: F1 at 24, 12, 6 and 0 dB beside sleepecg and NeuroKit2, on the same noisy recordings.

    BEATRAY_DATA=... python tests/benchmarks/bench_noise.py [records of each set]

LUDB has annotated peaks. PTB-XL has none: its reference are the peaks of the clean recording where all three detectors
find the same within 50 ms, and recordings on which they differ are left out. Tolerance 150 ms. beatray reads eight
leads, the others lead II; what more leads are worth under noise is part of what is shown.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import neurokit2 as nk
import numpy as np
import sleepecg
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from real_noise import KINDS, LEVELS_DB, add_noise, read_noise
from reference_beats import data_for_benchmark, match, match_all, read_ludb, read_ptbxl, unpack_for_benchmark

from beatray.dsp.peaks import find_r_peaks

RATE_HZ = 500
Peaks = list[NDArray[np.integer]]


def beatray_peaks(signal_mv: NDArray[np.float32]) -> Peaks:
    """This package, eight leads."""
    return list(find_r_peaks(signal_mv, RATE_HZ))


def by_sleepecg(signal_mv: NDArray[np.float32]) -> Peaks:
    """sleepecg's C detector, lead II."""
    leads = [np.ascontiguousarray(record[1], np.float64) for record in signal_mv]
    return [sleepecg.detect_heartbeats(lead, RATE_HZ, backend="c") for lead in leads]


def by_neurokit(signal_mv: NDArray[np.float32]) -> Peaks:
    """NeuroKit2's own detector on its own cleaning, lead II; no peaks where it fails."""
    found: Peaks = []
    for record in signal_mv:
        try:
            clean = nk.ecg_clean(record[1].astype(np.float64), sampling_rate=RATE_HZ)
            found.append(np.asarray(nk.ecg_peaks(clean, sampling_rate=RATE_HZ)[1]["ECG_R_Peaks"], np.int64))
        except (ValueError, IndexError):
            found.append(np.empty(0, np.int64))
    return found


DETECTORS: dict[str, Callable[[NDArray[np.float32]], Peaks]] = {
    "beatray": beatray_peaks,
    "sleepecg": by_sleepecg,
    "neurokit2": by_neurokit,
}


def agreed(signal_mv: NDArray[np.float32]) -> tuple[NDArray[np.bool_], Peaks]:
    """On which recordings all detectors find the same beats, and our positions of them."""
    found = {name: detect(signal_mv) for name, detect in DETECTORS.items()}
    same = []
    for number in range(len(signal_mv)):
        pairs = [match(found["beatray"][number], found[name][number], 0.050 * RATE_HZ) for name in DETECTORS]
        same.append(all(pair.missed == 0 and pair.extra == 0 for pair in pairs))
    return np.array(same), found["beatray"]


def main(n_records: int = 200) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ludb = read_ludb(unpack_for_benchmark("ludb", Path(folder)))
        _, ptbxl, _ = read_ptbxl(unpack_for_benchmark("ptbxl", Path(folder)))
    noise_folder = data_for_benchmark() / "misc" / "nstdb_segments"
    same, peaks = agreed(ptbxl[:n_records])
    sets = {
        "LUDB": (ludb.signal_mv[:n_records], list(ludb.r_peaks[:n_records])),
        "PTB-XL": (ptbxl[:n_records][same], [p for p, ok in zip(peaks, same, strict=True) if ok]),
    }
    for title, (signal_mv, reference) in sets.items():
        print(f"{title}, {len(signal_mv)} recordings, {sum(map(len, reference))} beats: F1 in % at 150 ms")
        print(f"  {'noise':18s} {'dB':>5s} " + " ".join(f"{name:>10s}" for name in DETECTORS))
        clean = [match_all(reference, detect(signal_mv), 150).f1 for detect in DETECTORS.values()]
        print(f"  {'none':18s} {'':>5s} " + " ".join(f"{value:10.2f}" for value in clean))
        for kind, name in KINDS.items():
            noise = read_noise(noise_folder, kind)
            for level in LEVELS_DB:
                noisy = add_noise(signal_mv, [p.astype(np.int32) for p in reference], noise, level, seed=level)
                values = [match_all(reference, detect(noisy), 150).f1 for detect in DETECTORS.values()]
                print(f"  {name:18s} {level:5d} " + " ".join(f"{value:10.2f}" for value in values), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
