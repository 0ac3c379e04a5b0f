"""WFDB signal files: bytes to ADC counts, checked against the header before anything is allocated.

The formats that 12-lead archives use (16, 212, 24, 80, and 16 inside a MATLAB matrix) are decoded here with numpy; the
rest goes to `wfdb_fallback`. A file must have exactly the length that the header promises, its first samples must be
the header's initial values and its sums the header's checksums, so that a cut, padded or altered file is refused.

Contract: `read_signals(tree, folder, header)` gives `adc` of shape (n_samples, n_signals), a signed integer type, in
the header's order, and in memory one signal after the other, so that `adc.T` is contiguous (but after a skew); samples
marked invalid keep the format's marker and are True in `invalid` (None where there are none).
Raises `RecordError`: MISSING_FILE, UNSAFE_PATH, ABSURD_SIZE, TRUNCATED, TRAILING_BYTES, CHECKSUM, FORMAT, HEADER.
Checksums have 16 bits, so in 24- and 32-bit formats they do not cover the upper bytes.
Source: WFDB Applications Guide, signal(5) and header(5).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channel_names import is_known
from beatray.ingest.formats.channels import lead_shown
from beatray.ingest.formats.mat4 import check_mat4
from beatray.ingest.formats.wfdb_fallback import decode_rare, flac_bytes_limit
from beatray.ingest.formats.wfdb_header import Header, SignalLine
from beatray.ingest.member_checks import MAX_FILE_BYTES
from beatray.ingest.spelling import read_any_case
from beatray.ingest.tree import Tree
from beatray.record import Reason, RecordError

INVALID_SAMPLE = {
    8: None,
    16: -(1 << 15),
    24: -(1 << 23),
    32: -(1 << 31),
    61: -(1 << 15),
    80: -(1 << 7),
    160: -(1 << 15),
    212: -(1 << 11),
    310: -(1 << 9),
    311: -(1 << 9),
    508: -(1 << 7),
    516: -(1 << 15),
    524: -(1 << 23),
}
"""The count that each format reserves for "no sample here"."""

FLAC_FORMATS = (508, 516, 524)
Counts = NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Signals:
    """ADC counts (n_samples, n_signals), where they are invalid (same shape, or None), and notes."""

    adc: Counts
    invalid: NDArray[np.bool_] | None
    notes: tuple[str, ...]


def read_signals(tree: Tree, folder: str, header: Header) -> Signals:
    """Read every signal file of `header` from `folder` of `tree` (a prefix ending in `/`, or empty)."""
    parts: list[Counts] = []
    masks: list[NDArray[np.bool_] | None] = []
    for file_name, members in groupby(header.signals, key=lambda signal: signal.file_name):
        lines = tuple(members)
        adc = _read_file(tree, folder + file_name, lines, header)
        parts.append(adc)
        masks.append(_find_invalid(adc, lines[0].fmt))
    adc = np.ascontiguousarray((parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).T).T
    notes = _check_against_header(adc, header.signals)
    invalid: NDArray[np.bool_] | None = None
    if any(mask is not None for mask in masks):
        shapes = [np.zeros(part.shape, bool) if mask is None else mask for part, mask in zip(parts, masks, strict=True)]
        invalid = np.concatenate(shapes, axis=1)
    if any(signal.skew for signal in header.signals):
        adc, invalid = _remove_skew(adc, invalid, header.signals)
    return Signals(adc, invalid, notes)


def to_physical(adc: Counts, gain: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts (n_samples, k) to physical units (k, n_samples), float64: (count - baseline) / gain."""
    physical = adc.T.astype(np.float64, order="C")
    if baseline.any():
        physical -= baseline[:, None]
    physical /= gain[:, None]
    return physical


def _read_file(tree: Tree, path: str, lines: tuple[SignalLine, ...], header: Header) -> Counts:
    fmt, byte_offset, n_samples = lines[0].fmt, lines[0].byte_offset, header.n_samples
    total = n_samples * len(lines)
    if fmt in FLAC_FORMATS:
        data = read_any_case(tree, path, header.record_name, flac_bytes_limit(fmt, total))
        return decode_rare(data, lines, n_samples)
    least, most = (byte_offset + size for size in _stored_bytes(fmt, total))
    if least > MAX_FILE_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"the header promises {least} bytes in {path}, limit {MAX_FILE_BYTES}")
    data = read_any_case(tree, path, header.record_name, most, too_long=Reason.TRAILING_BYTES)
    if len(data) < least:
        raise RecordError(Reason.TRUNCATED, f"{path} has {len(data)} bytes, the header promises {least}")
    if len(data) not in (least, most):
        raise RecordError(Reason.TRAILING_BYTES, f"{path} has {len(data)} bytes, the header promises {least}")
    if path.lower().endswith(".mat"):
        check_mat4(data, fmt, byte_offset, len(lines), n_samples)
    if fmt == 16:
        return np.frombuffer(data, "<i2", total, byte_offset).reshape(n_samples, len(lines))
    if fmt == 212:
        return _decode_212(data, byte_offset, total).reshape(n_samples, len(lines))
    if fmt == 24:
        return _decode_24(data, byte_offset, total).reshape(n_samples, len(lines))
    if fmt == 80:
        counts = np.frombuffer(data, np.uint8, total, byte_offset).astype(np.int16) - np.int16(128)
        return counts.reshape(n_samples, len(lines))
    return decode_rare(data, lines, n_samples)


