"""The reference recordings of the signal tests and benchmarks: LUDB with its lead II annotations, and PTB-XL.

Not a test: `test_*.py` and `bench_*.py` read their data and count their hits here, so that both count alike.
"""

from __future__ import annotations

import ast
import os
import sys
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from numpy.typing import NDArray

from beatray.ingest.sources.ptbxl import WITHDRAWN
from beatray.record import LEADS

RATE_HZ = 500
SYMBOLS = {"p": "p", "N": "qrs", "t": "t"}
BOUNDARIES = ("p_onset", "p_peak", "p_offset", "qrs_onset", "qrs_offset", "t_onset", "t_peak", "t_offset")
BEAT_SYMBOLS = frozenset("NLRBAaJSVrFejnE/fQ?")
"""Annotation codes of WFDB that mark a heartbeat."""
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")


@dataclass(frozen=True, slots=True)
class Ludb:
    """`signal_mv` (200, 12, 5000); per record the annotated boundaries of one lead, R-peaks, and extent."""

    signal_mv: NDArray[np.float32]
    boundaries: list[dict[str, NDArray[np.int64]]]
    r_peaks: list[NDArray[np.int32]]
    extent: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Matches:
    """Counts of a one-to-one matching, and found minus reference in samples for each hit."""

    hits: int
    missed: int
    extra: int
    errors: NDArray[np.int64]

    @property
    def f1(self) -> float:
        return 100.0 * 2 * self.hits / max(1, 2 * self.hits + self.missed + self.extra)


def read_ludb(folder: Path, lead: int = LEADS.index("II")) -> Ludb:
    """All 200 records of the unpacked LUDB folder, with the annotations of one lead."""
    boundaries, r_peaks, extent = [], [], []
    for number in range(1, 201):
        annotation = wfdb.rdann(str(folder / "data" / str(number)), extension=LEADS[lead].lower())
        found, first, last = _boundaries(np.asarray(annotation.sample), list(annotation.symbol))
        boundaries.append(found)
        r_peaks.append(found["qrs_peak"].astype(np.int32))
        extent.append((first, last))
    return Ludb(_ludb_signals(folder), boundaries, r_peaks, extent)


@lru_cache(maxsize=1)
def _ludb_signals(folder: Path) -> NDArray[np.float32]:
    signals = np.stack([_canonical(wfdb.rdrecord(str(folder / "data" / str(number)))) for number in range(1, 201)])
    signals.flags.writeable = False
    return signals


def read_ptbxl(folder: Path) -> tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.bool_]]:
    """The unpacked PTB-XL records without the withdrawn: table rows, signals (N, 12, 5000) mV, superclasses (N, 5)."""
    table = pd.read_csv(folder / "ptbxl_database.csv", index_col="ecg_id").drop(index=list(WITHDRAWN), errors="ignore")
    table = table[[(folder / f"{name}.hea").is_file() for name in table["filename_hr"]]]
    statements = pd.read_csv(folder / "scp_statements.csv", index_col=0)
    superclass = statements.loc[statements["diagnostic"] == 1, "diagnostic_class"].to_dict()
    signals = np.stack([_canonical(wfdb.rdrecord(str(folder / name))) for name in table["filename_hr"]])
    codes = [{superclass.get(code) for code in ast.literal_eval(text)} for text in table["scp_codes"]]
    labels = np.array([[name in found for name in SUPERCLASSES] for found in codes])
    return table, signals, labels


def _canonical(record: wfdb.Record) -> NDArray[np.float32]:
    names = [name.lower() for name in record.sig_name]
    signal: NDArray[np.float32] = record.p_signal[:, [names.index(lead.lower()) for lead in LEADS]].T.astype(np.float32)
    return signal


