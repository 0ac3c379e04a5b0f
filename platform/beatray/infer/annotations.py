"""Waves as WFDB annotation files, which `wfdb.rdann` and other tools of PhysioNet read.

As in LUDB, a wave is an opening bracket at its onset, its symbol (p, N, t) at its peak and a closing bracket at its
offset; `chan` is the lead (0 for I to 11 for V6), or 0 where the leads share their waves. Samples count at 500 Hz from
the beginning of the recording, and the file states it. WFDB allows letters, digits, '-' and '_' in names: any other
character of a recording's name becomes '_', and of two names that would be one the later gets a number.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import wfdb

from beatray.record import LEADS, RATE_HZ
from beatray.storage.store import Store

EXTENSION = "waves"
SYMBOLS = {"P": "p", "QRS": "N", "T": "t"}


def write_annotations(store: Store, folder: str, waves: pa.Table) -> int:
    """One file for each recording of a table of waves (prediction_table.py), under `folder`; returns how many."""
    taken: set[str] = set()
    count = 0
    with tempfile.TemporaryDirectory(prefix="beatray-") as scratch:
        for record_id, own in _by_recording(waves):
            name = _free_name(record_id, taken)
            store.write(f"{folder}/{name}.{EXTENSION}", _annotation(own, Path(scratch)))
            count += 1
    return count


def _by_recording(waves: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    ids = np.array(waves["record_id"].to_pylist(), object)
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.empty(0, np.int64)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)], strict=True):
        if waves["wave"][start].is_valid:  # a file without any annotation cannot be written
            yield str(ids[start]), waves.slice(start, stop - start)


def _annotation(waves: pa.Table, scratch: Path) -> bytes:
    """The bytes of an annotation file."""
    marks = []
    for wave in waves.to_pylist():
        lead = 0 if wave["lead"] is None else LEADS.index(wave["lead"])
        symbols = ("(", SYMBOLS[wave["wave"]], ")")
        for symbol, when in zip(symbols, ("onset_s", "peak_s", "offset_s"), strict=True):
            marks.append((round(wave[when] * RATE_HZ), lead, symbol))
    marks.sort(key=lambda mark: mark[:2])  # brackets of one sample stay in their order
    wfdb.wrann(
        "record",
        EXTENSION,
        np.array([sample for sample, _, _ in marks]),
        [symbol for _, _, symbol in marks],
        chan=np.array([lead for _, lead, _ in marks]),
        fs=RATE_HZ,
        write_dir=str(scratch),
    )
    return (scratch / f"record.{EXTENSION}").read_bytes()


def _free_name(record_id: str, taken: set[str]) -> str:
    name = "/".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) or "_" for part in record_id.split("/"))
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found)
    return found
