"""MATLAB level 5 files (`save -v6`, `-v7`): the part of the format in which recordings are kept, and nothing else.

Own reader, because a general one builds whatever a file describes: cells in cells, objects, function handles, arrays
of any claimed size. Here a variable is an array of real numbers, a line of text, or one struct of these; a file that
holds anything else is refused as a whole, and lengths are compared with the bytes that are there before use.

Contract: `read_mat5(bytes)` gives the variables by name: numpy arrays in MATLAB's shape (at least two axes), str, or
dict of these. Variables may unpack and widen to 8 MiB or 20 times the file's size, whichever is more. Arrays are
views of the bytes where the type allows it. Raises `RecordError`: FORMAT (not level 5, or a kind of variable that is
not read), TRUNCATED, TRAILING_BYTES, HEADER (fields that contradict each other), ABSURD_SIZE.
Source: MathWorks, MAT-File Format, "Level 5 MAT-File Format"; zlib, RFC 1950.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.record import Reason, RecordError

HEADER_BYTES = 128
FREE_BYTES = 8 * 1024 * 1024
MAX_RATIO = 20
MAX_VARIABLES = 64
MAX_FIELDS = 64
MAX_AXES = 4
MAX_NAME = 63

_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Data types of elements as numpy types."""
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""Classes of numeric arrays as numpy types."""
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_REFUSED = {1: "a cell array", 3: "an object", 5: "a sparse matrix", 16: "a function handle", 17: "an opaque object"}
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_CHAR_CLASS, _STRUCT_CLASS = 4, 2

Plain = NDArray[np.generic] | str
Value = Plain | dict[str, Plain]


@dataclass(slots=True)
class _Cursor:
    """A position in a run of elements; `order` is the byte order of numbers, `room` what they may still unpack to."""

    data: memoryview
    order: str
    room: int
    at: int = 0


def read_mat5(data: bytes) -> dict[str, Value]:
    """All variables of a level 5 file; see the module's contract."""
    cursor = _Cursor(memoryview(data), _byte_order(data), max(FREE_BYTES, MAX_RATIO * len(data)), HEADER_BYTES)
    variables: dict[str, Value] = {}
    while cursor.at < len(data):
        kind, payload = _element(cursor, padded=False)
        if kind == _COMPRESSED:
            unpacked = _inflate(payload, cursor.room)
            cursor.room -= len(unpacked)
            inner = _Cursor(memoryview(unpacked), cursor.order, 0)
            kind, payload = _element(inner)
            _check_end(inner)
        elif cursor.at % 8:
            cursor.at += 8 - cursor.at % 8
        if kind != _MATRIX:
            raise RecordError(Reason.FORMAT, f"element of type {kind} where a variable is expected")
        body = _Cursor(payload, cursor.order, cursor.room)
        name, value = _variable(body, inside_struct=False)
        cursor.room = body.room
        if name in variables or len(variables) >= MAX_VARIABLES:
            raise RecordError(Reason.HEADER, f"variable {name!r} comes twice, or there are more than {MAX_VARIABLES}")
        variables[name] = value
    if not variables:
        raise RecordError(Reason.TRUNCATED, "the MATLAB file holds no variable")
    return variables


def _byte_order(data: bytes) -> str:
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[512:520] == b"\x89HDF\r\n\x1a\n" or data[:10] == b"MATLAB 7.3":
        raise RecordError(Reason.FORMAT, "a MATLAB 7.3 file (HDF5): save it again with -v7")
    if data[:6] != b"MATLAB":
        raise RecordError(Reason.FORMAT, "not a MATLAB level 5 file")
    if len(data) < HEADER_BYTES:
        raise RecordError(Reason.TRUNCATED, f"{len(data)} bytes are less than a MATLAB header")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack_from(order + "H", data, 124)[0] != 0x0100:
        raise RecordError(Reason.FORMAT, "the MATLAB header names neither level 5 nor a byte order")
    return order


def _element(cursor: _Cursor, *, padded: bool = True) -> tuple[int, memoryview]:
    """The next element's type and payload; the cursor moves behind it."""
    data, at = cursor.data, cursor.at
    if at + 8 > len(data):
        raise RecordError(Reason.TRUNCATED, f"an element is announced at byte {at}, the end is at {len(data)}")
    kind, size = struct.unpack_from(cursor.order + "2I", data, at)
    if kind >> 16:  # up to four bytes are kept in the tag itself
        kind, size, start, cursor.at = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise RecordError(Reason.HEADER, f"a short element of {size} bytes at byte {at}")
        return kind, data[start : start + size]
    start, stop = at + 8, at + 8 + size
    if stop > len(data):
        raise RecordError(Reason.TRUNCATED, f"an element of {size} bytes at byte {at}, {len(data) - start} are left")
    cursor.at = min(stop + (-size % 8 if padded else 0), len(data))
    return kind, data[start:stop]


def _check_end(cursor: _Cursor) -> None:
    if cursor.at < len(cursor.data):
        raise RecordError(Reason.TRAILING_BYTES, f"{len(cursor.data) - cursor.at} bytes behind the last element")