def _boundaries(samples: NDArray[np.int64], symbols: list[str]) -> tuple[dict[str, NDArray[np.int64]], int, int]:
    found: dict[str, list[int]] = {
        f"{kind}_{part}": [] for kind in SYMBOLS.values() for part in ("onset", "peak", "offset")
    }
    for k, symbol in enumerate(symbols):
        if symbol in SYMBOLS:
            kind = SYMBOLS[symbol]
            found[f"{kind}_peak"].append(int(samples[k]))
            if k and symbols[k - 1] == "(":
                found[f"{kind}_onset"].append(int(samples[k - 1]))
            if k + 1 < len(symbols) and symbols[k + 1] == ")":
                found[f"{kind}_offset"].append(int(samples[k + 1]))
    return {name: np.array(at, np.int64) for name, at in found.items()}, int(samples[0]), int(samples[-1])


def match(
    reference: NDArray[np.integer],
    found: NDArray[np.integer],
    tolerance: float,
    annotated: tuple[int, int] | None = None,
) -> Matches:
    """Pairs each reference with at most one found position within `tolerance` samples, nearest pairs first.

    What is found outside the `annotated` stretch (first, last sample) may be a hit but never counts as extra.
    """
    reference, found = np.asarray(reference, np.int64), np.asarray(found, np.int64)
    distance = np.abs(reference[:, None] - found[None, :])
    pairs = np.argwhere(distance <= tolerance)
    pairs = pairs[np.argsort(distance[pairs[:, 0], pairs[:, 1]], kind="stable")]
    left, right, errors = set(range(len(reference))), set(range(len(found))), []
    for i, j in pairs.tolist():
        if i in left and j in right:
            left.remove(i)
            right.remove(j)
            errors.append(int(found[j] - reference[i]))
    extra = [j for j in right if annotated is None or annotated[0] <= found[j] <= annotated[1]]
    return Matches(len(errors), len(left), len(extra), np.array(errors, np.int64))


def match_all(references: list[NDArray[np.integer]], found: list[NDArray[np.integer]], tolerance_ms: float) -> Matches:
    """R-peaks of all records together; only what lies between the first and the last annotated beat counts."""
    tolerance = tolerance_ms * RATE_HZ / 1000
    parts = []
    for reference, positions in zip(references, found, strict=True):
        if len(reference) == 0:
            continue
        inside = positions[(positions >= reference[0] - tolerance) & (positions <= reference[-1] + tolerance)]
        parts.append(match(reference, inside, tolerance))
    return together(parts)


def match_boundary(ludb: Ludb, waves: list[NDArray[np.void]], name: str, tolerance_ms: float = 150.0) -> Matches:
    """One wave boundary against the lead II annotations; only what lies within the annotated stretch counts."""
    parts = []
    for boundaries, extent, beats in zip(ludb.boundaries, ludb.extent, waves, strict=True):
        found = beats[name][beats[name] >= 0]
        parts.append(match(boundaries[name], found, tolerance_ms * RATE_HZ / 1000, extent))
    return together(parts)


def together(parts: list[Matches]) -> Matches:
    errors = np.concatenate([part.errors for part in parts])
    return Matches(sum(p.hits for p in parts), sum(p.missed for p in parts), sum(p.extra for p in parts), errors)


def data_for_benchmark() -> Path:
    """The folder BEATRAY_DATA for a script; exits with a message without it."""
    named = os.environ.get("BEATRAY_DATA")
    if not named:
        sys.exit("set BEATRAY_DATA to the folder with ludb/, ptbxl/ and misc/")
    return Path(named)


def unpack_for_benchmark(name: str, into: Path) -> Path:
    """Unpacks `ludb` or `ptbxl` for a script."""
    archive = {"ludb": "ludb/ludb-1.0.1.tar.xz", "ptbxl": "ptbxl/ptbxl-500hz-folds1-9.tar.xz"}[name]
    with tarfile.open(data_for_benchmark() / archive) as tar:
        tar.extractall(into, filter="data")
    return into / {"ludb": "ludb-1.0.1", "ptbxl": "ptbxl"}[name]
