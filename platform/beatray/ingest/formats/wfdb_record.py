"""A WFDB record as twelve leads in millivolts: the one door through which every WFDB source comes in.

Units are what the header declares; nothing is guessed. Leads go by name, see `formats.leads`.

Contract: `read_twelve_leads(tree, path)` gives float64 (12, n) in the order of `record.LEADS`, mV, zero where a lead is
absent from `lead_mask`. A gap of more than 20 ms costs the lead; with `by_window`, in a recording of more than one
window, it stays, and so do stretches at the limits of a 16-bit converter: they are interpolated and marked in `gaps`,
so that only the windows they touch lose the lead. Raises `RecordError` as the header and signal readers and
`formats.leads` do, and BAD_GAIN, BAD_UNITS. Notes: see `NOTES`. `frank_mv` is (3, n), the Frank leads X, Y and Z, where
signals of the names vx, vy and vz are there, calibrated and without long gaps. `signal_uv` is that of `Record`: there
if all twelve leads were stored as 1000 counts per millivolt without an offset and without gaps, as in most archives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channels import MV_PER_UNIT
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.leads import (
    LONG_S,
    MAX_GAP_S,
    assemble,
    check_enough,
    check_not_constant,
    columns_of_leads,
    gaps_of_twelve,
    is_enough,
    mark_gaps,
)
from beatray.ingest.formats.numbers import shown
from beatray.ingest.formats.wfdb_header import MAX_HEADER_BYTES, Header, SignalLine, parse_header
from beatray.ingest.formats.wfdb_signal import Signals, read_signals, to_physical
from beatray.ingest.tree import Tree
from beatray.record import ALL_LEADS_MASK, LEADS, MADE_LATER, InMillivolts, Reason, RecordError

NOTES = {
    "record_name_with_suffix": "the header calls the record NAME.mat",
    "record_name_case": "the header writes the record's name with other capitals than its file",
    "record_name_with_folder": "the header puts a folder in front of the record's name",
    "checksum_absent": "the header holds no checksums",
    "initial_value_absent": "the header holds no initial values, or zeros that are not the first samples",
    "unit_spelling": "a unit written otherwise than mV, uV or V (mv, MV, microvolts, nV ...)",
    "gaps_interpolated": "invalid samples over at most 20 ms were interpolated",
    "leads_dropped": "a lead with a longer gap was left out",
    "leads_computed": "missing limb leads were computed from I and II",
}

USUAL_UNITS = ("mV", "uV", "\u00b5V", "\u03bcV", "V")
UV_GAIN = 1000.0
"""Counts per millivolt where a count is a microvolt."""
FULL_SCALE = (1 << 15) - 1
FRANK_NAMES = ("vx", "vy", "vz")


@dataclass(frozen=True, slots=True)
class TwelveLeads(InMillivolts):
    """Twelve leads in mV (12, n), which of them are real, the rate, the header they came from, notes, long gaps."""

    signal_mv: NDArray[np.float64]
    lead_mask: int
    rate_hz: float
    header: Header
    notes: tuple[str, ...]
    gaps: NDArray[np.bool_] | None = None
    frank_mv: NDArray[np.float64] | None = None
    signal_uv: NDArray[np.int16] | None = None


def read_header(tree: Tree, path: str) -> Header:
    """Parse the header file at `path`. Raises RecordError."""
    folder, name = split_path(path)
    stem = name[: -len(".hea")] if name.lower().endswith(".hea") else name
    return parse_header(tree.read(folder + name, MAX_HEADER_BYTES), stem)


def read_counts(tree: Tree, path: str) -> tuple[Header, Signals]:
    """Header and ADC counts (n, n_signals) of any supported WFDB record. Raises RecordError."""
    header = read_header(tree, path)
    return header, read_signals(tree, split_path(path)[0], header)


def read_twelve_leads(tree: Tree, path: str, *, by_window: bool = False) -> TwelveLeads:
    """Read the record whose header lies at `path`; see the module's contract."""
    header = read_header(tree, path)
    names = [line.name for line in header.signals]
    columns = columns_of_leads(names)
    if not is_enough(columns) and any(line.gain is None for line in header.signals):
        raise RecordError(Reason.BAD_GAIN, "a signal line ends before its gain: the signal is not calibrated")
    check_enough(columns, names)
    lines = {lead: header.signals[column - 1] for lead, column in enumerate(columns) if column}
    passed("header", lambda: f"{len(header.signals)} signals of {header.n_samples} samples at {header.rate_hz:g} Hz")
    passed("leads", lambda: " ".join(LEADS[lead] for lead in lines))
    notes = list(header.notes)
    scales = {lead: _scale(line, notes) for lead, line in lines.items()}
    passed("gain", lambda: ", ".join(dict.fromkeys(f"{line.gain:g}/{line.units}" for line in lines.values())))
    signals = read_signals(tree, split_path(path)[0], header)
    notes += signals.notes
    passed("storage", lambda: _formats(header) + ", right length")
    passed("checksums", "none in the header" if "checksum_absent" in signals.notes else "right")

    present = list(lines)
    picked = [columns[lead] - 1 for lead in present]
    whole = picked == list(range(signals.adc.shape[1]))
    adc = signals.adc if whole else signals.adc[:, picked]
    gain = np.array([scales[lead][0] for lead in present])
    baseline = np.array([lines[lead].baseline for lead in present], np.float64)
    in_uv = adc.dtype == np.int16 and not baseline.any() and all(scale == (UV_GAIN, 1.0) for scale in scales.values())
    by_window = by_window and header.n_samples >= LONG_S * header.rate_hz
    if in_uv and signals.invalid is None and not by_window and len(present) == 12:
        passed("gaps", "none")
        counts = np.ascontiguousarray(adc.T)
        check_not_constant(counts)
        frank_mv = _frank(header, signals)
        noted = tuple(dict.fromkeys(notes))
        return TwelveLeads(MADE_LATER, ALL_LEADS_MASK, header.rate_hz, header, noted, None, frank_mv, counts)
    physical = to_physical(adc, gain, baseline)
    for row, lead in enumerate(present):
        if scales[lead][1] != 1.0:
            physical[row] *= scales[lead][1]
    invalid = None if signals.invalid is None else signals.invalid[:, picked].T
    passed("gaps", "none" if invalid is None else f"{int(invalid.any(axis=0).sum())} samples in at least one lead")
    gaps: NDArray[np.bool_] | None = None
    intact = invalid is None
    if by_window:
        at_limit = np.abs(adc.T.astype(np.int64)) >= FULL_SCALE if adc.dtype.itemsize == 2 else None
        both = [mask for mask in (invalid, at_limit) if mask is not None and mask.any()]
        if both:
            intact = False
            marked = mark_gaps(physical, np.logical_or.reduce(both), int(MAX_GAP_S * header.rate_hz), notes)
            gaps = None if marked is None else gaps_of_twelve(marked, present)
        invalid = None
    signal_mv, mask = assemble(physical, present, header.rate_hz, invalid, notes)
    frank_mv = _frank(header, signals)
    signal_uv = np.ascontiguousarray(adc.T) if in_uv and intact and len(present) == 12 else None
    notes = list(dict.fromkeys(notes))
    return TwelveLeads(signal_mv, mask, header.rate_hz, header, tuple(notes), gaps, frank_mv, signal_uv)


