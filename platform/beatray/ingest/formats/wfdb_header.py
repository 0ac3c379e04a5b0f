"""WFDB headers, read strictly and within bounds.

A header is a few hundred bytes of text that decides how many bytes of a signal file are read and what a count is worth
in millivolts, so everything in it is checked before anything is allocated or opened: counts and lengths against fixed
limits, gains and rates for being plain finite numbers, file names for being plain names in the record's own folder.
Fields that change no number here (ADC resolution, block size) must still be numbers, so that a line whose fields have
shifted is noticed; time and date of day are not read.

Contract: `parse_header(bytes, stem)` gives a `Header` or raises `RecordError`. It opens nothing. A gain that is not
written stays None: the standard's default of 200 units per millivolt is never put in its place.
Source: WFDB Applications Guide, header(5); Goldberger et al., Circulation 101:e215 (2000).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from beatray.ingest.formats.numbers import decimal, shown, whole
from beatray.record import Reason, RecordError

MAX_HEADER_BYTES = 256 * 1024
MAX_SIGNALS = 64
MAX_SAMPLES = 1 << 31
MAX_BYTE_OFFSET = 1 << 20
RATE_LIMITS_HZ = (50.0, 10_000.0)
MAX_CACHED_LINE = 256
"""A longer signal line is parsed each time: no file may fill the cache with more than a few kilobytes."""
KNOWN_FORMATS = (8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524)

_STORAGE = re.compile(
    r"(?P<fmt>\d{1,4})(?:x(?P<frame>\d{1,18}))?(?::(?P<skew>[+-]?\d{1,18}))?(?:\+(?P<offset>\d{1,18}))?", re.ASCII
)
_GAIN = re.compile(r"(?P<gain>[^()/]+)(?:\((?P<baseline>[^()/]*)\))?(?:/(?P<units>\S*))?")
_LINE_END = re.compile(r"\r\n|\r|\n")
"""Of header(5); other characters that end lines in Unicode may stand in a comment."""
_PLAIN_NAME = re.compile(r"\w[\w.\-]{0,254}")


class SignalLine(NamedTuple):
    """One signal of a header, as written. `gain` is ADC units per `units`; None where the header gives none.

    A tuple, because a header has twelve of them and a frozen dataclass takes six times as long to make.
    """

    file_name: str
    fmt: int
    skew: int
    byte_offset: int
    gain: float | None
    baseline: int
    units: str
    initial_value: int | None
    checksum: int | None
    name: str


@dataclass(frozen=True, slots=True)
class Header:
    """A single-segment, single-rate header: `n_samples` per signal at `rate_hz`; `comments` without their `#`."""

    record_name: str
    rate_hz: float
    n_samples: int
    signals: tuple[SignalLine, ...]
    comments: tuple[str, ...]
    notes: tuple[str, ...]


def parse_header(data: bytes, stem: str) -> Header:
    """Read the header of the record whose header file is `<stem>.hea`.

    Raises RecordError: HEADER, ABSURD_SIZE, FORMAT (multi-segment, several rates, unknown storage), BAD_RATE, BAD_GAIN,
    UNSAFE_PATH. A record name written as `<stem>.mat`, which early Challenge 2020 files have, with a folder in front,
    as in PTB-XL+ 1.0.1, or with other capitals than its file, as from a FAT disk, is read with a note.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"header of {len(data)} bytes, limit {MAX_HEADER_BYTES}")
    text = data.decode("utf-8-sig", errors="replace")
    if "\0" in text:
        raise RecordError(Reason.HEADER, "the header holds a NUL byte: it is not text")
    lines: list[str] = []
    comments: list[str] = []
    for raw in _LINE_END.split(text):
        line = raw.strip()
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line:
            lines.append(line)
    if not lines:
        raise RecordError(Reason.HEADER, "no record line")
    record_name, n_signals, rate_hz, n_samples, notes = _parse_record_line(lines[0], stem)
    if len(lines) - 1 != n_signals:
        raise RecordError(Reason.HEADER, f"{n_signals} signals announced, {len(lines) - 1} signal lines follow")
    signals = tuple(_parse_signal_line(line, rate_hz) for line in lines[1:])
    _check_groups(signals)
    return Header(record_name, rate_hz, n_samples, signals, tuple(comments), notes)