def _stored_bytes(fmt: int, total: int) -> tuple[int, int]:
    """Fewest and most bytes that `total` samples may take: packed formats may fill up their last group."""
    if fmt == 212:
        return (3 * total + 1) // 2, 3 * ((total + 1) // 2)
    if fmt in (310, 311):
        return (4 * total + 2) // 3, 4 * ((total + 2) // 3)
    exact = total * {8: 1, 16: 2, 24: 3, 32: 4, 61: 2, 80: 1, 160: 2}[fmt]
    return exact, exact


def _decode_212(data: bytes, byte_offset: int, total: int) -> Counts:
    """Two 12-bit two's complement samples in three bytes; an odd last sample may come in two."""
    n_pairs = (total + 1) // 2
    raw = np.frombuffer(data, np.uint8, offset=byte_offset)
    if raw.size < 3 * n_pairs:
        raw = np.append(raw, np.uint8(0))
    triplets = raw[: 3 * n_pairs].reshape(n_pairs, 3).astype(np.int16)
    counts = np.empty((n_pairs, 2), np.int16)
    middle = triplets[:, 1]
    counts[:, 0] = triplets[:, 0] | ((middle & 0x0F) << 8)
    counts[:, 1] = triplets[:, 2] | ((middle & 0xF0) << 4)
    counts ^= 0x800
    counts -= 0x800
    return counts.reshape(-1)[:total]


def _decode_24(data: bytes, byte_offset: int, total: int) -> Counts:
    """Three-byte two's complement samples, least significant byte first."""
    raw = np.frombuffer(data, np.uint8, 3 * total, byte_offset).reshape(total, 3)
    wide = np.zeros((total, 4), np.uint8)
    wide[:, 1:] = raw
    return wide.view("<i4").reshape(-1) >> 8


def _find_invalid(adc: Counts, fmt: int) -> NDArray[np.bool_] | None:
    marker = INVALID_SAMPLE[fmt]
    if marker is None or int(adc.min()) != marker:
        return None
    mask: NDArray[np.bool_] = adc == marker
    return mask


def _check_against_header(adc: Counts, lines: tuple[SignalLine, ...]) -> tuple[str, ...]:
    """Compare checksums and initial values; returns notes on what the header leaves out."""
    notes: list[str] = []
    # Sums wrap modulo 2^16 by definition, so the narrow accumulator loses nothing.
    sums = np.add.reduce(adc.T, axis=1, dtype=np.int16)
    stored = [line.checksum for line in lines]
    if all(checksum is None or checksum == 0 for checksum in stored) and bool(sums.any()):
        notes.append("checksum_absent")  # a zero in every line is the standard's placeholder
    else:
        for line, total in zip(lines, sums.tolist(), strict=True):
            if line.checksum is None:
                notes.append("checksum_absent")
            elif (line.checksum - total) & 0xFFFF:
                raise RecordError(
                    Reason.CHECKSUM, f"{_called(line)}: samples sum to {total}, the header says {line.checksum}"
                )
    for line, first in zip(lines, adc[0].tolist(), strict=True):
        if line.initial_value == first:
            continue
        if line.initial_value:
            raise RecordError(
                Reason.CHECKSUM, f"{_called(line)} starts at {first}, the header says {line.initial_value}"
            )
        notes.append("initial_value_absent")
    return tuple(dict.fromkeys(notes))


def _called(line: SignalLine) -> str:
    """A signal for a message: by its name if that is known, else by its lead."""
    return f"signal {line.name!r}" if is_known(line.name) else lead_shown(line.name)


def _remove_skew(
    adc: Counts, invalid: NDArray[np.bool_] | None, lines: tuple[SignalLine, ...]
) -> tuple[Counts, NDArray[np.bool_]]:
    """Bring signals that were sampled late back in step; what then lies beyond the file's end is invalid."""
    n_samples = adc.shape[0]
    aligned = adc.copy()
    lost = np.zeros(adc.shape, bool) if invalid is None else invalid.copy()
    for column, line in enumerate(lines):
        if line.skew:
            kept = max(n_samples - line.skew, 0)
            aligned[:kept, column] = adc[line.skew :, column]
            lost[:kept, column] = lost[line.skew :, column].copy()
            aligned[kept:, column] = INVALID_SAMPLE[line.fmt] or 0
            lost[kept:, column] = True
    return aligned, lost