def _formats(header: Header) -> str:
    return ", ".join(dict.fromkeys(f"format {line.fmt}" for line in header.signals))


def _frank(header: Header, signals: Signals) -> NDArray[np.float64] | None:
    """X, Y and Z in mV (3, n), or None where they cannot be trusted."""
    names = [line.name.lower() for line in header.signals]
    if any(names.count(name) != 1 for name in FRANK_NAMES):
        return None
    picked = [names.index(name) for name in FRANK_NAMES]
    lines = [header.signals[column] for column in picked]
    if any(line.gain is None or line.units.lower() not in MV_PER_UNIT for line in lines):
        return None
    gain = np.array([line.gain for line in lines], np.float64) / [MV_PER_UNIT[line.units.lower()] for line in lines]
    frank_mv = to_physical(signals.adc[:, picked], gain, np.array([line.baseline for line in lines], np.float64))
    if signals.invalid is not None:
        gaps = mark_gaps(frank_mv, signals.invalid[:, picked].T, int(MAX_GAP_S * header.rate_hz), [])
        if gaps is not None:
            return None
    return frank_mv


def split_path(path: str) -> tuple[str, str]:
    """A tree path as (folder ending in `/` or empty, file name)."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name


def _scale(line: SignalLine, notes: list[str]) -> tuple[float, float]:
    """Counts per unit and millivolts per unit of one lead."""
    unit = MV_PER_UNIT.get(line.units.lower())
    if unit is None:
        raise RecordError(Reason.BAD_UNITS, f"lead {line.name} is in {shown(line.units)}, not in nV, uV, mV or V")
    if line.units not in USUAL_UNITS:
        notes.append("unit_spelling")
    if line.gain is None:
        raise RecordError(Reason.BAD_GAIN, f"lead {line.name} has no gain in the header")
    return line.gain, unit
