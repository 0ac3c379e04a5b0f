"""Reads a corpus: its index, whole columns of chosen rows, or single row groups for streaming.

Contract: what is returned is what was written, or an error that names the shard: the footer and every column chunk
that is read are compared with the manifest, and so are byte and row counts, because a Parquet file that lost its tail
must not look like a smaller corpus.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beatray.corpus import schema
from beatray.corpus.chunks import ChunkError, Layout, layout_of, read_chunks
from beatray.corpus.manifest import Manifest, Shard, read_manifest
from beatray.corpus.writer import FOLDER
from beatray.errors import CorpusError
from beatray.storage.remote import is_remote_fault, patiently
from beatray.storage.store import Store

INDEX_COLUMNS = ("record_id", "patient_id", "source", "fold", "content_hash")


@dataclass(frozen=True, slots=True)
class Rows:
    """Chosen corpus rows in memory. Arrays are indexed by row; per-beat data are lists of arrays."""

    record_id: list[str]
    patient_id: list[str | None]
    source: list[str]
    fold: NDArray[np.int8]  # (n,), -1 where the source publishes none
    signal_uv: NDArray[np.int16]  # (n, 12, 5000)
    n_samples: NDArray[np.int32]
    lead_mask: NDArray[np.int16]
    flags: NDArray[np.int32]
    r_peaks: list[NDArray[np.int32]]
    beat_features: list[NDArray[np.float32]]  # (n_beats, F) each
    record_features: NDArray[np.float32]  # (n, G)
    labels: list[tuple[str, ...]]
    waves: list[NDArray[np.void]]  # record.WAVE_DTYPE
    age: NDArray[np.float32]  # NaN where unknown
    sex: list[str | None]

    def __len__(self) -> int:
        return len(self.record_id)

    def take(self, index: Sequence[int] | NDArray[Any]) -> Rows:
        """The rows at `index` (positions or a boolean mask), in that order."""
        positions = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index, np.int64)
        chosen: dict[str, Any] = {}
        for item in fields(self):
            column = getattr(self, item.name)
            chosen[item.name] = (
                column[positions] if isinstance(column, np.ndarray) else [column[p] for p in positions.tolist()]
            )
        return Rows(**chosen)


@dataclass(frozen=True)
class Corpus:
    """One snapshot of a corpus, opened for reading."""

    store: Store
    manifest: Manifest

    @property
    def recipe(self) -> dict[str, Any]:
        """How the rows were made; a model refuses a corpus whose recipe differs."""
        return self.manifest.recipe

    @cached_property
    def index(self) -> pd.DataFrame:
        """One light line per row, in manifest order: `INDEX_COLUMNS` and (shard, group, row), fold -1 for none."""
        parts = []
        for number, shard in enumerate(self.manifest.shards):
            table = self.columns(shard, list(INDEX_COLUMNS))
            frame = pd.DataFrame({name: table[name].to_pylist() for name in INDEX_COLUMNS})
            frame["fold"] = [-1 if f is None else f for f in table["fold"].to_pylist()]
            groups = np.repeat(np.arange(len(shard.row_groups)), shard.row_groups)
            starts = np.concatenate([[0], np.cumsum(shard.row_groups)[:-1]]) if shard.rows else np.empty(0, int)
            frame["shard"], frame["group"] = number, groups
            frame["row"] = np.arange(shard.rows) - np.asarray(starts, int)[groups]
            parts.append(frame)
        if not parts:
            return pd.DataFrame(columns=[*INDEX_COLUMNS, "shard", "group", "row"])
        return pd.concat(parts, ignore_index=True)

    def acquired(self) -> NDArray[np.datetime64]:
        """When the recording of each row of `index` began, in seconds; NaT where that is not known."""
        columns = [self.columns(shard, [schema.ACQUIRED])[schema.ACQUIRED] for shard in self.manifest.shards]
        times = np.concatenate([np.empty(0, "datetime64[ms]"), *(column.to_numpy() for column in columns)])
        return times.astype("datetime64[s]")

    def rows(self, positions: Sequence[int] | NDArray[Any] | None = None) -> Rows:
        """Load rows by their position in `index` (default: all), in the order asked for."""
        index = self.index
        selected = np.arange(len(index)) if positions is None else np.asarray(positions)
        selected = np.flatnonzero(selected) if selected.dtype == bool else selected.astype(np.int64)
        first = np.concatenate([[0], np.cumsum([s.rows for s in self.manifest.shards])]).astype(np.int64)
        shard_of = np.searchsorted(first, selected, side="right") - 1
        parts, order = [], []
        for number in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == number)
            table = self.columns(self.manifest.shards[number], None)
            parts.append(table.take(pa.array(selected[here] - first[number])))
            order.append(here)
        if not parts:
            return rows_of(schema.SCHEMA.empty_table())
        table = pa.concat_tables(parts)
        back = np.argsort(np.concatenate(order), kind="stable")
        return rows_of(table.take(pa.array(back)))

    def row_group(self, shard_number: int, group: int, columns: Sequence[str]) -> pa.Table:
        """One row group, checked against the manifest; CorpusError names the shard when it does not match."""
        return read_row_group(self.store, self.manifest.shards[shard_number], group, columns)

    def columns(self, shard: Shard, names: list[str] | None) -> pa.Table:
        """Columns `names` of a whole shard (None: all), checked against the manifest."""

        groups = range(len(shard.row_groups))
        return _read(self.store, shard, groups, schema.SCHEMA.names if names is None else names)


LAYOUTS_KEPT = 1024
_layouts: dict[str, Layout] = {}

PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, errno.EINTR, errno.EMFILE}
"""System errors that are not about the file: they are left as they are, to be tried again."""


class _named:
    """Turns a reading error into a CorpusError that names the shard: Arrow's own errors carry no path."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and (error.errno in PASSING or is_remote_fault(error)):
            return
        if isinstance(error, (OSError, pa.ArrowException, ChunkError)):
            raise CorpusError(
                f"shard {self.shard.name} cannot be read ({error}). Restore it from a copy, or run "
                "`beatray corpus verify` to see every damaged shard."
            ) from error


