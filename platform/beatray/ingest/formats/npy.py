"""numpy's own array files: `.npy`, one array, and `.npz`, several of them in a zip.

The header is parsed here instead of by numpy, so that nothing in it is evaluated or unpickled and the shape is compared
with the bytes that are there before anything is allocated. A stack of recordings is read one recording at a time where
it lies, whatever its size.

Contract: `npy_layout(file)` gives type, shape and offset of the one array of an open `.npy`; `read_part(file, layout,
row)` reads the whole array, or entry `row` of its first axis, as a numpy array of at most `MAX_PART_BYTES`.
`npz_member(file, key)` opens one member of an `.npz` the same way: read in place where it is stored, unpacked up to
`MAX_FILE_BYTES` and 200:1 where it is compressed. Numbers only: signed, unsigned, half, single and double. Raises
`RecordError`: FORMAT, HEADER, TRUNCATED, TRAILING_BYTES, ABSURD_SIZE, CORRUPT_ARCHIVE, METADATA (no such array).
Source: NEP 1 and `numpy.lib.format`, versions 1.0 to 3.0; PKZIP application note, 4.3.7.
"""

from __future__ import annotations

import ast
import re
import struct
import zipfile
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.archive import DAMAGE, STEP_BYTES, check_ratio
from beatray.ingest.member_checks import MAX_FILE_BYTES
from beatray.ingest.random_file import RandomFile
from beatray.ingest.zip_tree import stored_start
from beatray.record import Reason, RecordError

MAX_HEADER_BYTES = 10_000
MAX_PART_BYTES = MAX_FILE_BYTES
MAX_AXES = 4
MAX_MEMBERS = 100_000
_MAGIC = b"\x93NUMPY"
_NUMBER = re.compile(r"[<>|=](?:[iu][1248]|f[248])")


@dataclass(frozen=True, slots=True)
class Layout:
    """An array in a file: its type and shape, whether the first axis runs fastest, and the byte it starts at."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    start: int


def npy_layout(file: RandomFile) -> Layout:
    """The header of an open `.npy`, checked against the file's size. Raises RecordError."""
    lead = file.read_at(0, 12)
    if lead[:6] != _MAGIC:
        raise RecordError(Reason.FORMAT, f"{file.member} is not a .npy file")
    version = tuple(lead[6:8])
    if len(lead) < 12:
        raise RecordError(Reason.TRUNCATED, f"{file.member} has {file.size} bytes, less than a header")
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise RecordError(Reason.FORMAT, f"{file.member} has version {version} of .npy, 1.0 to 3.0 are known")
    start, size = (10, struct.unpack_from("<H", lead, 8)[0]) if version == (1, 0) else (12, _wide_size(lead))
    if size > MAX_HEADER_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"{file.member} has a header of {size} bytes, limit {MAX_HEADER_BYTES}")
    dtype, fortran, shape = _parse_header(file.read_exactly(start, size), file.member)
    layout = Layout(dtype, shape, fortran, start + size)
    promised, present = prod(shape) * dtype.itemsize, file.size - layout.start
    if promised != present:
        reason = Reason.TRUNCATED if promised > present else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{file.member}: shape {shape} needs {promised} bytes, {present} are there")
    return layout


def _wide_size(lead: bytes) -> int:
    """Length of a header of version 2 or 3."""
    return int(struct.unpack_from("<I", lead, 8)[0])


def read_part(file: RandomFile, layout: Layout, row: int | None) -> NDArray[np.generic]:
    """The whole array, or entry `row` of the first axis. Raises RecordError."""
    shape = layout.shape if row is None else layout.shape[1:]
    if row is not None:
        if layout.fortran and len(layout.shape) > 1:
            raise RecordError(
                Reason.FORMAT, f"{file.member} is in Fortran order, where no recording lies in one piece: save it in C"
            )
        if not layout.shape or not 0 <= row < layout.shape[0]:
            raise RecordError(Reason.METADATA, f"{file.member} of shape {layout.shape} has no entry {row}")
    size = prod(shape) * layout.dtype.itemsize
    if size > MAX_PART_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"{file.member}: a recording of {size} bytes, limit {MAX_PART_BYTES}")
    data = file.read_exactly(layout.start + (row or 0) * size, size)
    return np.frombuffer(data, layout.dtype).reshape(shape, order="F" if layout.fortran else "C")


def npz_member(file: RandomFile, key: str) -> RandomFile:
    """The array `key` of an open `.npz`, as a file. Raises RecordError."""
    try:
        with zipfile.ZipFile(file) as packed:
            members = [info for info in packed.infolist() if info.filename == f"{key}.npy"]
            if len(packed.infolist()) > MAX_MEMBERS or len(members) != 1:
                known = ", ".join(sorted(info.filename.removesuffix(".npy") for info in packed.infolist())[:8])
                raise RecordError(Reason.METADATA, f"{file.member} has no single array {key!r}; it has {known}")
            info = members[0]
            identity = (*file.identity, key)
            label = f"{file.member}:{key}"
            if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RecordError(Reason.FORMAT, f"{label} is encrypted or compressed in an unusual way")
            if info.compress_type == zipfile.ZIP_STORED:
                start = stored_start(file.read_at, info)
                if not 0 < start <= start + info.file_size <= file.size or info.compress_size != info.file_size:
                    raise RecordError(Reason.CORRUPT_ARCHIVE, f"{label} lies outside the archive")
                return file.part(label, start, info.file_size, identity)
            if info.file_size > MAX_FILE_BYTES:
                raise RecordError(Reason.ABSURD_SIZE, f"{label} unpacks to {info.file_size} bytes: use numpy.savez")
            check_ratio(label, info.file_size, info.compress_size)
            with packed.open(info) as member:
                data = b"".join(iter(lambda: member.read(STEP_BYTES), b""))
    except RecordError:
        raise
    except DAMAGE as error:
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{file.member} cannot be unpacked: {str(error)[:120]}") from error
    if len(data) != info.file_size:
        raise RecordError(Reason.CORRUPT_ARCHIVE, f"{label} unpacks to {len(data)} of {info.file_size} bytes")
    return RandomFile(label, data, 0, len(data), identity)


def _parse_header(text: bytes, name: str) -> tuple[np.dtype[np.generic], bool, tuple[int, ...]]:
    try:
        fields = ast.literal_eval(text.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RecordError(Reason.HEADER, f"{name}: the header is not a Python dictionary") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise RecordError(Reason.HEADER, f"{name}: the header does not hold descr, fortran_order and shape")
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(descr, str) or not _NUMBER.fullmatch(descr):
        raise RecordError(Reason.FORMAT, f"{name} holds {str(descr)[:60]!r}: only plain numbers are read")
    if not isinstance(fortran, bool) or not isinstance(shape, tuple) or len(shape) > MAX_AXES:
        raise RecordError(Reason.HEADER, f"{name}: shape {str(shape)[:60]} with order {str(fortran)[:20]}")
    if not all(type(axis) is int and 0 <= axis < 1 << 48 for axis in shape):
        raise RecordError(Reason.HEADER, f"{name}: shape {str(shape)[:60]}")
    return np.dtype(descr), fortran, shape
