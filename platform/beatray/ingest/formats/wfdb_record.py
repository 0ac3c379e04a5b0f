"""A WFDB record as twelve leads in millivolts: the one door through which every WFDB source comes in.

Units are what the header declares; nothing is guessed. Leads go by name, see `formats.leads`.

Contract: `read_twelve_leads(tree, path)` gives float64 (12, n) in the order of `record.LEADS`, mV, zero where a lead is
absent from `lead_mask`. Raises `RecordError` as the header and signal readers and `formats.leads` do, and BAD_GAIN,
BAD_UNITS. Notes: see `NOTES`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.leads import assemble, check_enough, columns_of_leads, is_enough
from beatray.ingest.formats.wfdb_header import MAX_HEADER_BYTES, Header, SignalLine, parse_header
from beatray.ingest.formats.wfdb_signal import Signals, read_signals, to_physical
from beatray.ingest.tree import Tree
from beatray.record import LEADS, Reason, RecordError

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
    columns = columns_of_leads([line.name for line in header.signals])
    if not is_enough(columns) and any(line.gain is None for line in header.signals):
        raise RecordError(Reason.BAD_GAIN, "a signal line ends before its gain: the signal is not calibrated")
    check_enough(columns)
    lines = {lead: header.signals[column - 1] for lead, column in enumerate(columns) if column}
    passed("header", f"{len(header.signals)} signals of {header.n_samples} samples at {header.rate_hz:g} Hz")
    passed("leads", " ".join(LEADS[lead] for lead in lines))
    notes = list(header.notes)
    scales = {lead: _scale(line, notes) for lead, line in lines.items()}
    passed("gain", ", ".join(dict.fromkeys(f"{line.gain:g}/{line.units}" for line in lines.values())))
    signals = read_signals(tree, split_path(path)[0], header)
    notes += signals.notes
    passed("storage", ", ".join(dict.fromkeys(f"format {line.fmt}" for line in header.signals)) + ", right length")
    passed("checksums", "none in the header" if "checksum_absent" in signals.notes else "right")

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
    invalid = None if signals.invalid is None else signals.invalid[:, picked].T
    passed("gaps", "none" if invalid is None else f"{int(invalid.any(axis=0).sum())} samples in at least one lead")
    signal_mv, mask = assemble(physical, present, header.rate_hz, invalid, notes)
    return TwelveLeads(signal_mv, mask, header.rate_hz, header, tuple(dict.fromkeys(notes)))


def split_path(path: str) -> tuple[str, str]:
    """A tree path as (folder ending in `/` or empty, file name)."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name


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
