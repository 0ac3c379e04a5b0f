"""A row group in the shape that training reads: fixed-size arrays, carried between processes as raw Arrow bytes.

`decode` turns a table of the corpus into arrays; `pack` and `unpack` carry any such arrays through Ray Data without an
extension type and without pickling: one row of a table is one row group, each array one value of plain bytes.
Contract: `unpack(pack(x))` equals `x`; what it returns lies in the table's own memory and is read-only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.corpus.schema import signals_of
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES
from beatray.train.targets import TargetTable

Arrays = dict[str, NDArray[Any]]

MAX_BEATS = 64
"""Beats kept of one record: 10 s at 384 beats a minute; arrays of fixed size need a bound."""

COLUMNS_OF = {
    "signal_uv": "signal",
    "n_samples": "n_samples",
    "r_peaks": "r_peaks",
    "beat_features": "beat_features",
    "record_features": "record_features",
    "beat_class": "beat_features",
    "patient_key": "patient_id",
}
"""Which corpus column each training array is made of."""

ARRAYS = (
    "signal_uv",
    "n_samples",
    "record_key",
    *(name for name in COLUMNS_OF if name not in ("signal_uv", "n_samples")),
    "target",
)
"""Everything an objective may read."""

PLAIN = ("number", "rows", "fault")
"""Columns of a packed table that are no arrays."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A row group under way: its number in the reader's plan, its arrays, and why there are no rows in them."""

    number: int
    arrays: Arrays
    fault: str = ""


def corpus_columns(arrays: Sequence[str]) -> list[str]:
    """The corpus columns to read for these arrays."""
    columns = {"record_id", "signal", "n_samples", *(COLUMNS_OF[name] for name in arrays if name in COLUMNS_OF)}
    return sorted(columns)


def decode(
    table: pa.Table, arrays: Sequence[str], clusters: dict[str, Any] | None, targets: TargetTable | None = None
) -> Arrays:
    """Rows as arrays: signal_uv (n, 12, 5000) int16, n_samples (n,), record_key (n,) and, where asked for, r_peaks
    (n, 64) padded with -1, beat_features (n, 64, F) padded with NaN, record_features (n, G), beat_class (n, 64),
    patient_key (n,), that of the record where the patient is not known, and target (n, ...), of `targets`."""
    n = len(table)
    out: Arrays = {
        "signal_uv": signals_of(_one_chunk(table["signal"])) if n else np.empty((0, 12, 5000), np.int16),
        "n_samples": table["n_samples"].to_numpy().astype(np.int64),
        "record_key": np.array([record_key(name) for name in table["record_id"].to_pylist()], np.int64),
    }
    if "r_peaks" in arrays:
        peaks = _one_chunk(table["r_peaks"])
        out["r_peaks"] = _padded(peaks.values.to_numpy().astype(np.int64), peaks.offsets.to_numpy(), -1)
    if "beat_features" in arrays or "beat_class" in arrays:
        beats, offsets = _beats(_one_chunk(table["beat_features"]))
        if "beat_features" in arrays:
            out["beat_features"] = _padded(beats, offsets, np.nan)
        if "beat_class" in arrays:
            out["beat_class"] = _padded(_classes(beats, clusters), offsets, -1)
    if "patient_key" in arrays:
        out["patient_key"] = patient_keys(table["patient_id"].to_pylist(), out["record_key"])
    if "record_features" in arrays:
        features = _one_chunk(table["record_features"]).flatten().to_numpy(zero_copy_only=False)
        out["record_features"] = features.astype(np.float32).reshape(
            n, len(features) // n if n else len(RECORD_FEATURES)
        )
    if "target" in arrays:
        if targets is None:
            raise ValueError("targets are asked for, and there are none")
        out["target"] = targets.rows(out["record_key"])
    return out


def patient_keys(patients: Sequence[str | None], record_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """64-bit keys of patient ids (BLAKE2b); a recording without one is a patient of its own."""
    known = [(name, own) for name, own in zip(patients, record_keys.tolist(), strict=True)]
    return np.array([record_key(f"patient/{name}") if name else own for name, own in known], np.int64)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even a single chunk


def _beats(column: pa.BinaryArray) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All beats of all rows (beats, F), and where each row's begin."""
    _, buffer, data = column.buffers()
    ends = np.frombuffer(buffer, np.int32)[column.offset : column.offset + len(column) + 1] if len(column) else [0]
    offsets, rest = np.divmod(np.asarray(ends, np.int64), 4 * len(BEAT_FEATURES))
    if rest.any():
        raise ValueError(f"beat_features are not rows of {len(BEAT_FEATURES)} numbers; ingest the corpus again")
    count = int(offsets[-1]) * len(BEAT_FEATURES)
    flat = np.frombuffer(data, "<f4", count=count) if count else np.empty(0, np.float32)
    return flat.reshape(-1, len(BEAT_FEATURES)), offsets


def _classes(beats: NDArray[np.float32], clusters: dict[str, Any] | None) -> NDArray[np.int64]:
    if clusters is None or not len(beats):
        return np.full(len(beats), -1, np.int64)
    from beatray.corpus.clusters import assign_clusters  # scikit-learn takes a reader half a second to import

    return assign_clusters(beats, clusters).astype(np.int64)


def _padded(values: NDArray[Any], offsets: NDArray[Any], fill: float) -> NDArray[Any]:
    """Rows of different lengths, one after the other in `values`, as (rows, 64, ...)."""
    out = np.full((len(offsets) - 1, MAX_BEATS, *values.shape[1:]), fill, values.dtype)
    counts = np.minimum(np.diff(offsets), MAX_BEATS)
    row = np.repeat(np.arange(len(counts)), counts)
    beat = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    out[row, beat] = values[np.repeat(offsets[:-1], counts) + beat]
    return out


def pack(packed: Packed) -> pa.Table:
    """One row: the number, the fault and every array as bytes; dtype and shape are in the names."""
    rows = len(next(iter(packed.arrays.values())))
    columns: dict[str, pa.Array] = {
        "number": pa.array([packed.number], pa.int64()),
        "rows": pa.array([rows], pa.int64()),
        "fault": pa.array([packed.fault], pa.string()),
    }
    for name, array in packed.arrays.items():
        data = np.ascontiguousarray(array)
        label = f"{name}|{data.dtype.str}|{','.join(map(str, data.shape[1:]))}"
        offsets = pa.py_buffer(np.array([0, data.nbytes], np.int64))
        columns[label] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    return pa.table(columns)


def unpack(table: pa.Table) -> Iterator[Packed]:
    """The row groups of a packed table."""
    for batch in table.to_batches():
        for row in range(len(batch)):
            number, rows, fault = (batch[name][row].as_py() for name in PLAIN)
            arrays = {}
            for label in batch.schema.names:
                if label not in PLAIN:
                    name, _, rest = label.partition("|")
                    dtype, _, shape = rest.rpartition("|")  # the dtype of bytes and booleans has a bar of its own
                    sizes = [int(size) for size in shape.split(",") if size]
                    flat = _value(batch[label], row, np.dtype(dtype), rows * math.prod(sizes))
                    arrays[name] = flat.reshape(rows, *sizes)
            yield Packed(number, arrays, fault)


def _value(column: pa.LargeBinaryArray, row: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """One value where it lies; Arrow's own scalars are copies."""
    _, offsets, data = column.buffers()
    start = int(np.frombuffer(offsets, np.int64)[column.offset + row])
    return np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
