"""Small WFDB records written for tests: an ECG-like signal and writers that are independent of the reader.

The writers pack bytes in the plainest way there is, one sample at a time, so that a mistake in the reader's vectorised
unpacking cannot hide in a mirrored mistake here.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beatray.record import LEADS

COMMENTS = "#Age: 61\n#Sex: Female\n#Dx: 426783006,164889003\n"


def ecg_counts(n_samples: int = 5000, rate_hz: float = 500.0, seed: int = 0) -> NDArray[np.int64]:
    """Twelve leads (n_samples, 12) of one beat per second, whole microvolts, limb leads consistent."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(n_samples) / rate_hz
    phase = (time_s % 1.0)[:, None]
    shape = np.exp(-(((phase - 0.4) / 0.012) ** 2)) + 0.2 * np.exp(-(((phase - 0.7) / 0.05) ** 2))
    eight = np.rint(shape * rng.uniform(300, 1500, 8) + rng.normal(0, 5, (n_samples, 8))).astype(np.int64)
    one, two = eight[:, 0], eight[:, 1]
    limb = [one, two, two - one, -(one + two) // 2, one - two // 2, two - one // 2]
    return np.column_stack([*limb, eight[:, 2:]])


def pack(adc: NDArray[np.int64], fmt: int) -> bytes:
    """Samples (n, k) in one of the WFDB storage formats, one at a time."""
    flat = [int(value) for value in adc.reshape(-1)]
    if fmt == 16:
        return b"".join(struct.pack("<h", value) for value in flat)
    if fmt == 61:
        return b"".join(struct.pack(">h", value) for value in flat)
    if fmt == 160:
        return b"".join(struct.pack("<H", value + 32768) for value in flat)
    if fmt == 32:
        return b"".join(struct.pack("<i", value) for value in flat)
    if fmt == 80:
        return bytes(value + 128 for value in flat)
    if fmt == 24:
        return b"".join(struct.pack("<i", value)[:3] for value in flat)
    if fmt == 8:
        steps = np.diff(adc, axis=0, prepend=adc[:1])
        return b"".join(struct.pack("b", int(step)) for step in steps.reshape(-1))
    if fmt == 212:
        return b"".join(_pair(*flat[start : start + 2]) for start in range(0, len(flat), 2))
    if fmt == 310:
        return b"".join(_triple_310(flat[start : start + 3]) for start in range(0, len(flat), 3))
    if fmt == 311:
        return b"".join(_triple_311(flat[start : start + 3]) for start in range(0, len(flat), 3))
    raise ValueError(f"no writer for format {fmt}")


def mat4(adc: NDArray[np.int64]) -> bytes:
    """A MATLAB level 4 matrix `val` of int16, one column per sample: 24 bytes of header, then the samples."""
    return struct.pack("<5i", 30, adc.shape[1], adc.shape[0], 0, 4) + b"val\0" + pack(adc, 16)


def header_text(
    name: str,
    adc: NDArray[np.int64],
    *,
    storage: str = "16",
    gain: str = "1000/mV",
    rate: str = "500",
    leads: tuple[str, ...] = LEADS,
    file_name: str = "",
    n_samples: int | None = None,
    comments: str = COMMENTS,
) -> str:
    """A header with right checksums and initial values; any field can be replaced by the caller."""
    rows = [f"{name} {adc.shape[1]} {rate} {adc.shape[0] if n_samples is None else n_samples}"]
    for column, lead in enumerate(leads):
        checksum = int(adc[:, column].sum()) & 0xFFFF
        signed = checksum - 0x10000 if checksum > 0x7FFF else checksum
        rows.append(f"{file_name or name + '.dat'} {storage} {gain} 16 0 {int(adc[0, column])} {signed} 0 {lead}")
    return "\n".join(rows) + "\n" + comments


def write_record(folder: Path, name: str, adc: NDArray[np.int64], **fields: object) -> Path:
    """Write `<name>.hea` and its format 16 signal file; `fields` go to `header_text`. Returns the header's path."""
    header = folder / f"{name}.hea"
    header.write_text(header_text(name, adc, **fields))  # type: ignore[arg-type]
    (folder / f"{name}.dat").write_bytes(pack(adc, 16))
    return header


def _pair(first: int, second: int = 0) -> bytes:
    first, second = first & 0xFFF, second & 0xFFF
    return bytes((first & 0xFF, (first >> 8) | ((second >> 8) << 4), second & 0xFF))


def _triple_310(values: list[int]) -> bytes:
    first, second, third = (value & 0x3FF for value in (*values, 0, 0)[:3])
    low = ((first & 0x7F) << 1) | ((first >> 7) << 8) | ((third & 0x1F) << 11)
    high = ((second & 0x7F) << 1) | ((second >> 7) << 8) | ((third >> 5) << 11)
    return struct.pack("<HH", low, high)


def _triple_311(values: list[int]) -> bytes:
    first, second, third = (value & 0x3FF for value in (*values, 0, 0)[:3])
    return struct.pack("<I", first | (second << 10) | (third << 20))
