"""The rarer WFDB storage formats (8, 32, 61, 160, 310, 311 and FLAC 508, 516, 524), decoded by the `wfdb` package.

`wfdb` is the reference reader, but it trusts what it is given, so it never sees the wild header: the file's bytes and a
header rebuilt from checked fields are put into a private temporary folder. FLAC files are bounded by their own stream
information before they are unpacked, since a few bytes of FLAC can stand for gigabytes.

Contract: `decode_rare(data, lines, n_samples)` gives counts (n_samples, len(lines)), signed integers, without skew.
Raises `RecordError`: FORMAT (not a file of that format), TRUNCATED, TRAILING_BYTES, ABSURD_SIZE.
Source: WFDB Applications Guide, signal(5); FLAC, RFC 9639 section 8.2.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.wfdb_header import SignalLine
from beatray.ingest.member_checks import MAX_FILE_BYTES
from beatray.record import Reason, RecordError

MAX_FLAC_SAMPLES = 1 << 26
FREE_FLAC_SAMPLES = 1 << 20
MAX_FLAC_SAMPLES_PER_BYTE = 200
_FLAC_FORMATS = (508, 516, 524)
_STREAM_INFO_BYTES = 42


def decode_rare(data: bytes, lines: tuple[SignalLine, ...], n_samples: int) -> NDArray[np.signedinteger]:
    """Decode one signal file that holds the signals of `lines`, all in one format; see the module's contract."""
    first = lines[0]
    if first.fmt in _FLAC_FORMATS:
        _check_flac(data, first, len(lines), n_samples)
    import wfdb  # here, because it takes a second to import and most corpora never need it

    rows = [f"rare {len(lines)} 250 {n_samples}"]
    for number, line in enumerate(lines):
        start = line.initial_value or 0
        rows.append(f"rare.dat {line.fmt}+{line.byte_offset} 1(0)/NU 16 0 {start} 0 0 s{number}")
    with tempfile.TemporaryDirectory(prefix="beatray-") as scratch:
        folder = Path(scratch)
        (folder / "rare.hea").write_text("\n".join(rows) + "\n")
        (folder / "rare.dat").write_bytes(data)
        try:
            record = wfdb.rdrecord(str(folder / "rare"), physical=False)
        except (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, AssertionError, OSError) as error:
            message = str(error).replace(scratch, "").strip()[:200]
            raise RecordError(Reason.FORMAT, f"storage format {first.fmt} cannot be decoded: {message}") from error
    counts: NDArray[np.signedinteger] = np.asarray(record.d_signal)
    if counts.shape != (n_samples, len(lines)):
        raise RecordError(Reason.TRUNCATED, f"{first.file_name} holds {counts.shape[0]} of {n_samples} samples")
    return counts


def flac_bytes_limit(fmt: int, total: int) -> int:
    """Most bytes that a FLAC file of `total` samples may have: raw size, container overhead, and tags."""
    if total > MAX_FLAC_SAMPLES:
        raise RecordError(Reason.ABSURD_SIZE, f"{total} samples in a FLAC file, limit {MAX_FLAC_SAMPLES}")
    return min(MAX_FILE_BYTES, 2 * total * (fmt - 500) // 8 + (1 << 20))


def _check_flac(data: bytes, line: SignalLine, n_channels: int, n_samples: int) -> None:
    """Refuse a FLAC file whose stream information does not match the header, before anything is unpacked."""
    if len(data) < _STREAM_INFO_BYTES:
        raise RecordError(Reason.TRUNCATED, f"{line.file_name} has {len(data)} bytes, less than a FLAC header")
    if data[:4] != b"fLaC" or data[4] & 0x7F != 0:
        raise RecordError(Reason.FORMAT, f"{line.file_name} is not a FLAC file")
    packed = int.from_bytes(data[18:26], "big")  # 20 bits rate, 3 channels - 1, 5 bits - 1, 36 samples per channel
    channels = (packed >> 41 & 0x7) + 1
    bits = (packed >> 36 & 0x1F) + 1
    stored = packed & ((1 << 36) - 1)
    if channels != n_channels:
        raise RecordError(Reason.FORMAT, f"{line.file_name} has {channels} FLAC channels, the header says {n_channels}")
    if bits > line.fmt - 500:
        raise RecordError(Reason.FORMAT, f"{line.file_name} has {bits}-bit FLAC samples, too wide for {line.fmt}")
    expected = n_samples + line.byte_offset  # in FLAC formats the offset counts samples
    if stored != expected:
        reason = Reason.TRUNCATED if stored < expected else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{line.file_name} holds {stored} FLAC samples, the header promises {expected}")
    total = expected * n_channels
    if total > max(FREE_FLAC_SAMPLES, MAX_FLAC_SAMPLES_PER_BYTE * len(data)):
        raise RecordError(Reason.ABSURD_SIZE, f"{len(data)} bytes of FLAC stand for {total} samples")
