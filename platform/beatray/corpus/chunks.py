"""Column chunks: the pieces of a shard that are read one by one, each with a checksum in the manifest.

Parquet's own page checksums leave out page headers and the footer, where one flipped bit in a thousand gave wrong
values without an error. Here the CRC-32 covers a column chunk whole, header and all, and is checked on the bytes that
are then decoded. It costs about 1 % of the decoding, and finds every burst of up to 32 bits; `corpus verify` compares
SHA-256 besides.

Contract: `read_chunks` gives the columns asked for of one row group, exactly as written, or an error.
Source: Apache Parquet format, "Column chunks" and `ColumnMetaData` in parquet.thrift; CRC-32 of ISO 3309 (zlib).
"""

from __future__ import annotations

import base64
import bisect
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


class ChunkError(ValueError):
    """A column chunk that is not what was written."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the column chunks of a file lie and what their checksums are; made once for many reads."""

    metadata: pq.FileMetaData
    columns: tuple[str, ...]  # the top-level column of each leaf
    ranges: tuple[tuple[tuple[int, int], ...], ...]  # by row group and leaf: (first byte, bytes)
    sums: NDArray[np.uint32]  # by row group and leaf


def checksums(data: bytes) -> str:
    """CRC-32 of every column chunk of a Parquet file, row group by row group: base64 of little-endian uint32."""
    view = memoryview(data)
    groups = _ranges(pq.read_metadata(pa.BufferReader(data)))
    sums = [zlib.crc32(view[start : start + size]) for group in groups for start, size in group]
    return base64.b64encode(np.array(sums, "<u4").tobytes()).decode()


def layout_of(metadata: pq.FileMetaData, sums: str) -> Layout:
    """The layout of a file by its footer and the `checksums` taken when it was written. Raises ChunkError."""
    known = np.frombuffer(base64.b64decode(sums), "<u4")
    shape = (metadata.num_row_groups, metadata.num_columns)
    if known.size != shape[0] * shape[1]:
        raise ChunkError(f"{known.size} checksums for {shape[0]} row groups of {shape[1]} columns")
    columns = tuple(metadata.schema.column(leaf).path.partition(".")[0] for leaf in range(shape[1]))
    return Layout(metadata, columns, _ranges(metadata), known.reshape(shape))


def read_chunks(source: Any, layout: Layout, group: int, names: Sequence[str]) -> pa.Table:
    """Columns `names` of row group `group` of the open file `source`. Raises ChunkError, or Arrow's own errors."""
    selected, held = set(names), {}
    for leaf, ((start, size), name) in enumerate(zip(layout.ranges[group], layout.columns, strict=True)):
        if name not in selected:
            continue
        held[start] = pa.py_buffer(source.read_at(size, start))
        if zlib.crc32(held[start]) != layout.sums[group, leaf]:
            raise ChunkError(f"column {name} of row group {group} does not have its checksum")
    file = pa.PythonFile(_Held(held, source.size()), mode="r")
    # without pre_buffer, because that would join pieces that lie side by side
    return pq.ParquetFile(file, metadata=layout.metadata, pre_buffer=False).read_row_group(group, columns=list(names))


def _ranges(metadata: pq.FileMetaData) -> tuple[tuple[tuple[int, int], ...], ...]:
    return tuple(
        tuple(_range(metadata.row_group(group).column(leaf)) for leaf in range(metadata.num_columns))
        for group in range(metadata.num_row_groups)
    )


def _range(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    pages = [column.dictionary_page_offset, column.data_page_offset]
    return min(page for page in pages if page is not None), column.total_compressed_size


class _Held:
    """A file of which only some pieces are there: what was checked is what is decoded, and nothing is read twice."""

    def __init__(self, pieces: dict[int, pa.Buffer], size: int) -> None:
        self._starts, self._pieces = sorted(pieces), pieces
        self._size, self._at = size, 0
        self.closed = False

    def seek(self, position: int, whence: int = 0) -> int:
        self._at = position + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n_bytes: int) -> pa.Buffer:
        start = self._starts[bisect.bisect_right(self._starts, self._at) - 1]
        piece, offset = self._pieces[start], self._at - start
        found = piece.slice(min(offset, piece.size), max(0, min(n_bytes, piece.size - offset)))
        self._at += found.size
        return found

    def close(self) -> None:
        self.closed = True
