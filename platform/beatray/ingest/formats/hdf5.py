"""Plain arrays in HDF5 files of any size, read a few rows at a time where they lie.

HDF5 can do much that a recording never needs and a hostile file can use: links to other files, data sets put together
from other files, filters that are loaded as plug-ins, packed chunks that unpack without end. The HDF5 library is used
here only to find a data set and where its bytes lie; the bytes are read and unpacked by this module, within bounds.

Contract: `open_hdf5(file)` gives an open `h5py.File` on an open `RandomFile`; `plain_array(file, hdf5, name)` an
`Array` of numbers in the root group, stored in one piece or in chunks that are plain or packed by gzip, shuffle or lzf;
`read_rows(array, start, stop)` entries of its first axis. Rows that share chunks are unpacked together and the last
such band is kept, at most `MAX_BAND_BYTES`. Raises `RecordError`: FORMAT, TRUNCATED, ABSURD_SIZE, METADATA (no such
array or row). An I/O error of the disk itself is not caught. h5py keeps its metadata cache below 8 MiB.
Source: The HDF Group, HDF5 File Format Specification 3.0; h5py 3, "File Objects" and low-level API.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.random_file import RandomFile
from beatray.record import Reason, RecordError

MAX_ROW_BYTES = 64 * 1024 * 1024
MAX_BAND_BYTES = 256 * 1024 * 1024
FREE_BYTES = 1024 * 1024
MAX_RATIO = 200
MAX_CHUNKS_PER_BAND = 1 << 16
MAX_CACHE_BYTES = 8 * 1024 * 1024
_GZIP, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FAULTS = (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)


@dataclass(slots=True)
class Array:
    """A data set: its type and shape, and how its bytes are found. `band` is the last run of rows unpacked."""

    file: RandomFile
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: Any  # h5py.Dataset
    start: int | None  # byte of the first entry, where it is stored in one piece
    chunk: tuple[int, ...]
    filters: tuple[int, ...]
    band: tuple[int, NDArray[Any]] | None = None

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


def open_hdf5(file: RandomFile) -> Any:
    """An `h5py.File` for reading. Raises RecordError(FORMAT)."""
    try:
        import h5py
    except ImportError as error:
        raise RecordError(
            Reason.FORMAT, f"{file.member} is HDF5, which needs h5py: pip install 'beatray[formats]'"
        ) from error
    if file.read_at(0, 8) != b"\x89HDF\r\n\x1a\n":
        raise RecordError(Reason.FORMAT, f"{file.member} is not an HDF5 file")
    try:
        opened = h5py.File(file, "r", rdcc_nbytes=FREE_BYTES)
        cache = opened.id.get_mdc_config()
        cache.max_size = MAX_CACHE_BYTES
        opened.id.set_mdc_config(cache)
    except _FAULTS as error:
        raise _refusal(file, error) from error
    return opened


def plain_array(file: RandomFile, hdf5: Any, name: str) -> Array:
    """The data set `name` of the root group, if it is an array of numbers that lies in this file."""
    import h5py

    try:
        link = hdf5.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            what = "is not there" if link is None else "is a link"
            raise RecordError(Reason.METADATA, f"{file.member}: data set {name!r} {what}")
        data = hdf5[name]
        if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "fiu" or data.dtype.itemsize > 8:
            raise RecordError(Reason.FORMAT, f"{file.member}: {name!r} is not an array of numbers")
        plan = data.id.get_create_plist()
        layout, n_filters = plan.get_layout(), plan.get_nfilters()
        if plan.get_external_count() or layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
            raise RecordError(Reason.FORMAT, f"{file.member}: {name!r} is compact, virtual or kept in other files")
        filters = tuple(int(plan.get_filter(number)[0]) for number in range(n_filters))
        shape = tuple(int(axis) for axis in data.shape)
        if not 1 <= len(shape) <= 4:
            raise RecordError(Reason.FORMAT, f"{file.member}: {name!r} has {len(shape)} axes")
        array = Array(file, name, data.dtype, shape, data, None, (), filters)
        if layout == h5py.h5d.CONTIGUOUS:
            array.start = data.id.get_offset()
            size = shape[0] * array.row_bytes
            if array.start is None or data.id.get_storage_size() != size or array.start + size > file.size:
                raise RecordError(Reason.TRUNCATED, f"{file.member}: {name!r} of shape {shape} is not all there")
        else:
            array.chunk = tuple(int(axis) for axis in plan.get_chunk())
    except RecordError:
        raise
    except _FAULTS as error:
        raise _refusal(file, error) from error
    _check_bounds(array)
    return array


def _check_bounds(array: Array) -> None:
    where = f"{array.file.member}: {array.name!r} of shape {array.shape}"
    if array.row_bytes > MAX_ROW_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"{where}: {array.row_bytes} bytes in a row, limit {MAX_ROW_BYTES}")
    if array.start is not None:
        return
    unknown = [number for number in array.filters if number not in (_GZIP, _SHUFFLE, _FLETCHER32, _LZF)]
    if unknown or len(array.filters) > 4:
        raise RecordError(Reason.FORMAT, f"{where} is packed by filters {array.filters[:8]}: repack it with gzip")
    if len(array.chunk) != len(array.shape) or min(array.chunk) < 1:
        raise RecordError(Reason.FORMAT, f"{where} has chunks of shape {array.chunk}")
    chunks = prod(-(-axis // step) for axis, step in zip(array.shape[1:], array.chunk[1:], strict=True))
    if prod(array.chunk) * array.dtype.itemsize > MAX_ROW_BYTES or chunks > MAX_CHUNKS_PER_BAND:
        raise RecordError(Reason.ABSURD_SIZE, f"{where} has chunks of shape {array.chunk}: repack it, a row per chunk")
    if array.chunk[0] * array.row_bytes > MAX_BAND_BYTES:
        raise RecordError(
            Reason.ABSURD_SIZE, f"{where} keeps {array.chunk[0]} rows in one chunk: repack it with fewer, ideally one"
        )


def read_rows(array: Array, start: int, stop: int) -> NDArray[Any]:
    """Entries `start` to `stop` of the first axis, in the array's own type. Raises RecordError."""
    if not 0 <= start < stop <= array.shape[0]:
        raise RecordError(
            Reason.METADATA, f"{array.file.member}: {array.name!r} of shape {array.shape} has no rows {start} to {stop}"
        )
    if array.start is not None:
        data = array.file.read_exactly(array.start + start * array.row_bytes, (stop - start) * array.row_bytes)
        return np.frombuffer(data, array.dtype).reshape(stop - start, *array.shape[1:])
    step = array.chunk[0]
    parts = []
    for number in range(start // step, -(-stop // step)):
        band = _band(array, number)
        parts.append(band[max(start - number * step, 0) : stop - number * step])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _band(array: Array, number: int) -> NDArray[Any]:
    """All rows of one run of chunks."""
    if array.band is not None and array.band[0] == number:
        return array.band[1]
    first = number * array.chunk[0]
    corners = [
        (first, *corner)
        for corner in itertools.product(
            *(range(0, axis, step) for axis, step in zip(array.shape[1:], array.chunk[1:], strict=True))
        )
    ]
    chunks = [_chunk(array, corner) for corner in corners]
    rows = min(array.chunk[0], array.shape[0] - first)
    stored, size = sum(chunk[1] for chunk in chunks), rows * array.row_bytes
    if size > max(FREE_BYTES, MAX_RATIO * stored):
        raise RecordError(Reason.ABSURD_SIZE, f"{array.file.member}: {stored} bytes of chunks stand for {size}")
    band = np.empty((rows, *array.shape[1:]), array.dtype)
    for corner, stored_at in zip(corners, chunks, strict=True):
        chunk = _unpack(array, corner, stored_at)
        target = tuple(
            slice(begin, min(begin + step, axis))
            for begin, step, axis in zip((0, *corner[1:]), array.chunk, band.shape, strict=True)
        )
        band[target] = chunk[tuple(slice(0, part.stop - part.start) for part in target)]
    array.band = (number, band)
    return band


def _chunk(array: Array, corner: tuple[int, ...]) -> tuple[int, int, int]:
    """Where a chunk lies: byte, size, and which of its filters were left out."""
    try:
        info = array.data.id.get_chunk_info_by_coord(corner)
    except _FAULTS as error:
        raise _refusal(array.file, error) from error
    if info.byte_offset is None or not info.size:
        raise RecordError(Reason.TRUNCATED, f"{array.file.member}: the chunk at {corner} was never written")
    if info.byte_offset < 0 or info.byte_offset + info.size > array.file.size:
        raise RecordError(Reason.TRUNCATED, f"{array.file.member}: the chunk at {corner} is cut off")
    return int(info.byte_offset), int(info.size), int(info.filter_mask)


def _unpack(array: Array, corner: tuple[int, ...], chunk: tuple[int, int, int]) -> NDArray[Any]:
    """One chunk, through its filters in reverse."""
    begin, stored, left_out = chunk
    size = prod(array.chunk) * array.dtype.itemsize
    if stored > 2 * size + FREE_BYTES:
        raise RecordError(Reason.ABSURD_SIZE, f"{array.file.member}: a chunk of {size} bytes is stored in {stored}")
    data = array.file.read_exactly(begin, stored)
    try:
        for position, kind in reversed(list(enumerate(array.filters))):
            if left_out >> position & 1:
                continue
            if kind == _FLETCHER32:
                data = data[:-4]
            elif kind == _SHUFFLE:
                data = np.frombuffer(data, np.uint8).reshape(array.dtype.itemsize, -1).T.tobytes()
            elif kind == _GZIP:
                data = zlib.decompressobj().decompress(data, size + 5)
            else:
                data = _unlzf(data, size + 4)
    except (zlib.error, ValueError, IndexError) as error:
        raise RecordError(Reason.FORMAT, f"{array.file.member}: the chunk at {corner} cannot be unpacked") from error
    if len(data) != size:
        raise RecordError(Reason.TRUNCATED, f"{array.file.member}: the chunk at {corner} holds {len(data)} of {size}")
    return np.frombuffer(data, array.dtype).reshape(array.chunk)


def _unlzf(data: bytes, limit: int) -> bytes:
    """LZF: runs of literals, and copies of what came before, two or three bytes each."""
    out = bytearray()
    at = 0
    while at < len(data):
        control = data[at]
        at += 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
        else:
            length = control >> 5
            if length == 7:
                length += data[at]
                at += 1
            back = ((control & 0x1F) << 8 | data[at]) + 1
            at += 1
            if back > len(out):
                raise ValueError("a copy of what lies before the start")
            for _ in range(length + 2):
                out.append(out[-back])
        if len(out) > limit:
            raise ValueError("more bytes than the chunk has")
    return bytes(out)


def _refusal(file: RandomFile, error: Exception) -> Exception:
    """The disk's own fault where there was one; otherwise the file's."""
    if file.fault is not None:
        return file.fault
    return RecordError(Reason.FORMAT, f"{file.member} cannot be read as HDF5: {str(error)[:160]}")
