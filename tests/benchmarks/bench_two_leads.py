"""R-peaks of recordings with two leads: both together beside each alone, on a folder of WFDB records with .atr beats.

    python tests/benchmarks/bench_two_leads.py FOLDER

FOLDER holds, for example, the MIT-BIH Arrhythmia Database or QTDB. Each record is read whole, and in pieces of 10 s, as
a corpus holds it; F1 within 150 ms over all records. `better of the two` takes for each record the lead that did
better, which nobody knows beforehand. Half of the records of MIT-BIH were used to choose the weights of leads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import wfdb
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from reference_beats import BEAT_SYMBOLS, Matches, match, together

from beatray.dsp.peaks import find_r_peaks

CHOICES = {"both": [0, 1], "first": [0], "second": [1]}


def read(folder: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64], float]]:
    """Signals (2, T) in mV, R-peaks and rate of each record."""
    records = {}
    for header in sorted(folder.glob("*.hea")):
        if header.with_suffix(".atr").exists():
            record = wfdb.rdrecord(str(header.with_suffix("")))
            notes = wfdb.rdann(str(header.with_suffix("")), "atr")
            beats = [at for at, kind in zip(notes.sample, notes.symbol, strict=True) if kind in BEAT_SYMBOLS]
            records[header.stem] = (record.p_signal.T[:2].astype(np.float32), np.array(beats, np.int64), record.fs)
    return records


def counts(signal_mv: NDArray[np.float32], beats: NDArray[np.int64], rate_hz: float, seconds: float | None) -> Matches:
    """Matches of one record, whole or in pieces of `seconds`; only what lies between its marks counts."""
    width = signal_mv.shape[1] if seconds is None else round(seconds * rate_hz)
    n_pieces = signal_mv.shape[1] // width
    pieces = np.stack(np.split(signal_mv[:, : n_pieces * width], n_pieces, axis=1))
    near = 0.15 * rate_hz
    parts = []
    for number, found in enumerate(find_r_peaks(pieces, rate_hz)):
        reference = beats[beats // width == number] - number * width
        if len(reference) == 0:
            parts.append(Matches(0, 0, len(found), np.empty(0, np.int64)))
            continue
        for start in range(0, len(reference), 200):  # a table of all distances of half an hour would be large
            some = reference[start : start + 200]
            low = some[0] - near if start == 0 else (reference[start - 1] + some[0]) / 2
            rest = reference[start + 200 :]
            high = some[-1] + near if len(rest) == 0 else (some[-1] + rest[0]) / 2
            parts.append(match(some, found[(found > low) & (found <= high)], near))
    return together(parts)


def main(folder: str) -> None:
    records = read(Path(folder))
    for title, seconds in (("whole", None), ("pieces of 10 s", 10.0)):
        found = {
            name: {choice: counts(x[leads], beats, rate, seconds) for choice, leads in CHOICES.items()}
            for name, (x, beats, rate) in records.items()
        }
        total = {choice: together([each[choice] for each in found.values()]) for choice in CHOICES}
        total["better of the two"] = together(
            [max(each["first"], each["second"], key=lambda m: m.f1) for each in found.values()]
        )
        line = ", ".join(f"{name} {m.f1:.2f} ({m.missed} missed, {m.extra} extra)" for name, m in total.items())
        print(f"{len(records)} records, {title}: {line}")
        worse = {name: max(e["first"].f1, e["second"].f1) - e["both"].f1 for name, e in found.items()}
        named = [f"{name} by {gap:.2f}" for name, gap in sorted(worse.items(), key=lambda item: -item[1]) if gap > 0.1]
        print(f"  both worse than one by more than 0.1: {', '.join(named) or 'none'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
