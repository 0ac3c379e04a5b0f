"""What the stream is made of, without Ray: rows in bytes, rows in a pool, an iterator in a thread."""

from __future__ import annotations

import threading
from collections.abc import Generator

import numpy as np
import pyarrow as pa
import pytest

from beatray.corpus.clusters import assign_clusters
from beatray.corpus.schema import SCHEMA
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES
from beatray.train.blocks import MAX_BEATS, Packed, decode, pack, unpack
from beatray.train.prefetcher import Prefetcher
from beatray.train.row_buffer import RowPool

WANTED = ("signal_uv", "n_samples", "record_key", "r_peaks", "beat_features", "beat_class", "record_features")


def corpus_table(beats: list[int]) -> pa.Table:
    """Rows with so many beats each; everything else is random."""
    random = np.random.default_rng(0)
    n = len(beats)
    columns = {
        "record_id": [f"r{row}" for row in range(n)],
        "signal": [random.integers(-900, 900, (12, 5000), np.int16).tobytes() for _ in beats],
        "n_samples": [5000 - row for row in range(n)],
        "r_peaks": [np.sort(random.integers(0, 5000, count)).tolist() for count in beats],
        "beat_features": [random.normal(size=(count, len(BEAT_FEATURES))).astype("<f4").tobytes() for count in beats],
        "record_features": [random.normal(size=len(RECORD_FEATURES)).astype("f4").tolist() for _ in beats],
    }
    return pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()})


@pytest.mark.parametrize("cut", [slice(None), slice(2, 5), slice(3, 3)])
def test_decoding_agrees_with_a_row_by_row_reading(cut: slice) -> None:
    width = len(BEAT_FEATURES)
    clusters = {"mean": [0.0] * width, "sd": [1.0] * width, "centroids": np.eye(3, width).tolist()}
    table = corpus_table([3, 0, 70, 11, 0, 1])
    table = pa.concat_tables([table, table])[cut]  # two chunks, slices with an offset, no rows
    arrays = decode(table, WANTED, clusters)
    assert all(len(values) == len(table) for values in arrays.values())
    for row, expected in enumerate(table.to_pylist()):
        peaks, count = expected["r_peaks"][:MAX_BEATS], min(len(expected["r_peaks"]), MAX_BEATS)
        beats = np.frombuffer(expected["beat_features"], "<f4").reshape(-1, len(BEAT_FEATURES))[:MAX_BEATS]
        assert arrays["signal_uv"][row].tobytes() == expected["signal"]
        assert arrays["n_samples"][row] == expected["n_samples"]
        assert arrays["r_peaks"][row].tolist() == peaks + [-1] * (MAX_BEATS - count)
        assert np.array_equal(arrays["beat_features"][row, :count], beats)
        assert np.isnan(arrays["beat_features"][row, count:]).all()
        classes = assign_clusters(beats, clusters).tolist() if count else []
        assert arrays["beat_class"][row].tolist() == classes + [-1] * (MAX_BEATS - count)
        assert arrays["record_features"][row].tolist() == pytest.approx(expected["record_features"])


def test_beats_that_are_no_rows_of_features_are_refused() -> None:
    table = corpus_table([2, 1])
    short = pa.array([b"abc", b""], pa.binary())
    with pytest.raises(ValueError, match="beat_features"):
        decode(table.set_column(table.column_names.index("beat_features"), "beat_features", short), WANTED, None)


def test_packed_row_groups_come_back_as_they_were() -> None:
    random = np.random.default_rng(1)
    parts = [
        Packed(7, {"a": random.normal(size=(5, 3, 2)).astype("f4"), "b": random.random(5) < 0.5, "c": np.arange(5)}),
        Packed(9, {"a": np.empty((0, 3, 2), "f4"), "b": np.empty(0, bool), "c": np.arange(0)}, "shard x is gone"),
        Packed(8, {"a": random.normal(size=(1, 3, 2)).astype("f4"), "b": np.array([True]), "c": np.array([-1])}),
    ]
    for table in (pa.concat_tables(map(pack, parts)), pa.concat_tables(map(pack, parts)).combine_chunks()):
        for before, after in zip(parts, unpack(table), strict=True):
            assert (after.number, after.fault) == (before.number, before.fault)
            assert list(after.arrays) == list(before.arrays)
            for name, values in before.arrays.items():
                assert after.arrays[name].dtype == values.dtype and np.array_equal(after.arrays[name], values)


def test_a_pool_gives_back_what_was_put_in_and_grows_only_when_full() -> None:
    random = np.random.default_rng(2)
    pool, held = RowPool(10), dict[int, int]()
    most = 0
    for value in range(400):
        if len(held) < 60 or random.random() < 0.5:
            count = int(random.integers(1, 9))
            slots = pool.put({"x": np.full((count, 4), value), "y": np.arange(count)})
            assert not held.keys() & set(slots.tolist()) and len(set(slots.tolist())) == count
            held |= dict.fromkeys(slots.tolist(), value)
        else:
            gone = random.permutation(list(held))[:20]
            assert pool.get(gone)["x"][:, 0].tolist() == [held[slot] for slot in gone.tolist()]
            pool.free(gone.tolist())
            for slot in gone.tolist():
                del held[slot]
        most = max(most, len(held))
    assert max(held) < 2 * most  # places were used again: over a thousand rows went through


def numbers(upto: int, closed: threading.Event) -> Generator[int, None, None]:
    try:
        yield from range(upto)
        raise OSError("the disk is gone")
    finally:
        closed.set()


def test_a_thread_ahead_keeps_order_and_raises_in_its_place() -> None:
    closed, seen = threading.Event(), list[int]()
    ahead = Prefetcher(numbers(20, closed), 3, "test")
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(ahead)
    assert seen == list(range(20)) and closed.is_set()
    assert next(ahead, None) is None
    ahead.close()


@pytest.mark.parametrize("taken", [0, 1, 5, 20])
def test_a_thread_ahead_can_be_closed_at_any_time(taken: int) -> None:
    closed = threading.Event()
    ahead = Prefetcher(numbers(20, closed), 3, "test")
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    ahead.close()
    assert closed.is_set() and next(ahead, None) is None
    assert "beatray-test" not in [thread.name for thread in threading.enumerate()]