def _inflate(packed: memoryview, room: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, room + 1)
    except zlib.error as error:
        raise RecordError(Reason.FORMAT, f"a variable cannot be unpacked: {error}") from error
    if len(data) > room:
        raise RecordError(Reason.ABSURD_SIZE, f"{len(packed)} bytes unpack to more than {room}")
    if not unpacker.eof:
        raise RecordError(Reason.TRUNCATED, "a compressed variable ends early")
    if unpacker.unused_data:
        raise RecordError(Reason.TRAILING_BYTES, f"{len(unpacker.unused_data)} bytes behind a compressed variable")
    return data


def _variable(cursor: _Cursor, *, inside_struct: bool) -> tuple[str, Value]:
    """Name and value of one matrix element."""
    flags = _numbers(cursor, _UINT32, "array flags")
    if len(flags) != 2:
        raise RecordError(Reason.HEADER, f"{len(flags)} array flags instead of 2")
    kind, is_complex = int(flags[0]) & 0xFF, bool(int(flags[0]) & 0x0800)
    axes = [int(axis) for axis in _numbers(cursor, _INT32, "dimensions")]
    if not 2 <= len(axes) <= MAX_AXES or min(axes) < 0:
        raise RecordError(Reason.HEADER, f"a variable of shape {axes[:8]}")
    name = _name(_element(cursor))
    if kind in _REFUSED:
        raise RecordError(Reason.FORMAT, f"variable {name!r} is {_REFUSED[kind]}, which is not read")
    if is_complex:
        raise RecordError(Reason.FORMAT, f"variable {name!r} is complex")
    value: Value
    if kind == _STRUCT_CLASS:
        if inside_struct or axes != [1, 1]:
            raise RecordError(Reason.FORMAT, f"variable {name!r} is more than one struct of plain values")
        value = _fields(cursor)
    elif kind == _CHAR_CLASS:
        value = _text(cursor)
    elif kind in _NUMERIC:
        value = _array(cursor, name, np.dtype(_NUMERIC[kind]), axes)
    else:
        raise RecordError(Reason.FORMAT, f"variable {name!r} has class {kind}, which does not exist")
    _check_end(cursor)
    return name, value


def _fields(cursor: _Cursor) -> dict[str, Plain]:
    lengths = _numbers(cursor, _INT32, "field name length")
    width = int(lengths[0]) if len(lengths) == 1 else 0
    kind, names = _element(cursor)
    if kind != _INT8 or not 1 <= width <= MAX_NAME + 1 or len(names) % width or len(names) > MAX_FIELDS * width:
        raise RecordError(Reason.HEADER, f"{len(names)} bytes of field names of {width} bytes each")
    fields: dict[str, Plain] = {}
    for start in range(0, len(names), width):
        name = _name((_INT8, names[start : start + width]))
        kind, payload = _element(cursor)
        if kind != _MATRIX or not name or name in fields:
            raise RecordError(Reason.HEADER, f"field {name!r} is empty, comes twice, or is no matrix")
        body = _Cursor(payload, cursor.order, cursor.room)
        value = _variable(body, inside_struct=True)[1]
        cursor.room = body.room
        assert not isinstance(value, dict)  # refused inside a struct
        fields[name] = value
    return fields


def _array(cursor: _Cursor, name: str, expected: np.dtype[np.generic], axes: list[int]) -> NDArray[np.generic]:
    kind, payload = _element(cursor)
    if kind not in _STORED:
        raise RecordError(Reason.FORMAT, f"variable {name!r} stores numbers as type {kind}")
    stored = np.dtype(cursor.order + _STORED[kind])
    count = 1
    for axis in axes:
        count *= axis
    if count * stored.itemsize != len(payload):
        raise RecordError(Reason.HEADER, f"variable {name!r} of shape {axes} has {len(payload)} bytes of {stored.str}")
    if stored != expected:
        cursor.room -= count * expected.itemsize
    if cursor.room < 0:
        raise RecordError(Reason.ABSURD_SIZE, f"variable {name!r} of shape {axes} is too large for its file")
    flat = np.frombuffer(payload, stored)
    return flat.astype(expected, copy=False).reshape(axes, order="F")


def _text(cursor: _Cursor) -> str:
    if cursor.at >= len(cursor.data):
        return ""
    kind, payload = _element(cursor)
    if kind not in _TEXT:
        raise RecordError(Reason.FORMAT, f"text stored as type {kind}")
    encoding = _TEXT[kind]
    if encoding == "utf-16":
        encoding += "-le" if cursor.order == "<" else "-be"
    return bytes(payload).decode(encoding, errors="replace")


def _numbers(cursor: _Cursor, expected: int, what: str) -> NDArray[np.generic]:
    kind, payload = _element(cursor)
    if kind != expected or len(payload) % 4 or not 4 <= len(payload) <= 4 * 2 * MAX_AXES:
        raise RecordError(Reason.HEADER, f"{what}: {len(payload)} bytes of type {kind}")
    return np.frombuffer(payload, np.dtype(cursor.order + _STORED[expected]))


def _name(element: tuple[int, memoryview]) -> str:
    kind, payload = element
    name = bytes(payload).rstrip(b"\0")
    if kind not in (_INT8, 16) or len(name) > MAX_NAME or not (name.isascii() and name.decode("ascii").isprintable()):
        raise RecordError(Reason.HEADER, f"a name of {len(payload)} bytes that is none")
    return name.decode("ascii")
