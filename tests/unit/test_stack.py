"""One piece of memory for the signals of all row groups: what was written before stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from beatray.corpus import schema
from beatray.corpus.writer import FOLDER, ShardWriter, parquet_bytes
from beatray.dsp.analyse import analyse
from beatray.record import Window, content_hash
from beatray.storage.store import Store


def windows(n: int, seed: int) -> list[Window]:
    signals = np.random.default_rng(seed).integers(-900, 900, (n, 12, 5000)).astype(np.int16)
    return [
        Window(f"x/{seed}-{k}", "x", signal_uv=uv, n_samples=5000, lead_mask=4095, content_hash=content_hash(uv))
        for k, uv in enumerate(signals)
    ]


def test_the_same_table_as_without_it() -> None:
    stack, group = schema.Stack(), windows(3, 0)
    signals = stack.of(group)
    measured = analyse(signals, 5000, 4095)
    assert parquet_bytes(schema.to_table(group, measured, signals)) == parquet_bytes(schema.to_table(group, measured))


def test_memory_is_used_again_and_grows() -> None:
    stack = schema.Stack()
    many, few = stack.of(windows(4, 0)), stack.of(windows(2, 1))
    assert np.shares_memory(many, few) and few.shape == (2, 12, 5000)
    assert stack.of([]).shape == (0, 12, 5000)
    more = windows(6, 2)
    np.testing.assert_array_equal(stack.of(more), [window.signal_uv for window in more])


def test_groups_written_one_after_the_other(tmp_path: Path) -> None:
    stack, writer = schema.Stack(), ShardWriter(Store(str(tmp_path)), "part", "x")
    groups = [windows(3, 0), windows(3, 1), windows(2, 2)]
    for group in groups:
        signals = stack.of(group)
        writer.add_group(schema.to_table(group, analyse(signals, 5000, 4095), signals))
    signals[:] = 0
    (shard,) = writer.finish()
    table = pq.read_table(tmp_path / FOLDER / shard.name)
    stored = schema.signals_of(table["signal"])
    np.testing.assert_array_equal(stored, [window.signal_uv for group in groups for window in group])
