"""EDF and EDF+ (European Data Format) that holds a 12-lead ECG: a strict reader of its own, since the format is small.

Contract: `read(tree, path)` gives one Record. The file must be exactly as long as its header says. Leads must share one
sampling rate. Of the annotations only the time at which each data record begins is read: a recording marked as
interrupted (EDF+D), as some programs mark them all, is read if there is no gap, and refused if there is one. Files
without a number of data records are refused, and so is anything but 16-bit EDF. From the patient's line only EDF+
subfields are used: code, sex, and the birthday for the age. Raises `RecordError`: HEADER, FORMAT, ABSURD_SIZE,
BAD_RATE, BAD_UNITS, BAD_GAIN, TRUNCATED, TRAILING_BYTES and as `formats.channels`.
Source: Kemp et al., Electroenceph Clin Neurophysiol 82:391 (1992); Kemp & Olivan, Clin Neurophysiol 114:1755 (2003).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channels import (
    About,
    Channel,
    check_gain,
    check_rate,
    lead_shown,
    mv_per_unit,
    pick_leads,
    to_record,
)
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.numbers import decimal, exact, shown, whole
from beatray.ingest.formats.people import age_between, id_of, moment_of, sex_of
from beatray.ingest.member_checks import MAX_FILE_BYTES
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

SUFFIXES = (".edf",)
MAGIC = b"0       "
BLOCK = 256
MAX_SIGNALS = 256
MAX_RECORDS = 10_000_000
_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
"""Characters per signal: label, transducer, unit, physical and digital minimum and maximum, filter, samples, spare."""

ANNOTATIONS = "EDF Annotations"
_ONSET = re.compile(rb"([+-]\d{1,12}(?:\.\d{1,12})?)[\x14\x15]")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal's part of the header, as text, and its samples per data record."""

    label: str
    unit: str
    physical: tuple[str, str]
    digital: tuple[str, str]
    n_samples: int


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of EDF."""
    return head[:8] == MAGIC and head[184:192].strip().isdigit()


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a file. Raises RecordError."""
    head = tree.head(path, BLOCK)
    if len(head) < BLOCK or not looks_like(head):
        raise RecordError(Reason.HEADER, "no EDF header: it must begin with 0 and seven blanks")
    n_signals = whole(_text(head, 252, 4), Reason.HEADER, "number of signals")
    if not 0 < n_signals <= MAX_SIGNALS:
        raise RecordError(Reason.ABSURD_SIZE, f"{n_signals} signals, allowed 1 to {MAX_SIGNALS}")
    n_header = BLOCK * (1 + n_signals)
    if whole(_text(head, 184, 8), Reason.HEADER, "header length") != n_header:
        raise RecordError(
            Reason.HEADER, f"header length is {shown(_text(head, 184, 8))}, {n_header} for {n_signals} signals"
        )
    kind = _text(head, 192, 5)
    n_records = whole(_text(head, 236, 8), Reason.HEADER, "number of data records")
    if not 0 < n_records <= MAX_RECORDS:
        raise RecordError(Reason.HEADER, f"{n_records} data records, allowed 1 to {MAX_RECORDS}")
    record_s = exact(_text(head, 244, 8), Reason.BAD_RATE, "duration of a data record")
    signals = _signals(tree.head(path, n_header), n_signals)
    per_record = sum(signal.n_samples for signal in signals)
    expected = n_header + 2 * n_records * per_record
    if expected > MAX_FILE_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"{expected} bytes announced, limit {MAX_FILE_BYTES}")
    picked = pick_leads([signal.label for signal in signals])
    rates = {Fraction(signals[number].n_samples) / record_s for number in picked.values()}
    if len(rates) != 1:
        raise RecordError(Reason.FORMAT, f"the leads have {len(rates)} different sampling rates")
    rate_hz = check_rate(float(rates.pop()))
    data = tree.read(path, expected, too_long=Reason.TRAILING_BYTES)
    if len(data) != expected:
        raise RecordError(Reason.TRUNCATED, f"{len(data)} bytes, the header says {expected}")
    written = "EDF+" if kind.startswith("EDF+") else "EDF"
    passed("EDF", f"{written}, {n_signals} signals, {n_records} data records of {float(record_s):g} s")
    table = np.frombuffer(data, "<i2", n_records * per_record, n_header).reshape(n_records, per_record)
    starts = np.cumsum([0, *(signal.n_samples for signal in signals)])
    if kind == "EDF+D":
        number = next((k for k, signal in enumerate(signals) if signal.label == ANNOTATIONS), None)
        if number is None:
            raise RecordError(
                Reason.FORMAT,
                f"an interrupted recording (EDF+D) without the times of its data records: export it with the signal "
                f"{ANNOTATIONS}, or as EDF+C if it has no gap",
            )
        _check_no_gap(table[:, starts[number] : starts[number + 1]], record_s, 0.5 / rate_hz)
    channels = [
        _channel(signals[number], table[:, starts[number] : starts[number + 1]].reshape(-1))
        for number in picked.values()
    ]
    gains = dict.fromkeys(f"{_per_count(signals[k])[0]:.4g} {signals[k].unit}" for k in picked.values())
    passed("gain", ", ".join(gains) + " per count")
    yield to_record(path, channels, rate_hz, _about(head, kind))


