"""A WFDB record as twelve leads in millivolts: the one door through which every WFDB source comes in.

Leads are taken by name, never by position, since archives differ in order (one large set stores aVF before aVL), in
spelling, and in what else they record. Units are what the header declares; nothing is guessed or repaired but short
gaps and the limb leads that are sums of others, and each repair leaves a note.

Contract: `read_twelve_leads(tree, path)` gives float64 (12, n) in the order of `record.LEADS`, mV, zero where a lead is
absent from `lead_mask`. Raises `RecordError` as the header and signal readers do, and BAD_GAIN, BAD_UNITS,
DUPLICATE_LEADS, LEADS_MISSING, NOT_FINITE, FLAT. Notes: see `NOTES`. Limb leads: Einthoven's and Goldberger's
relations, III = II - I, aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.tree import Tree
from beatray.ingest.wfdb_header import MAX_HEADER_BYTES, Header, SignalLine, parse_header
from beatray.ingest.wfdb_signal import Signals, read_signals, to_physical
from beatray.record import LEAD_INDEX, LEADS, Reason, RecordError

NOTES = {
    "record_name_with_suffix": "the header calls the record NAME.mat",
    "checksum_absent": "the header holds no checksums",
    "initial_value_absent": "the header holds no initial values, or zeros that are not the first samples",
    "unit_spelling": "a unit written mv or uv",
    "gaps_interpolated": "invalid samples over at most 20 ms were interpolated",
    "leads_dropped": "a lead with a longer gap was left out",
    "leads_computed": "missing limb leads were computed from I and II",
}

MV_PER_UNIT = {"mV": 1.0, "mv": 1.0, "uV": 1e-3, "uv": 1e-3, "\u00b5V": 1e-3, "\u03bcV": 1e-3, "V": 1e3}
ODD_UNITS = ("mv", "uv")
MAX_GAP_S = 0.020
LIMB_WEIGHTS = {2: (-1.0, 1.0), 3: (-0.5, -0.5), 4: (1.0, -0.5), 5: (-0.5, 1.0)}
"""Weights of I and II that give III, aVR, aVL and aVF."""

CHEST_MASK = 0b1111_1100_0000


@dataclass(frozen=True, slots=True)
class TwelveLeads:
    """Twelve leads in mV (12, n), which of them are real, the rate, the header they came from, and notes."""

    signal_mv: NDArray[np.float64]
    lead_mask: int
    rate_hz: float
    header: Header
    notes: tuple[str, ...]


def read_header(tree: Tree, path: str) -> Header:
    """Parse the header file at `path`. Raises RecordError."""
    folder, name = split_path(path)
    return parse_header(tree.read(folder + name, MAX_HEADER_BYTES), name.removesuffix(".hea"))


def read_counts(tree: Tree, path: str) -> tuple[Header, Signals]:
    """Header and ADC counts (n, n_signals) of any supported WFDB record. Raises RecordError."""
    header = read_header(tree, path)
    return header, read_signals(tree, split_path(path)[0], header)


def read_twelve_leads(tree: Tree, path: str) -> TwelveLeads:
    """Read the record whose header lies at `path`; see the module's contract."""
    header = read_header(tree, path)
    columns = _columns_of_leads(header)
    if not columns[0] or not columns[1] or not any(columns[6:]):
        if any(line.gain is None for line in header.signals):
            raise RecordError(Reason.BAD_GAIN, "a signal line ends before its gain: the signal is not calibrated")
        absent = ", ".join(lead for lead, column in zip(LEADS, columns, strict=True) if not column)
        raise RecordError(Reason.LEADS_MISSING, f"I, II and a chest lead are needed; absent: {absent}")
    lines = {lead: header.signals[column - 1] for lead, column in enumerate(columns) if column}
    notes = list(header.notes)
    scales = {lead: _scale(line, notes) for lead, line in lines.items()}
    signals = read_signals(tree, split_path(path)[0], header)
    notes += signals.notes

    present = list(lines)
    picked = [columns[lead] - 1 for lead in present]
    whole = picked == list(range(signals.adc.shape[1]))
    adc = signals.adc if whole else signals.adc[:, picked]
    gain = np.array([scales[lead][0] for lead in present])
    baseline = np.array([lines[lead].baseline for lead in present], np.float64)
    physical = to_physical(adc, gain, baseline)
    for row, lead in enumerate(present):
        if scales[lead][1] != 1.0:
            physical[row] *= scales[lead][1]
    mask = sum(1 << lead for lead in present)
    if signals.invalid is not None:
        invalid = signals.invalid[:, picked].T
        dropped = close_gaps(physical, invalid, int(MAX_GAP_S * header.rate_hz), notes)
        mask &= ~sum(1 << present[row] for row in dropped)
        if not mask & CHEST_MASK:
            raise RecordError(Reason.NOT_FINITE, "every chest lead has a gap of more than 20 ms")
    signal_mv = physical if present == list(range(12)) else np.zeros((12, header.n_samples))
    if signal_mv is not physical:
        signal_mv[present] = physical
    mask = compute_limb_leads(signal_mv, mask, notes)
    usable = signal_mv[[lead for lead in range(12) if mask >> lead & 1]]
    if bool((usable == usable[:, :1]).all()):
        raise RecordError(Reason.FLAT, "every lead is constant")
    return TwelveLeads(signal_mv, mask, header.rate_hz, header, tuple(dict.fromkeys(notes)))


