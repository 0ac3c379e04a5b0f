"""A row group in the shape training wants it: fixed-size arrays, carried between processes as raw Arrow bytes.

`decode` turns a table of the corpus into arrays; `pack` and `unpack` carry any such arrays through Ray Data without an
extension type and without pickling. Contract: `unpack(pack(x))` equals `x` and owns its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beatray.corpus.clusters import assign_clusters
from beatray.corpus.schema import beat_features_of, signals_of
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES
from beatray.views.draws import record_key

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
}
"""Which corpus column each training array is made of."""


def corpus_columns(arrays: Sequence[str]) -> list[str]:
    """The corpus columns to read for the wanted arrays."""
    wanted = {"record_id", "signal", "n_samples", *(COLUMNS_OF[name] for name in arrays if name in COLUMNS_OF)}
    return sorted(wanted)


def decode(table: pa.Table, arrays: Sequence[str], clusters: dict[str, Any] | None) -> Arrays:
    """Rows as arrays: signal_uv (n, 12, 5000) int16, n_samples (n,), record_key (n,) and, where wanted, r_peaks
    (n, 64) padded with -1, beat_features (n, 64, F) padded with NaN, record_features (n, G), beat_class (n, 64)."""
    n = len(table)
    out: Arrays = {
        "signal_uv": signals_of(table["signal"]) if n else np.empty((0, 12, 5000), np.int16),
        "n_samples": table["n_samples"].to_numpy().astype(np.int64),
        "record_key": np.array([record_key(name) for name in table["record_id"].to_pylist()], np.int64),
    }
    if "r_peaks" in arrays:
        out["r_peaks"] = np.full((n, MAX_BEATS), -1, np.int64)
        for row, peaks in enumerate(table["r_peaks"].to_pylist()):
            out["r_peaks"][row, : len(peaks[:MAX_BEATS])] = peaks[:MAX_BEATS]
    if "beat_features" in arrays or "beat_class" in arrays:
        features = np.full((n, MAX_BEATS, len(BEAT_FEATURES)), np.nan, np.float32)
        classes = np.full((n, MAX_BEATS), -1, np.int64)
        for row, raw in enumerate(table["beat_features"].to_pylist()):
            beats = beat_features_of(raw)[:MAX_BEATS]
            features[row, : len(beats)] = beats
            if clusters is not None and len(beats):
                classes[row, : len(beats)] = assign_clusters(beats, clusters)
        if "beat_features" in arrays:
            out["beat_features"] = features
        if "beat_class" in arrays:
            out["beat_class"] = classes
    if "record_features" in arrays:
        out["record_features"] = np.array(table["record_features"].to_pylist(), np.float32).reshape(
            n, len(RECORD_FEATURES)
        )
    return out


def pack(arrays: Arrays) -> pa.Table:
    """Arrays that share their first dimension as one table of fixed-size bytes; dtype and shape are in the names."""
    columns = {}
    for name, array in arrays.items():
        data = np.ascontiguousarray(array)
        width = data.nbytes // len(data) if len(data) else int(np.prod(data.shape[1:])) * data.itemsize
        label = f"{name}|{data.dtype.str}|{','.join(map(str, data.shape[1:]))}"
        columns[label] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(data), [None, pa.py_buffer(data)])
    return pa.table(columns)


def unpack(table: pa.Table) -> Arrays:
    """The arrays of a packed table, copied out of shared memory so that the object store can let it go."""
    arrays = {}
    for label in table.column_names:
        name, _, rest = label.partition("|")
        dtype, _, shape = rest.rpartition("|")  # the dtype of bytes and booleans has a bar of its own
        column = table[label].combine_chunks()
        chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        sizes = [int(size) for size in shape.split(",") if size]
        count = int(np.prod(sizes)) * len(chunk)
        start = chunk.offset * chunk.type.byte_width
        flat = np.frombuffer(chunk.buffers()[1], np.dtype(dtype), count=count, offset=start)
        arrays[name] = flat.reshape(len(chunk), *sizes).copy()
    return arrays
