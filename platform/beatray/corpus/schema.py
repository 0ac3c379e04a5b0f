"""The corpus row: one window of 10 s as Parquet columns of plain Arrow types.

The signal is raw bytes of fixed size (int16, lead-major) because Parquet widens int16 to int32 and pays repetition
levels for lists: bytes read several times faster and are smaller. No Arrow extension type is used anywhere: reading
one can run code (CVE-2023-47248). Contract: `to_table` and `signals_of` are exact inverses on the signal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beatray.dsp.analyse import Analysis
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES
from beatray.record import LEADS, RATE_HZ, WAVE_DTYPE, WAVE_KINDS, WINDOW_SAMPLES, Window

VERSION = 2
ROWS_PER_GROUP = 128
"""Rows of a Parquet row group: the unit of shuffling, sharding and resuming."""

SIGNAL_BYTES = len(LEADS) * WINDOW_SAMPLES * 2
FRANK_BYTES = 3 * WINDOW_SAMPLES * 2

WAVE_TYPE = pa.struct(
    [
        ("lead", pa.int8()),
        ("kind", pa.string()),
        ("onset", pa.int32()),
        ("peak", pa.int32()),
        ("offset", pa.int32()),
    ]
)

ACQUIRED = "acquired"
"""When the recording began, beside a patient alone: what a label of a patient at some time is found by. Where ids are
hashed, all times of a patient are moved by one span that the id key knows (`id_key`). Corpora of before lack it."""

RECORD_FEATURE_NAMES = b"beatray.record_features"

SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("fold", pa.int8()),
        pa.field("signal", pa.binary(SIGNAL_BYTES), nullable=False),
        pa.field("n_samples", pa.int32(), nullable=False),
        pa.field("lead_mask", pa.int16(), nullable=False),
        pa.field("flags", pa.int32(), nullable=False),
        pa.field("r_peaks", pa.list_(pa.int32()), nullable=False),
        pa.field("beat_class", pa.list_(pa.int8())),
        pa.field("beat_features", pa.binary(), nullable=False),
        pa.field("record_features", pa.list_(pa.float32()), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("waves", pa.list_(WAVE_TYPE)),
        pa.field("age", pa.float32()),
        pa.field("sex", pa.string()),
        pa.field(ACQUIRED, pa.timestamp("ms")),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("frank", pa.binary(FRANK_BYTES)),
    ],
    metadata={
        b"beatray.schema_version": str(VERSION).encode(),
        b"beatray.leads": " ".join(LEADS).encode(),
        b"beatray.signal": f"int16 little endian, {len(LEADS)}x{WINDOW_SAMPLES}, 1 uV, {RATE_HZ} Hz".encode(),
        b"beatray.beat_features": " ".join(BEAT_FEATURES).encode(),
        RECORD_FEATURE_NAMES: " ".join(RECORD_FEATURES).encode(),
    },
)


class Stack:
    """The signals of windows as one array (n, 12, 5000), in memory that the next windows are stacked into again.

    For a row group 15 MB, which analysis and table share, and which the system need not give and clear each time.
    """

    def __init__(self) -> None:
        self._memory = np.empty((0, len(LEADS), WINDOW_SAMPLES), np.int16)

    def of(self, windows: Sequence[Window]) -> NDArray[np.int16]:
        """Valid until it is asked again."""
        if len(windows) > len(self._memory):
            self._memory = np.empty((len(windows), len(LEADS), WINDOW_SAMPLES), np.int16)
        signals = self._memory[: len(windows)]
        for window, target in zip(windows, signals, strict=True):
            target[...] = window.signal_uv
        return signals


def to_table(windows: Sequence[Window], analysis: Analysis, signals: NDArray[np.int16] | None = None) -> pa.Table:
    """Windows and their measurements as one table of `SCHEMA`; beat_class stays null until a classifier fills it.

    `signals`: those of the windows in one array, where the caller has it; the table then holds that memory.
    """
    if signals is None:
        signals = Stack().of(windows)
    columns = {
        "record_id": [w.record_id for w in windows],
        "patient_id": [w.patient_id for w in windows],
        "source": [w.source for w in windows],
        "fold": [w.fold for w in windows],
        "signal": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(SIGNAL_BYTES), len(windows), [None, pa.py_buffer(np.ascontiguousarray(signals, "<i2"))]
        ),
        "n_samples": [w.n_samples for w in windows],
        "lead_mask": analysis.lead_mask,
        "flags": [int(a) | w.flags for a, w in zip(analysis.flags, windows, strict=True)],
        "r_peaks": [peaks.tolist() for peaks in analysis.r_peaks],
        "beat_class": [None] * len(windows),
        "beat_features": [np.ascontiguousarray(f, "<f4").tobytes() for f in analysis.beat_features],
        "record_features": [row.tolist() for row in analysis.record_features],
        "labels": [list(w.labels) for w in windows],
        "waves": _waves_column([w.waves for w in windows]),
        "age": [w.age for w in windows],
        "sex": [w.sex for w in windows],
        ACQUIRED: [w.acquired for w in windows],
        "content_hash": [w.content_hash for w in windows],
        "frank": [None if w.frank_uv is None else np.ascontiguousarray(w.frank_uv, "<i2").tobytes() for w in windows],
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, SCHEMA.field(name).type, from_pandas=False)
        for name, column in columns.items()
    ]
    names = {RECORD_FEATURE_NAMES: " ".join(analysis.record_feature_names).encode()}
    return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata({**(SCHEMA.metadata or {}), **names}))


def signals_of(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int16]:
    """The signal column as int16 (n, 12, 5000) without a copy (of one chunk); read-only."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    flat = np.frombuffer(array.buffers()[1], "<i2", count=len(array) * SIGNAL_BYTES // 2, offset=_offset(array))
    return flat.reshape(len(array), len(LEADS), WINDOW_SAMPLES)


