"""What each quality flag finds of the recordings that experts called unacceptable: Challenge 2011, set A.

    BEATRAY_DATA=... python tests/benchmarks/bench_quality_flags.py

Prints the table of docs/signal-analysis.md. Thresholds come from one half of the recordings, by a hash of their names;
the table is of the other half, with exact (Clopper-Pearson) intervals of 95 %. Recordings were made with telephones by
people of all degrees of practice, and the gain of the copy used is inferred (200 counts per millivolt).
"""

from __future__ import annotations

import datetime
import hashlib
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import wfdb
from numpy.typing import NDArray
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from reference_beats import data_for_benchmark

from beatray.dsp import quality
from beatray.dsp.analyse import analyse
from beatray.dsp.clean import decimate
from beatray.dsp.quality import Flag
from beatray.train.timing import processor

UNUSUAL = Flag(~0) & ~Flag.LIMB_SWAP_SUSPECT & ~Flag.FEW_BEATS
"""Flags that say the signal is bad, rather than the heart slow or the cables swapped."""


def read(folder: Path) -> tuple[list[str], NDArray[np.int16], NDArray[np.bool_]]:
    """Names, signals (n, 12, 5000) in microvolts, and whether experts called them acceptable."""
    names, signals, acceptable = [], [], []
    for label in ("acceptable", "unacceptable"):
        for header in sorted((folder / "cinc2011" / label).glob("*.hea")):
            record = wfdb.rdrecord(str(header.with_suffix("")))
            names.append(header.stem)
            signals.append(np.clip(np.rint(record.p_signal.T * 1000), -32768, 32767).astype(np.int16))
            acceptable.append(label == "acceptable")
    return names, np.stack(signals), np.array(acceptable)


def second_half(names: list[str]) -> NDArray[np.bool_]:
    """Which recordings no threshold was chosen on."""
    return np.array([hashlib.sha256(name.encode()).digest()[0] % 2 == 1 for name in names])


def percent(hits: int, of: int) -> str:
    """A share in percent and its exact interval of 95 %."""
    interval = binomtest(hits, of).proportion_ci(0.95, "exact")
    return f"{100 * hits / of:.0f} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def thresholds(signal_uv: NDArray[np.int16]) -> dict[str, float]:
    """What 95 of 100 of these recordings stay below in their worst lead."""
    low = decimate(signal_uv * np.float32(1e-3), 4, tuple(range(12)))
    away = np.abs(low - low.mean(axis=-1, keepdims=True))
    measured = {
        "NOISY_MV": quality._fast_noise(np.diff(low, axis=-1), 125.0),
        "WANDER_MV": quality._wander(low, 125.0),
        "HUGE_MV": np.quantile(away, 1 - quality.HUGE_SHARE, axis=-1),
    }
    return {name: float(np.quantile(values.max(axis=1), 0.95)) for name, values in measured.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(data_for_benchmark() / "misc" / "cinc2011_quality" / "cinc2011-quality.tar.xz") as tar:
            tar.extractall(folder, filter="data")
        names, signal_uv, acceptable = read(Path(folder))
    other = second_half(names)
    for name, value in thresholds(signal_uv[~other & acceptable]).items():
        print(f"{name}: 95 % of the acceptable of the first half below {value:.3f}, set to {getattr(quality, name):g}")
    flags = analyse(signal_uv[other], 5000, 4095).flags
    bad, good = flags[~acceptable[other]], flags[acceptable[other]]
    print(f"\n{processor()}, {datetime.date.today().isoformat()}: {len(bad)} unacceptable, {len(good)} acceptable\n")
    print("| flag | of the unacceptable, % | specificity, % |\n|---|---|---|")
    rows = {f"`{str(flag.name).lower()}`": flag for flag in Flag} | {
        "any but `limb_swap_suspect`, `few_beats`": UNUSUAL
    }
    for title, flag in rows.items():
        found, kept = int(np.count_nonzero(bad & flag)), int(np.count_nonzero((good & flag) == 0))
        print(f"| {title} | {percent(found, len(bad))} | {percent(kept, len(good))} |")


if __name__ == "__main__":
    main()
