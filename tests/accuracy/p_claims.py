"""Beats that cardiologists marked with and without a P wave, and how many of each were given one.

Not a test: `test_delineation.py` and `bench_p_waves.py` count here. LUDB has marks of 10 s of twelve leads, QTDB
(annotator q1c) of thirty beats or more of two leads at 250 Hz, which are read in windows of 10 s, as in a corpus.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wfdb
from numpy.typing import NDArray
from reference_beats import Ludb

NEAR_S = 0.15
"""A beat is the one that was marked if their R-peaks are no farther apart."""
QTDB_RATE_HZ = 250
FIRST_P_S, LONGEST_PR_S = 0.4, 0.4
NOT_BEATS = frozenset("()ptu")


@dataclass(frozen=True, slots=True)
class Marked:
    """One recording: `signal_mv` (L, T), R-peaks of the marked beats, and whether each has a P wave."""

    name: str
    signal_mv: NDArray[np.float32]
    r_peaks: NDArray[np.int64]
    has_p: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Claims:
    """Beats with a P wave that were given one, of how many; the same of beats without."""

    found: int
    with_p: int
    claimed: int
    without_p: int

    def __str__(self) -> str:
        return (
            f"P waves found {self.found} of {self.with_p} ({100 * self.found / max(1, self.with_p):.1f} %), claimed on "
            f"{self.claimed} of {self.without_p} beats without ({100 * self.claimed / max(1, self.without_p):.1f} %)"
        )


def half_of(name: str) -> int:
    """0 for the half that rules are fitted on, 1 for the half they are reported on."""
    return hashlib.sha256(name.encode()).digest()[0] & 1


def ludb_marks(ludb: Ludb) -> list[Marked]:
    """All recordings; a first beat without a mark before it is left out, as the marks may begin after its P wave."""
    marks = []
    for number, (boundaries, extent) in enumerate(zip(ludb.boundaries, ludb.extent, strict=True)):
        r, p = boundaries["qrs_peak"], boundaries["p_peak"]
        before = np.append(max(extent[0], (r[0] if len(r) else 0) - round(FIRST_P_S * 500)), r[:-1])
        has_p = np.array([((p > start) & (p < at)).any() for start, at in zip(before, r, strict=True)], np.bool_)
        kept = has_p | (np.arange(len(r)) > 0)
        marks.append(Marked(f"ludb{number}", ludb.signal_mv[number], r[kept], has_p[kept]))
    return marks


def qtdb_marks(folder: Path) -> list[Marked]:
    """Windows of 10 s over the marked part of each record that has a .q1c file; a second of margin on both sides."""
    marks = []
    for header in sorted(folder.glob("*.hea")):
        if not header.with_suffix(".q1c").exists():
            continue
        signal_mv = wfdb.rdrecord(str(header.with_suffix(""))).p_signal.T.astype(np.float32)
        notes = wfdb.rdann(str(header.with_suffix("")), "q1c")
        r, has_p = _marked_beats(np.asarray(notes.sample), list(notes.symbol))
        width, margin = 10 * QTDB_RATE_HZ, round(0.6 * QTDB_RATE_HZ)
        for start in range(r[0] - QTDB_RATE_HZ, r[-1], width - 2 * margin):
            inside = (r >= start + margin) & (r < start + width - margin)
            if inside.any() and start >= 0 and start + width <= signal_mv.shape[1]:
                piece = signal_mv[:, start : start + width]
                marks.append(Marked(header.stem, piece, r[inside] - start, has_p[inside]))
    return marks


def _marked_beats(samples: NDArray[np.int64], symbols: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    r_peaks, has_p, last_p = [], [], -(10**9)
    for at, symbol in zip(samples.tolist(), symbols, strict=True):
        if symbol == "p":
            last_p = at
        elif symbol not in NOT_BEATS:
            r_peaks.append(at)
            has_p.append(at - last_p < LONGEST_PR_S * QTDB_RATE_HZ)
            last_p = -(10**9)
    return np.array(r_peaks, np.int64), np.array(has_p, np.bool_)


def claims(marks: list[Marked], waves: list[NDArray[np.void]], rate_hz: float) -> Claims:
    """How many of the marked beats were given a P wave; a beat that was not found counts in neither number."""
    counts = np.zeros((2, 2), np.int64)  # has a P wave, was given one
    for marked, beats in zip(marks, waves, strict=True):
        for r, has_p in zip(marked.r_peaks, marked.has_p, strict=True):
            distance = np.abs(beats["r_peak"] - r)
            if distance.size and distance.min() <= NEAR_S * rate_hz:
                counts[int(has_p), int(beats["p_peak"][distance.argmin()] >= 0)] += 1
    return Claims(int(counts[1, 1]), int(counts[1].sum()), int(counts[0, 1]), int(counts[0].sum()))
