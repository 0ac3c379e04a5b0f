"""A Parquet table of labels as text, column by column, decided by type alone.

Yes and no, numbers, days, times and text are read as text, also where they are encoded as a dictionary; lists of them
have their entries. Structs, bytes and what is nested deeper have none: such a column is reported by its type, and no
value of it is taken for text.

Contract: `read_parquet(data, location)` gives a table of strings, empty where a cell is null, and the types of the
columns that are not text by position; those are empty in every row. Raises LabelError for a file that cannot be read
and for text that is no UTF-8, with the column and a remedy.
Source: Apache Parquet format, "Logical types"; Apache Arrow columnar format.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beatray.errors import LabelError

IN_LISTS = "\x1f"
"""Stands between the entries of a list, where no value has it; alone it is an empty list."""

_TEXTUAL = (
    *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null),
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def read_parquet(data: bytes, location: str) -> tuple[pa.Table, dict[int, str]]:
    """The columns of a Parquet file as text; see the module's contract."""
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise LabelError(f"{location} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error
    other_types = {k: str(field.type) for k, field in enumerate(table.schema) if not is_textual(field.type, lists=True)}
    columns = [
        pa.chunked_array([pa.array([""] * table.num_rows, pa.string())])
        if k in other_types
        else _as_text(column, f"{location}: column {name!r}")
        for k, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True))
    ]
    return pa.table(columns, names=table.column_names), other_types


def _decoded(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, of whatever encoding."""
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def is_textual(kind: pa.DataType, *, lists: bool) -> bool:
    """Whether values of a type can be read as text; `lists`: also each of several."""
    kind = _decoded(kind)
    if lists and any(is_kind(kind) for is_kind in _LISTS):
        return is_textual(kind.value_type, lists=False)
    return not pa.types.is_interval(kind) and any(is_kind(kind) for is_kind in _TEXTUAL)


def _as_text(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """A column that can be read as text. Raises LabelError."""
    try:
        column.validate(full=True)
        plain = column.cast(_decoded(column.type))
        if not any(is_kind(plain.type) for is_kind in _LISTS):
            return pc.fill_null(plain.cast(pa.string()), "")
        entries = plain.cast(pa.list_(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LabelError(
            f"{where} holds a value that its type {column.type} does not allow, such as text that is no UTF-8: write "
            "the table again, with text in UTF-8"
        ) from error
    without = int(pc.sum(pc.is_null(pc.binary_join(entries, IN_LISTS))).as_py() or 0) - entries.null_count
    if without:
        raise LabelError(
            f"{where} has {without} lists with an entry of null: leave such entries out, or make the whole list null "
            "where nothing is known"
        )
    joined = pc.binary_join(entries, IN_LISTS)
    nothing = pc.fill_null(pc.equal(pc.list_value_length(entries), 0), False)
    return pc.fill_null(pc.if_else(nothing, IN_LISTS, joined), "")
