"""Our measurements beside those of the devices that made the recordings: Bland-Altman figures and every pair.

    BEATRAY_DATA=... python tests/benchmarks/bench_device_measurements.py

There are few samples (seven files of five makers' programs, one of them of a patient simulator), so the limits of
agreement say what kind of difference to expect, not how large it is in general.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from device_measurements import bland_altman, pairs_of


def main() -> None:
    named = os.environ.get("BEATRAY_DATA")
    if not named:
        sys.exit("set BEATRAY_DATA to the folder with misc/")
    pairs = pairs_of(Path(named))
    print(f"{'measurement':14s} {'n':>2s} {'bias':>8s} {'95 % limits of agreement':>26s}   (ours less the device's)")
    for name, found in pairs.items():
        bias, low, high = bland_altman(found)
        print(f"{name:14s} {len(found):2d} {bias:8.1f} {low:12.1f} to {high:10.1f}")
    print()
    for name, found in pairs.items():
        for pair in found:
            print(f"{name:14s} {pair.recording:50s} device {pair.device:6.0f}  ours {pair.measured:6.1f}")


if __name__ == "__main__":
    main()