def _offset(array: pa.FixedSizeBinaryArray) -> int:
    return int(array.offset) * SIGNAL_BYTES


def beat_features_of(raw: bytes) -> NDArray[np.float32]:
    """One row's beat features, float32 (n_beats, len(BEAT_FEATURES))."""
    return np.frombuffer(raw, "<f4").reshape(-1, len(BEAT_FEATURES))


def _waves_column(waves: Sequence[NDArray[np.void]]) -> pa.ListArray:
    """The waves of each row, null for a row without any; built from whole columns, as LUDB has 290 waves a row."""
    every = np.concatenate([np.empty(0, WAVE_DTYPE), *waves])
    columns = [pa.array(every["lead"], pa.int8()), pa.array(np.array(WAVE_KINDS)[every["kind"]], pa.string())]
    columns += [pa.array(every[edge], pa.int32(), mask=every[edge] < 0) for edge in ("onset", "peak", "offset")]
    lengths = np.array([len(some) for some in waves], np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    offsets = pa.array(ends, pa.int32(), mask=np.append(lengths == 0, False))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(WAVE_TYPE)))


def frank_of(raw: bytes | None) -> NDArray[np.int16] | None:
    """One row's Frank leads X, Y, Z, int16 (3, 5000) of 1 uV; None where none were recorded."""
    return None if raw is None else np.frombuffer(raw, "<i2").reshape(3, WINDOW_SAMPLES)


def waves_in(waves: list[dict[str, int | str | None]] | None) -> NDArray[np.void]:
    """The waves column of one row as an array of `WAVE_DTYPE` (-1 for a missing boundary)."""
    rows = [
        (
            w["lead"],
            WAVE_KINDS.index(str(w["kind"])),
            *(-1 if w[e] is None else w[e] for e in ("onset", "peak", "offset")),
        )
        for w in waves or ()
    ]
    return np.array(rows, WAVE_DTYPE)