def comment_fields(header: Header) -> dict[str, list[str]]:
    """The `Key: value` comments of a header by lower-case key, e.g. {"dx": ["426783006"]}."""
    fields: dict[str, list[str]] = {}
    for comment in header.comments:
        key, colon, value = comment.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), []).append(value.strip())
    return fields


def _parse_record_line(line: str, stem: str) -> tuple[str, int, float, int, tuple[str, ...]]:
    fields = line.split()
    name, _, segments = fields[0].partition("/")
    notes: tuple[str, ...] = ()
    if segments.isdigit() and name.lower() == stem.lower():
        raise RecordError(
            Reason.FORMAT,
            f"multi-segment record ({shown(segments)} segments), whose parts are read by headers of their own: to "
            "have it whole, write it as one (wfdb.rdrecord, then wfdb.wrsamp)",
        )
    if "/" in fields[0]:
        name, notes = fields[0].rpartition("/")[2], ("record_name_with_folder",)
    if name.lower() == f"{stem}.mat".lower():
        name, notes = name[: -len(".mat")], (*notes, "record_name_with_suffix")
    if name != stem and name.lower() == stem.lower():
        name, notes = stem, (*notes, "record_name_case")
    if name != stem:
        raise RecordError(Reason.HEADER, f"record name {_short(name)} does not match the file name {_short(stem)}.hea")
    if len(fields) < 4:
        raise RecordError(Reason.HEADER, "the record line must give name, number of signals, rate and length")
    n_signals = _integer(fields[1], "number of signals")
    if not 0 < n_signals <= MAX_SIGNALS:
        reason = Reason.ABSURD_SIZE if n_signals > MAX_SIGNALS else Reason.HEADER
        raise RecordError(reason, f"{n_signals} signals, allowed 1 to {MAX_SIGNALS}")
    # 250/360(0): only the first number is the sampling rate; the rest is a counter for display.
    rate_hz = decimal(fields[2].partition("/")[0], Reason.BAD_RATE, "sampling rate")
    if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
        raise RecordError(Reason.BAD_RATE, f"sampling rate {rate_hz} Hz, allowed 50 to 10000")
    n_samples = _integer(fields[3], "number of samples")
    if n_samples <= 0:
        # Zero is legal and means "as many as there are", but then a cut file looks like a whole one.
        raise RecordError(Reason.HEADER, f"number of samples {n_samples}: the length must be written")
    if n_samples > MAX_SAMPLES:
        raise RecordError(Reason.ABSURD_SIZE, f"{n_samples} samples per signal, limit {MAX_SAMPLES}")
    return name, n_signals, rate_hz, n_samples, notes


def _parse_signal_line(line: str, rate_hz: float) -> SignalLine:
    fields = line.split(maxsplit=8)
    if len(fields) < 2:
        raise RecordError(Reason.HEADER, f"a signal line of {len(line)} characters has no storage format")
    parse = _parse_fields if len(line) <= MAX_CACHED_LINE else _parse_fields.__wrapped__
    fmt, skew, byte_offset, gain, baseline, units = parse(fields[0], rate_hz, *fields[1:5], *fields[7:8])
    initial_value = _integer(fields[5], "initial value") if len(fields) > 5 else None
    checksum = _integer(fields[6], "checksum") if len(fields) > 6 else None
    name = fields[8].strip() if len(fields) > 8 else ""
    return SignalLine(fields[0], fmt, skew, byte_offset, gain, baseline, units, initial_value, checksum, name)