def read_row_group(store: Store, shard: Shard, group: int, columns: Sequence[str]) -> pa.Table:
    """Row group `group` of `shard` with `columns`; CorpusError names the shard when it is not what was written."""
    return _read(store, shard, [group], columns)


def _read(store: Store, shard: Shard, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    def read() -> pa.Table:
        with _named(shard):
            size = store.size(f"{FOLDER}/{shard.name}")
            if size != shard.bytes:
                what = "is missing" if size is None else f"has {size} bytes where the manifest has {shard.bytes}"
                raise CorpusError(f"shard {shard.name} {what}. Restore it from a copy or ingest again.")
            with store.open_input(f"{FOLDER}/{shard.name}") as source:
                layout = _layout(source, shard)
                there = [name for name in columns if name in layout.columns or name != schema.ACQUIRED]
                found = pa.concat_tables([read_chunks(source, layout, group, there or ["source"]) for group in groups])
                return found if len(there) == len(columns) else _with_no_times(found, columns)

    table = patiently(read, store.where(f"{FOLDER}/{shard.name}"))
    rows = sum(shard.row_groups[group] for group in groups)
    if table.num_rows != rows:
        raise CorpusError(f"shard {shard.name} has {table.num_rows} rows where the manifest has {rows}")
    return table


def _with_no_times(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns of a shard of before times were kept."""
    none = pa.nulls(table.num_rows, schema.SCHEMA.field(schema.ACQUIRED).type)
    return table.append_column(schema.SCHEMA.field(schema.ACQUIRED), none).select(list(columns))


def _layout(source: Any, shard: Shard) -> Layout:
    """By the shard's footer, which is read and checked once in a process."""
    known = _layouts.get(shard.sha256)
    if known is None:
        tail = source.read_at(shard.footer_bytes, shard.bytes - shard.footer_bytes)
        if hashlib.sha256(tail).hexdigest() != shard.footer_sha256:
            raise ChunkError("its footer does not have its SHA-256")
        known = layout_of(pq.read_metadata(pa.BufferReader(tail)), shard.chunk_crc32)
        while len(_layouts) >= LAYOUTS_KEPT:
            _layouts.pop(next(iter(_layouts)), None)
        _layouts[shard.sha256] = known
    return known


def rows_of(table: pa.Table) -> Rows:
    """A table of the corpus schema as `Rows`."""
    table = table.combine_chunks()
    features = [schema.beat_features_of(raw) for raw in table["beat_features"].to_pylist()]
    record_features = [np.asarray(row, np.float32) for row in table["record_features"].to_pylist()]
    return Rows(
        record_id=table["record_id"].to_pylist(),
        patient_id=table["patient_id"].to_pylist(),
        source=table["source"].to_pylist(),
        fold=np.array([-1 if f is None else f for f in table["fold"].to_pylist()], np.int8),
        signal_uv=schema.signals_of(table["signal"]) if len(table) else np.empty((0, 12, 5000), np.int16),
        n_samples=table["n_samples"].to_numpy().astype(np.int32),
        lead_mask=table["lead_mask"].to_numpy().astype(np.int16),
        flags=table["flags"].to_numpy().astype(np.int32),
        r_peaks=[np.asarray(p, np.int32) for p in table["r_peaks"].to_pylist()],
        beat_features=features,
        record_features=np.stack(record_features) if record_features else np.empty((0, 0), np.float32),
        labels=[tuple(codes) for codes in table["labels"].to_pylist()],
        waves=[schema.waves_in(w) for w in table["waves"].to_pylist()],
        age=np.array([np.nan if a is None else a for a in table["age"].to_pylist()], np.float32),
        sex=table["sex"].to_pylist(),
    )


def open_corpus(uri: str, number: int | None = None) -> Corpus:
    """Open the corpus at a folder or URI: its latest snapshot, or manifest `number`.

    Raises CorpusError if there is none, if the manifest is damaged or if its schema is newer than this version reads.
    """
    store = Store(str(uri))
    manifest = read_manifest(store, number)
    version = manifest.recipe.get("schema_version")
    if version != schema.VERSION:
        raise CorpusError(f"{uri} has schema version {version}; this beatray reads {schema.VERSION}. Ingest it again.")
    return Corpus(store, manifest)


def verify(corpus: Corpus) -> Iterator[str]:
    """Check every shard against the manifest; yields one line per fault, nothing if all is whole."""
    expected = {shard.name for shard in corpus.manifest.shards}
    for shard in corpus.manifest.shards:
        try:
            data = corpus.store.read(f"{FOLDER}/{shard.name}")
        except OSError as error:
            yield f"shard {shard.name}: cannot be read ({error})"
            continue
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            yield f"shard {shard.name}: its SHA-256 is not the one in the manifest ({len(data)} of {shard.bytes} bytes)"
            continue
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(columns=["record_id"])
        if table.num_rows != shard.rows:
            yield f"shard {shard.name}: {table.num_rows} rows where the manifest has {shard.rows}"
    refused = corpus.manifest.quarantine
    if refused:
        try:
            if hashlib.sha256(corpus.store.read(refused["name"])).hexdigest() != refused["sha256"]:
                yield f"{refused['name']}: its SHA-256 is not the one in the manifest"
        except OSError as error:
            yield f"{refused['name']}: cannot be read ({error})"
    if len(expected) != len(corpus.manifest.shards):
        yield "the manifest names a shard twice"
