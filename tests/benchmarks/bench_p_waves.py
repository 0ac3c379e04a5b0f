"""P waves found where cardiologists marked one, and claimed where they marked none: LUDB, and QTDB if it is there.

    BEATRAY_DATA=... python tests/benchmarks/bench_p_waves.py [FOLDER of QTDB, with the .q1c files]

R-peaks are found, not given, as in a corpus. `fitted on` and `reported` are the halves of the records by a hash of
their names: the weights of the rule come from the first. sel310 is shown apart: its marks leave out P waves that are
plainly there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

from p_claims import QTDB_RATE_HZ, Marked, claims, half_of, ludb_marks, qtdb_marks
from reference_beats import read_ludb, unpack_for_benchmark

from beatray.dsp.delineate import find_waves
from beatray.dsp.peaks import find_r_peaks

UNMARKED = "sel310"


def show(title: str, marks: list[Marked], rate_hz: float, leads: list[int] | None = None) -> None:
    """One line: both counts of these recordings, from all their leads or some."""
    signal_mv = np.stack([m.signal_mv if leads is None else m.signal_mv[leads] for m in marks])
    waves = find_waves(signal_mv, rate_hz, find_r_peaks(signal_mv, rate_hz))
    print(f"{title:42s} {claims(marks, waves, rate_hz)}")


def main(qtdb: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        marks = ludb_marks(read_ludb(unpack_for_benchmark("ludb", Path(folder))))
    for title, part in ((", fitted on", 0), (", reported", 1)):
        show(f"LUDB, eight leads{title}", [m for m in marks if half_of(m.name) == part], 500)
    show("LUDB, eight leads", marks, 500)
    for leads, title in (([1], "lead II"), ([1, 10], "leads II and V5"), ([6, 1], "leads V1 and II")):
        show(f"LUDB, {title}", marks, 500, leads)
    if qtdb is not None:
        marks = qtdb_marks(Path(qtdb))
        for title, part in ((", fitted on", 0), (", reported", 1)):
            show(f"QTDB, both leads{title}", [m for m in marks if half_of(m.name) == part], QTDB_RATE_HZ)
        show("QTDB, both leads", marks, QTDB_RATE_HZ)
        show(f"QTDB, both leads, without {UNMARKED}", [m for m in marks if m.name != UNMARKED], QTDB_RATE_HZ)


if __name__ == "__main__":
    main(*sys.argv[1:2])
