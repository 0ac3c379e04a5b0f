"""A table of text columns from a file: csv and relatives, or Parquet; local or behind a URI; packed by gzip or not.

Cells are text here, also those of Parquet, so that one reading of text and numbers serves all (`label_columns`). A
file of text is UTF-8, or UTF-16 with its mark; other encodings must be set, because a wrong guess changes letters
silently. What separates columns is read off the first lines: comma, semicolon, tab or bar.

Contract: `read_table` gives columns of distinct stripped values and codes (n,) into them, in the order of the file, or
raises LabelError with the location and a remedy. Names of columns are stripped, not empty and different from each
other.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
import zlib
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from beatray.corpus.label_parquet import read_parquet
from beatray.errors import LabelError
from beatray.storage.store import Store

DELIMITERS = (",", ";", "\t", "|")
LOOKED_AT = 20
"""Lines by which the delimiter is found."""
BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class TextColumn:
    """One column: `codes` (n,) are positions in `distinct`. `other_type` is the type of a column that is no text
    (structs, bytes), which is empty in every row."""

    distinct: tuple[str, ...]
    codes: NDArray[np.int64]
    other_type: str = ""

    def of_rows(self) -> NDArray[np.object_]:
        """The text of every row."""
        return np.array(self.distinct, object)[self.codes]


@dataclass(frozen=True, slots=True)
class Table:
    """The columns by name, the number of rows, the SHA-256 of the file, and its location as messages show it."""

    location: str
    sha256: str
    rows: int
    columns: dict[str, TextColumn]


def read_table(location: str, encoding: str = "auto") -> Table:
    """The table at a path or URI. Raises LabelError."""
    shown = location.partition("?")[0] if "://" in location else location
    data = read_bytes(location)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        content = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise LabelError(f"{shown} is damaged: it cannot be unpacked ({error})") from error
    is_parquet = content[:4] == b"PAR1"
    found, other_type = read_parquet(content, shown) if is_parquet else (_text_table(content, shown, encoding), {})
    names = [name.strip() for name in found.column_names]
    _check_names(names, shown)
    columns = {
        name: _text_column(found.column(position), other_type.get(position, "")) for position, name in enumerate(names)
    }
    columns, rows = _without_blank_rows(columns, found.num_rows)
    if not rows:
        raise LabelError(f"{shown} has column names and no rows")
    _refuse_second_header(columns, shown)
    return Table(shown, sha256, rows, columns)


def read_bytes(location: str) -> bytes:
    """The bytes of the file at a path or URI. Raises LabelError where there is none."""
    if "://" in location and not location.startswith("file://"):
        shown, mark, options = location.partition("?")
        folder, _, name = shown.rpartition("/")
        store, name = Store(f"{folder}{mark}{options}"), unquote(name)
    else:
        path = (
            Path(unquote(location.removeprefix("file://")) if location.startswith("file://") else location)
            .expanduser()
            .absolute()
        )
        if path.is_dir():
            raise LabelError(f"{path} is a folder: give the file in it that holds the table")
        store, name, shown = Store(str(path.parent)), path.name, str(path)
    try:
        return store.read(name)
    except FileNotFoundError as error:
        raise LabelError(f"there is no table {shown}") from error
    except OSError as error:
        raise LabelError(f"{shown} cannot be read ({error.strerror or error})") from error


def _check_names(names: list[str], location: str) -> None:
    if len(names) < 2:
        raise LabelError(
            f"{location} has one column ({names[0][:60] if names else ''}): it needs a key and at least one label, "
            "with a comma, semicolon or tab between them"
        )
    if "" in names:
        raise LabelError(f"{location}: column {names.index('') + 1} has no name; give it one or delete it")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise LabelError(f"{location} has the column {twice[0]!r} {names.count(twice[0])} times: rename or delete one")


def _without_blank_rows(columns: dict[str, TextColumn], rows: int) -> tuple[dict[str, TextColumn], int]:
    """The columns without rows in which no cell holds anything, as spreadsheets leave them below a table."""
    blank = np.ones(rows, np.bool_)
    for column in columns.values():
        if "" not in column.distinct:
            return columns, rows
        blank &= column.codes == column.distinct.index("")
    if not blank.any():
        return columns, rows
    kept = {name: replace(column, codes=column.codes[~blank]) for name, column in columns.items()}
    return kept, int((~blank).sum())


def _refuse_second_header(columns: dict[str, TextColumn], location: str) -> None:
    """Tables that were put together one below the other repeat the line of names."""
    repeated: NDArray[np.bool_] | None = None
    for name, column in columns.items():
        if name not in column.distinct:
            return
        here = column.codes == column.distinct.index(name)
        repeated = here if repeated is None else repeated & here
    if repeated is not None and repeated.any():
        row = int(np.flatnonzero(repeated)[0]) + 1
        raise LabelError(
            f"{location}: row {row} is the line of column names again; delete it (were files put together?)"
        )


def _text_table(data: bytes, location: str, encoding: str) -> pa.Table:
    text = _decoded(data, location, encoding)
    if not text.strip():
        raise LabelError(f"{location} is empty: it needs a line of column names and a row for each key")
    first = text.split("\n", 1)[0].strip().lower()
    if first.startswith("sep=") and len(first) == 5:  # what Excel writes for itself
        text, delimiter = text.split("\n", 1)[1] if "\n" in text else "", first[4]
    else:
        delimiter = _delimiter(text, location)
    try:
        _refuse_open_quote(text, delimiter, location)
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        numbers = [str(number) for number in range(len(names))]
        return pacsv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=pacsv.ReadOptions(column_names=numbers, skip_rows_after_names=1, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(numbers, pa.string()),
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        ).rename_columns(names)
    except (pa.ArrowException, csv.Error) as error:
        found = re.search(r"Expected \d+ columns, got \d+", str(error))  # what follows is the row itself
        raise LabelError(
            f"{location} is no table with {delimiter!r} between its columns: "
            f"{found[0] if found else 'a row cannot be read'}. Put quotes around cells that hold it"
        ) from error


def _refuse_open_quote(text: str, delimiter: str, location: str) -> None:
    """A quote that is not closed where its cell ends swallows rows below it."""
    if '"' not in text:
        return
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    last = 0
    try:
        for _ in lines:
            last = lines.line_num
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise LabelError(f"{location}: the quote that begins after line {last} is never closed") from error
        raise LabelError(
            f"{location}: a quote that begins after line {last} ends within a cell ({error}): write two quotes for one "
            "that belongs to the text"
        ) from error


def _decoded(data: bytes, location: str, encoding: str) -> str:
    if data[:4] == b"PK\x03\x04" or data[:4] == b"\xd0\xcf\x11\xe0":
        raise LabelError(f"{location} is a workbook: save the sheet as CSV UTF-8 or Parquet")
    if encoding == "auto":
        wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if wide else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise LabelError(f"labels.encoding={encoding} is no encoding; utf-8, utf-16, cp1252 and others are") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LabelError(
            f"{location} is not {encoding.removesuffix('-sig').upper()} (line {line}): save it as UTF-8, or set what "
            "it is, as labels.encoding=cp1252"
        ) from error
    if "\0" in text:
        raise LabelError(f"{location} is no text: a table is csv, tsv or Parquet")
    text = text.removeprefix("\ufeff")  # only some encodings take the byte order mark for themselves
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")


def _delimiter(text: str, location: str) -> str:
    """The delimiter under which most of the first lines have as many cells as the line of names has."""
    best, most = ",", (0, 0)
    for delimiter in DELIMITERS:
        try:
            lines = list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), LOOKED_AT))
        except csv.Error as error:
            raise LabelError(f"{location} is no table: {error}") from error
        wide = len(lines[0])
        alike = sum(len(line) == wide for line in lines if line)
        if wide > 1 and (alike, wide) > most:
            best, most = delimiter, (alike, wide)
    return best


def _text_column(column: pa.ChunkedArray, other_type: str) -> TextColumn:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    stripped = [value.strip(" \t\n\r\v\f\u00a0\ufeff") for value in encoded.dictionary.to_pylist()]
    distinct = tuple(dict.fromkeys(stripped))
    where = {value: position for position, value in enumerate(distinct)}
    codes = np.array([where[value] for value in stripped], np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
    return TextColumn(distinct, codes, other_type)
