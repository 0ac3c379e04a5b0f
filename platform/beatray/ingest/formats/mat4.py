"""The 24 bytes in front of the samples of a Challenge `.mat` file: a MATLAB level 4 matrix header.

The PhysioNet/CinC Challenge sets store their signals as one level 4 matrix `val` of 16-bit integers, a column per
sample, and let the WFDB header skip the matrix header by a byte offset. Reading it for real, instead of skipping it,
distinguishes a matrix of another type, shape or byte order from one that only happens to have the right length.

Contract: `check_mat4(bytes, ...)` returns nothing or raises `RecordError` (FORMAT, HEADER); it reads 20 bytes and the
name. Source: MathWorks, MAT-File Format, "Level 4 MAT-File Format"; wfdb2mat(1).
"""

from __future__ import annotations

import struct

from beatray.record import Reason, RecordError

HEADER_BYTES = 20
MAX_NAME_BYTES = 64
PRECISION_OF_FORMAT = {16: 30, 32: 20, 80: 50}
"""WFDB storage format to MATLAB type number: little endian, full, real matrix of int16, int32 or uint8."""


def check_mat4(data: bytes, fmt: int, byte_offset: int, n_rows: int, n_columns: int) -> None:
    """Check that `data` starts with the header of an (n_rows, n_columns) matrix whose values start at `byte_offset`.

    Raises RecordError: FORMAT where it is no such matrix, HEADER where the two headers disagree.
    """
    if data[:6] == b"MATLAB" or data[:8] == b"\x89HDF\r\n\x1a\n":
        raise RecordError(Reason.FORMAT, "a MATLAB level 5 or 7.3 file: only level 4 holds plain WFDB samples")
    if len(data) < HEADER_BYTES:
        raise RecordError(Reason.TRUNCATED, f"{len(data)} bytes are no MATLAB matrix header")
    kind, rows, columns, imaginary, name_bytes = struct.unpack_from("<5i", data)
    expected = PRECISION_OF_FORMAT.get(fmt)
    if expected is None:
        raise RecordError(Reason.FORMAT, f"storage format {fmt} does not occur in a MATLAB matrix")
    if kind != expected:
        raise RecordError(Reason.FORMAT, f"MATLAB matrix type {kind}, storage format {fmt} needs {expected}")
    if imaginary != 0:
        raise RecordError(Reason.FORMAT, "the MATLAB matrix has an imaginary part")
    start = HEADER_BYTES + name_bytes
    if not 1 <= name_bytes <= MAX_NAME_BYTES or data[start - 1 : start] != b"\0":
        raise RecordError(Reason.FORMAT, f"MATLAB matrix name of {name_bytes} bytes is not a terminated name")
    if start != byte_offset:
        raise RecordError(Reason.HEADER, f"samples start at byte {start}, the header says {byte_offset}")
    if (rows, columns) != (n_rows, n_columns):
        raise RecordError(
            Reason.HEADER, f"the MATLAB matrix is {rows} x {columns}, the header says {n_rows} x {n_columns}"
        )