@lru_cache(maxsize=64)
def _parse_fields(
    file_name: str,
    rate_hz: float,
    storage: str,
    gain_field: str | None = None,
    resolution: str | None = None,
    adc_zero_field: str | None = None,
    block_size: str | None = None,
) -> tuple[int, int, int, float | None, int, str]:
    """Format, skew, byte offset, gain, baseline and units: what the lines of one header nearly always share."""
    if not _PLAIN_NAME.fullmatch(file_name) or ".." in file_name:
        raise RecordError(Reason.UNSAFE_PATH, f"signal file {_short(file_name)} is not a plain name in the folder")
    fmt, skew, byte_offset = _parse_storage(storage, rate_hz)
    adc_zero = 0 if adc_zero_field is None else _integer(adc_zero_field, "ADC zero")
    gain, baseline, units = (None, adc_zero, "mV") if gain_field is None else _parse_gain(gain_field, adc_zero)
    for field, what in ((resolution, "ADC resolution"), (block_size, "block size")):
        if field is not None:
            _integer(field, what)
    return fmt, skew, byte_offset, gain, baseline, units


def _parse_storage(field: str, rate_hz: float) -> tuple[int, int, int]:
    if field == "16+24":  # nine of ten public 12-lead records say one of these two
        return 16, 0, 24
    if field == "16":
        return 16, 0, 0
    match = _STORAGE.fullmatch(field)
    if match is None:
        raise RecordError(Reason.HEADER, f"storage format is {shown(field)}, not FORMAT[xN][:SKEW][+OFFSET]")
    fmt = int(match["fmt"])
    if fmt not in KNOWN_FORMATS:
        raise RecordError(Reason.FORMAT, f"storage format {fmt} is not a WFDB signal format")
    frame = int(match["frame"] or 1)
    if frame != 1:
        raise RecordError(
            Reason.FORMAT,
            f"{frame} samples per frame: records of several rates are not read; write it at one (wfdb.rdrecord, then "
            "wfdb.wrsamp)",
        )
    skew = int(match["skew"] or 0)
    if not 0 <= skew <= rate_hz:
        raise RecordError(Reason.ABSURD_SIZE, f"skew of {skew} samples, allowed 0 to one second")
    byte_offset = int(match["offset"] or 0)
    if byte_offset > MAX_BYTE_OFFSET:
        raise RecordError(Reason.ABSURD_SIZE, f"byte offset {byte_offset}, limit {MAX_BYTE_OFFSET}")
    return fmt, skew, byte_offset


def _parse_gain(field: str, adc_zero: int) -> tuple[float, int, str]:
    match = _GAIN.fullmatch(field)
    if match is None:
        raise RecordError(Reason.BAD_GAIN, f"gain is {shown(field)}, not GAIN[(BASELINE)][/UNITS]")
    gain = decimal(match["gain"], Reason.BAD_GAIN, "gain")
    if gain <= 0:
        # Readers commonly put 200 for a zero gain, which made voltages five times wrong in a public data set.
        raise RecordError(Reason.BAD_GAIN, f"gain {gain}: the signal is not calibrated")
    baseline = adc_zero if match["baseline"] is None else _integer(match["baseline"], "baseline")
    return gain, baseline, "mV" if match["units"] is None else match["units"]


def _check_groups(signals: tuple[SignalLine, ...]) -> None:
    """Signals of one file must be listed together and agree on how it is stored."""
    seen: set[str] = set()
    previous: SignalLine | None = None
    for signal in signals:
        if previous is not None and signal.file_name == previous.file_name:
            if (signal.fmt, signal.byte_offset) != (previous.fmt, previous.byte_offset):
                raise RecordError(Reason.HEADER, f"two storage formats for one file {signal.file_name}")
        elif signal.file_name in seen:
            raise RecordError(Reason.HEADER, f"the signals of file {signal.file_name} are not listed together")
        seen.add(signal.file_name)
        previous = signal


def _integer(field: str, what: str) -> int:
    digits = field.removeprefix("-")
    plain = digits.isdigit() and digits.isascii() and len(digits) <= 18  # nearly every field; spares the pattern
    return int(field) if plain else whole(field, Reason.HEADER, what)


def _short(text: str) -> str:
    """Hostile text for a message: escaped and cut."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
