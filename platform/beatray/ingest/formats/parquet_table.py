"""Parquet tables with one recording per row: a column of signals, and columns that name the patient.

Contract: `open_table(file)` gives a `ParquetTable` on an open `RandomFile`; its footer was bounded before it was read.
`read_words(table, columns)` gives text of small columns for all rows, empty where a cell is null (bytes and structs are
no text: METADATA); `read_signal(table, column, row, dtype)` the numbers of one cell as a flat array and, for a list of
lists, the length of its inner lists.
A signal is a list of numbers, a list of equally long lists, or bytes of type `dtype`. A row group is read at once and
the last one is kept, so it may take at most `MAX_GROUP_BYTES`; what a group is to unpack to is compared with what is
stored before it is read. Raises `RecordError`: FORMAT, TRUNCATED, ABSURD_SIZE, METADATA (no such column, or a null).
An I/O error of the disk itself is not caught.
Source: Apache Parquet format, "File format", "Metadata"; pyarrow.parquet.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beatray.corpus.label_parquet import IN_LISTS, is_textual
from beatray.ingest.formats.parquet_footer import Group, read_footer
from beatray.ingest.random_file import RandomFile
from beatray.record import Reason, RecordError

MAX_FOOTER_BYTES = 16 * 1024 * 1024
MAX_GROUP_BYTES = 256 * 1024 * 1024
MAX_ROWS = 10_000_000
FREE_BYTES = 4 * 1024 * 1024
MAX_RATIO = 200
_FAULTS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, IndexError)


@dataclass(slots=True)
class ParquetTable:
    """An open Parquet file; `firsts` is the row at which each row group begins, `group` the last one read."""

    file: RandomFile
    parquet: Any  # pyarrow.parquet.ParquetFile
    n_rows: int
    groups: list[Group]
    firsts: list[int]
    group: tuple[int, str, Any] | None = None


def open_table(file: RandomFile) -> ParquetTable:
    """Open a Parquet file whose footer is of a size that can be parsed. Raises RecordError."""
    tail = file.read_at(max(file.size - 8, 0), 8)
    if file.size < 12 or file.read_at(0, 4) != b"PAR1" or tail[4:] != b"PAR1":
        raise RecordError(Reason.FORMAT, f"{file.member} is not a Parquet file, or it is cut off or encrypted")
    footer = int.from_bytes(tail[:4], "little")
    if footer > min(MAX_FOOTER_BYTES, file.size - 12):
        raise RecordError(Reason.ABSURD_SIZE, f"{file.member} has a footer of {footer} bytes")
    groups = read_footer(file.read_exactly(file.size - 8 - footer, footer))
    counts = [group.n_rows for group in groups]
    try:
        parquet = pq.ParquetFile(
            pa.PythonFile(file, mode="r"),
            pre_buffer=False,
            page_checksum_verification=True,
            thrift_string_size_limit=footer,
            thrift_container_size_limit=max(footer // 4, 64),  # an entry of a footer's list takes some bytes
            arrow_extensions_enabled=False,
        )
        columns = set(parquet.schema_arrow.names)
    except _FAULTS as error:
        raise _refusal(file, error) from error
    n_rows = sum(counts)
    if n_rows > MAX_ROWS:
        raise RecordError(Reason.ABSURD_SIZE, f"{file.member} has {n_rows} rows, limit {MAX_ROWS}")
    if any({chunk.column for chunk in group.chunks} != columns for group in groups):
        raise RecordError(Reason.FORMAT, f"{file.member}: a row group has other columns than the table")
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    return ParquetTable(file, parquet, n_rows, groups, firsts)


def read_texts(table: ParquetTable, columns: list[str]) -> list[dict[str, str]]:
    """The cells of small columns as text, by row; IN_LISTS ends each entry of a list. Raises RecordError."""
    rows: list[dict[str, str]] = []
    for number in range(len(table.firsts)):
        lists: dict[str, list[str]] = {}
        for column in columns:
            values = _read(table, number, column)
            if not is_textual(values.type, lists=True):
                what = f"{table.file.member}: the values of column {column!r} are {values.type}, no text"
                raise RecordError(Reason.METADATA, f"{what}: write them as text")
            lists[column] = [_text(value) for value in values.to_pylist()]
        size = len(next(iter(lists.values()), []))
        rows += [{column: cells[row] for column, cells in lists.items()} for row in range(size)]
    return rows


def read_signal(table: ParquetTable, column: str, row: int, dtype: str | None) -> tuple[NDArray[Any], int | None]:
    """The numbers of one cell, flat, and the length of its inner lists if it is a list of lists. Raises RecordError."""
    if not 0 <= row < table.n_rows:
        raise RecordError(Reason.METADATA, f"{table.file.member} has {table.n_rows} rows, none is number {row}")
    number = bisect_right(table.firsts, row) - 1
    if table.group is None or table.group[:2] != (number, column):
        table.group = (number, column, _read(table, number, column))
    try:
        cell = table.group[2][row - table.firsts[number]]
        return _numbers(table, column, cell, dtype)
    except RecordError:
        raise
    except _FAULTS as error:
        raise _refusal(table.file, error) from error


def _read(table: ParquetTable, number: int, column: str) -> Any:
    """One column of one row group, once what it claims is plausible."""
    where = f"{table.file.member}: column {column!r}"
    try:
        if table.parquet.schema_arrow.get_field_index(column) < 0:
            known = ", ".join(table.parquet.schema_arrow.names[:12])
            raise RecordError(Reason.METADATA, f"{where} is not there, or twice; there are {known}")
        group = table.groups[number]
        for chunk in (chunk for chunk in group.chunks if chunk.column == column):
            decoded = max(chunk.unpacked, 8 * chunk.n_values)
            if chunk.stored > table.file.size:
                raise RecordError(Reason.TRUNCATED, f"{where} has {chunk.stored} bytes in a file of {table.file.size}")
            if decoded > min(MAX_GROUP_BYTES, max(FREE_BYTES, 8 * MAX_RATIO * chunk.stored)):
                raise RecordError(
                    Reason.ABSURD_SIZE, f"{where}: {chunk.stored} bytes unpack to {decoded}: write smaller row groups"
                )
        read = table.parquet.read_row_group(number, columns=[column], use_threads=False).column(column)
        if len(read) != group.n_rows:
            raise RecordError(Reason.TRUNCATED, f"{where} has {len(read)} of {group.n_rows} rows")
        read.validate(full=True)
    except RecordError:
        raise
    except _FAULTS as error:
        raise _refusal(table.file, error) from error
    return read


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(f"{_text(part)}{IN_LISTS}" for part in value)
    if isinstance(value, float) and value.is_integer():  # beyond 2**53 two ids can be one: shown as rounded
        return str(int(value)) if abs(value) < 2**53 else f"{value:.5e}"
    return str(value)


def _numbers(table: ParquetTable, column: str, cell: Any, dtype: str | None) -> tuple[NDArray[Any], int | None]:
    where = f"{table.file.member}: column {column!r}"
    if not cell.is_valid:
        raise RecordError(Reason.METADATA, f"{where} is null for this recording")
    kind = cell.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        if dtype is None:
            raise RecordError(Reason.METADATA, f"{where} holds bytes: set their dtype")
        data = cell.as_py()
        if len(data) % np.dtype(dtype).itemsize:
            raise RecordError(Reason.TRUNCATED, f"{where}: {len(data)} bytes are not a whole number of {dtype}")
        return np.frombuffer(data, dtype), None
    if not _is_list(kind):
        raise RecordError(Reason.FORMAT, f"{where} holds {kind}, neither lists of numbers nor bytes")
    values, inner = cell.values, None
    if _is_list(values.type):
        lengths = values.value_lengths()
        sizes = set(lengths.to_pylist()) if not pa.types.is_fixed_size_list(values.type) else {values.type.list_size}
        if values.null_count or len(sizes) != 1:
            raise RecordError(Reason.FORMAT, f"{where}: the inner lists are not equally long")
        inner = int(sizes.pop())
        values = values.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise RecordError(Reason.FORMAT, f"{where} holds lists of {values.type}, not of numbers")
    return values.to_numpy(zero_copy_only=False), inner


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _refusal(file: RandomFile, error: BaseException) -> Exception:
    """The disk's own fault where there was one; otherwise the file's."""
    if file.fault is not None:
        return file.fault
    return RecordError(Reason.FORMAT, f"{file.member} cannot be read as Parquet: {str(error)[:160]}")