def _check_no_gap(annotations: NDArray[np.int16], record_s: Fraction, tolerance_s: float) -> None:
    """Raise RecordError(FORMAT) unless each data record begins where the one before it ends: (records, samples)."""
    begun: Fraction | None = None
    for number, samples in enumerate(annotations):
        found = _ONSET.match(samples.tobytes())
        if found is None:
            raise RecordError(
                Reason.FORMAT,
                f"an interrupted recording (EDF+D): data record {number + 1} has no time: export it again, as EDF+C if "
                "it has no gap",
            )
        onset = Fraction(found[1].decode())
        begun = onset if begun is None else begun
        gap_s = float(onset - begun - number * record_s)
        if abs(gap_s) > tolerance_s:
            raise RecordError(
                Reason.FORMAT,
                f"an interrupted recording (EDF+D): a gap of {gap_s:g} s before data record {number + 1}; parts "
                "are not joined: export each as a file of its own",
            )
    passed("gaps between data records", f"none: {len(annotations)} follow each other, though marked EDF+D")


def _text(head: bytes, start: int, size: int) -> str:
    return head[start : start + size].decode("latin-1").strip()


def _signals(header: bytes, n_signals: int) -> list[Signal]:
    """The signals of the header, which lists each field for all of them before the next one."""
    if len(header) != BLOCK * (1 + n_signals):
        raise RecordError(Reason.TRUNCATED, f"{len(header)} bytes are no header of {n_signals} signals")
    columns: list[list[str]] = []
    start = BLOCK
    for width in _WIDTHS:
        columns.append([_text(header, start + number * width, width) for number in range(n_signals)])
        start += width * n_signals
    signals: list[Signal] = []
    for label, _, unit, low, high, lowest, highest, _, count, _ in zip(*columns, strict=True):
        n_samples = whole(count, Reason.HEADER, f"samples per data record of {lead_shown(label)}")
        if not 0 < n_samples <= MAX_FILE_BYTES // 2:
            raise RecordError(Reason.ABSURD_SIZE, f"{n_samples} samples per data record of {lead_shown(label)}")
        signals.append(Signal(label, unit, (low, high), (lowest, highest), n_samples))
    return signals


def _per_count(signal: Signal) -> tuple[float, float, int]:
    """The unit's value of one count, the physical minimum and the digital one. Raises RecordError(BAD_GAIN)."""
    what = f"range of {lead_shown(signal.label)}"
    low, high = (decimal(text, Reason.BAD_GAIN, what) for text in signal.physical)
    lowest, highest = (whole(text, Reason.BAD_GAIN, what) for text in signal.digital)
    if not -32768 <= lowest < highest <= 32767:
        raise RecordError(Reason.BAD_GAIN, f"{what}: digital from {lowest} to {highest}")
    return (high - low) / (highest - lowest), low, lowest


def _channel(signal: Signal, counts: np.ndarray) -> Channel:  # type: ignore[type-arg]
    unit = mv_per_unit(signal.unit, lead_shown(signal.label))
    per_count, low, lowest = _per_count(signal)
    check_gain(abs(per_count) * unit, f"range of {lead_shown(signal.label)}")
    return Channel(signal.label, ((counts - float(lowest)) * per_count + low) * unit)


def _about(head: bytes, kind: str) -> About:
    """EDF+ writes "code sex birthday name"; what plain EDF writes there is free text and stays here."""
    fields = head[8:88].decode("latin-1").split()
    if not kind.startswith("EDF+") or len(fields) < 3:
        return About()
    code, sex, born = fields[:3]
    started = head[88:168].decode("latin-1").split()
    taken = started[1] if len(started) > 1 and started[0] == "Startdate" else ""
    acquired = moment_of(f"{_iso(taken)} {head[176:184].decode('latin-1').strip().replace('.', ':')}")
    age = age_between(_iso(born), _iso(taken))
    return About(id_of(code) if code != "X" else None, age, sex_of(sex), acquired=acquired)


def _iso(text: str) -> str:
    """YYYYMMDD from dd-MMM-yyyy; empty for anything else."""
    day, _, rest = text.upper().partition("-")
    month, _, year = rest.partition("-")
    return f"{year}{_MONTHS.index(month) + 1:02d}{day:>02}" if month in _MONTHS else ""
