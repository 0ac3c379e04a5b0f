"""The few facts of a Parquet footer that decide how much memory a row group takes, read without pyarrow.

pyarrow reads them as well, but some of its accessors end the whole process when a footer is damaged (an exception of
C++ that nothing catches), so they are not asked before this module has seen the footer whole.

Contract: `read_footer(bytes)` gives the row groups of a Thrift compact `FileMetaData`, each with its number of rows and
the claims of its column chunks, or raises RecordError(FORMAT, ABSURD_SIZE). Nothing else in the footer is kept; lists
and texts are compared with the bytes that are left. Column chunks in other files and encrypted ones are refused.
Source: Apache Parquet format, parquet.thrift; Apache Thrift, "Thrift compact protocol encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from beatray.record import Reason, RecordError

MAX_DEPTH = 12
MAX_CHUNKS = 1_000_000
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_WHOLE = (4, 5, 6)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a column chunk claims: the top-level column it belongs to, its values and its bytes."""

    column: str
    n_values: int
    unpacked: int
    stored: int


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: its rows and its column chunks."""

    n_rows: int
    chunks: tuple[Chunk, ...]


@dataclass(slots=True)
class _Cursor:
    data: bytes
    at: int = 0


def read_footer(data: bytes) -> list[Group]:
    """The row groups of a footer; see the module's contract."""
    cursor = _Cursor(data)
    groups: list[Group] = []
    n_chunks = 0
    try:
        for field, kind in _fields(cursor):
            if field == 4 and kind == _LIST:
                for _ in range(_list_of(cursor, _STRUCT)):
                    groups.append(_group(cursor))
                    n_chunks += len(groups[-1].chunks)
                    if n_chunks > MAX_CHUNKS:
                        raise RecordError(Reason.ABSURD_SIZE, f"more than {MAX_CHUNKS} column chunks")
            else:
                _skip(cursor, kind, 0)
    except IndexError as error:
        raise RecordError(Reason.FORMAT, "the Parquet footer ends early") from error
    return groups


def _group(cursor: _Cursor) -> Group:
    chunks: list[Chunk] = []
    n_rows = -1
    for field, kind in _fields(cursor):
        if field == 1 and kind == _LIST:
            chunks += [_chunk(cursor) for _ in range(_list_of(cursor, _STRUCT))]
        elif field == 3 and kind in _WHOLE:
            n_rows = _zigzag(cursor)
        else:
            _skip(cursor, kind, 0)
    if n_rows < 0 or not chunks:
        raise RecordError(Reason.FORMAT, "a row group of the Parquet footer has no rows or no columns")
    return Group(n_rows, tuple(chunks))


def _chunk(cursor: _Cursor) -> Chunk:
    chunk: Chunk | None = None
    for field, kind in _fields(cursor):
        if field == 3 and kind == _STRUCT:
            chunk = _claims(cursor)
        elif field in (1, 8, 9):
            raise RecordError(Reason.FORMAT, "a column chunk of the Parquet file is encrypted or lies in another file")
        else:
            _skip(cursor, kind, 0)
    if chunk is None or min(chunk.n_values, chunk.unpacked, chunk.stored) < 0:
        raise RecordError(Reason.FORMAT, "a column chunk of the Parquet footer gives no size")
    return chunk


def _claims(cursor: _Cursor) -> Chunk:
    column = ""
    numbers = {5: -1, 6: -1, 7: -1}
    for field, kind in _fields(cursor):
        if field == 3 and kind == _LIST:
            parts = [_text(cursor) for _ in range(_list_of(cursor, _BINARY))]
            column = parts[0] if parts else ""
        elif field in numbers and kind in _WHOLE:
            numbers[field] = _zigzag(cursor)
        else:
            _skip(cursor, kind, 0)
    return Chunk(column, numbers[5], numbers[6], numbers[7])


def _fields(cursor: _Cursor) -> Iterator[tuple[int, int]]:
    """The fields of a struct as (number, type); the value of each must be read before the next is asked for."""
    field = 0
    while True:
        head = cursor.data[cursor.at]
        cursor.at += 1
        if head == 0:
            return
        field = field + (head >> 4) if head >> 4 else _zigzag(cursor)
        yield field, head & 0x0F


def _skip(cursor: _Cursor, kind: int, depth: int) -> None:
    """Move behind a value of any type; true and false of a field are in its type and take no byte."""
    if depth > MAX_DEPTH:
        raise RecordError(Reason.FORMAT, "the Parquet footer is nested too deep")
    if kind in (_TRUE, _FALSE):
        return
    if kind == _BYTE:
        cursor.at += 1
    elif kind in _WHOLE:
        _varint(cursor)
    elif kind == _DOUBLE:
        cursor.at += 8
    elif kind == _BINARY:
        _span(cursor)
    elif kind in (_LIST, _SET):
        size, inner = _list_head(cursor)
        for _ in range(size):
            _skip_element(cursor, inner, depth)
    elif kind == _MAP:
        size = _count(cursor, _varint(cursor))
        if size:
            kinds = cursor.data[cursor.at]
            cursor.at += 1
            for _ in range(size):
                _skip_element(cursor, kinds >> 4, depth)
                _skip_element(cursor, kinds & 0x0F, depth)
    elif kind == _STRUCT:
        for _, inner in _fields(cursor):
            _skip(cursor, inner, depth + 1)
    else:
        raise RecordError(Reason.FORMAT, f"the Parquet footer holds a value of type {kind}")


def _skip_element(cursor: _Cursor, kind: int, depth: int) -> None:
    if kind in (_TRUE, _FALSE):
        cursor.at += 1
    else:
        _skip(cursor, kind, depth + 1)


def _list_of(cursor: _Cursor, expected: int) -> int:
    size, kind = _list_head(cursor)
    if kind != expected and size:
        raise RecordError(Reason.FORMAT, f"the Parquet footer has a list of type {kind} where {expected} belongs")
    return size


def _list_head(cursor: _Cursor) -> tuple[int, int]:
    head = cursor.data[cursor.at]
    cursor.at += 1
    size = head >> 4
    return _count(cursor, _varint(cursor) if size == 15 else size), head & 0x0F


def _count(cursor: _Cursor, size: int) -> int:
    if size > len(cursor.data) - cursor.at:
        raise RecordError(Reason.ABSURD_SIZE, f"the Parquet footer has a list of {size} in the bytes that are left")
    return size


def _span(cursor: _Cursor) -> tuple[int, int]:
    size = _count(cursor, _varint(cursor))
    start, cursor.at = cursor.at, cursor.at + size
    return start, cursor.at


def _text(cursor: _Cursor) -> str:
    start, stop = _span(cursor)
    return cursor.data[start:stop].decode("utf-8", errors="replace")


def _zigzag(cursor: _Cursor) -> int:
    value = _varint(cursor)
    return (value >> 1) ^ -(value & 1)


def _varint(cursor: _Cursor) -> int:
    value = shift = 0
    while True:
        byte = cursor.data[cursor.at]
        cursor.at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise RecordError(Reason.FORMAT, "the Parquet footer holds a number of more than 64 bits")