def split_path(path: str) -> tuple[str, str]:
    """A tree path as (folder ending in `/` or empty, file name)."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name


def _columns_of_leads(header: Header) -> list[int]:
    """For each of the twelve leads the 1-based signal that holds it; 0 where none does."""
    columns = [0] * 12
    for number, line in enumerate(header.signals, start=1):
        lead = LEAD_INDEX.get(line.name.lower())
        if lead is None:
            continue
        if columns[lead]:
            raise RecordError(Reason.DUPLICATE_LEADS, f"signals {columns[lead]} and {number} are both {LEADS[lead]}")
        columns[lead] = number
    return columns


def _scale(line: SignalLine, notes: list[str]) -> tuple[float, float]:
    """Counts per unit and millivolts per unit of one lead."""
    unit = MV_PER_UNIT.get(line.units)
    if unit is None:
        raise RecordError(Reason.BAD_UNITS, f"lead {line.name} is in {line.units[:40]!r}, not in mV, uV or V")
    if line.units in ODD_UNITS:
        notes.append("unit_spelling")
    if line.gain is None:
        raise RecordError(Reason.BAD_GAIN, f"lead {line.name} has no gain in the header")
    return line.gain, unit


def close_gaps(signal_mv: NDArray[np.float64], invalid: NDArray[np.bool_], max_gap: int, notes: list[str]) -> list[int]:
    """Interpolate short gaps in place; returns the rows with a longer one, set to zero."""
    dropped: list[int] = []
    for row in np.flatnonzero(invalid.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(invalid[row], prepend=False, append=False))
        if int((edges[1::2] - edges[0::2]).max()) > max_gap:
            signal_mv[row] = 0.0
            dropped.append(row)
            continue
        good = np.flatnonzero(~invalid[row])
        gaps = np.flatnonzero(invalid[row])
        signal_mv[row, gaps] = np.interp(gaps, good, signal_mv[row, good])
        notes.append("gaps_interpolated")
    if 2 * len(dropped) > invalid.shape[0]:
        raise RecordError(
            Reason.NOT_FINITE, f"{len(dropped)} of {invalid.shape[0]} leads have a gap of more than 20 ms"
        )
    if dropped:
        notes.append("leads_dropped")
    return dropped


def compute_limb_leads(signal_mv: NDArray[np.float64], mask: int, notes: list[str]) -> int:
    """Fill in III, aVR, aVL and aVF where they are missing and I and II are there; returns the new mask."""
    if mask & 0b11 != 0b11:
        return mask
    for lead, (of_one, of_two) in LIMB_WEIGHTS.items():
        if not mask >> lead & 1:
            signal_mv[lead] = of_one * signal_mv[0] + of_two * signal_mv[1]
            mask |= 1 << lead
            notes.append("leads_computed")
    return mask
