"""A corpus of any size to measure on: the bundled recordings, written again and again under new ids.

They are read and measured as `beatray ingest` does it, in this process and without Ray. Every copy is moved by a few
microvolts per lead, so that no two rows are equal and a file compresses as real recordings do; beats and features stay
those of the original. All rows may be trained on. Contract: the same number of rows gives the same rows.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from beatray.corpus.manifest import Manifest, Shard, write_manifest
from beatray.corpus.reader import Corpus, read_row_group
from beatray.corpus.schema import SCHEMA, SIGNAL_BYTES, signals_of
from beatray.corpus.tally import Tally, merge_all
from beatray.corpus.writer import write_shard
from beatray.ingest.plan import SAMPLE, IngestSettings, list_items, plan, recipe_of
from beatray.ingest.slices import convert_slice
from beatray.storage.store import Store

ROWS_PER_SHARD, JITTER_UV, RAIL_UV = 1024, 25, 32_000
BUNDLED = 64
"""Recordings of each source that are read: more would show nothing new of the cost of a step or the feed."""


def write_large_corpus(folder: Path, records: int, bundled: int = BUNDLED) -> str:
    """A corpus of `records` rows in `folder`, of at most `bundled` recordings of each source; returns its path."""
    real, recipe, statistics = _bundled(bundled)
    cuts = [*range(0, records, ROWS_PER_SHARD), records]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        shards = list(pool.map(lambda cut: _write(real, str(folder), *cut), itertools.pairwise(cuts)))
    write_manifest(Store(str(folder)), Manifest(0, recipe, tuple(shards), {}, {**statistics, "rows": records}))
    return str(folder)


@lru_cache(maxsize=1)
def _bundled(count: int) -> tuple[pa.Table, dict[str, Any], dict[str, Any]]:
    """The rows of bundled recordings, their recipe and their statistics."""
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: str(SAMPLE / f"{name}-sample.zip") for name in ("ludb", "ptbxl")}
        settings, store = IngestSettings(sources, folder, limit=count), Store(folder)
        recipe = recipe_of(settings)
        slices = plan(settings, recipe, list_items(settings), set())
        done = [convert_slice(store, part, settings.analysis()) for part in slices]
        shards = tuple(Shard(**{**s, "row_groups": tuple(s["row_groups"])}) for part in done for s in part.shards)
        groups = [(shard, group) for shard in shards for group in range(len(shard.row_groups))]
        real = pa.concat_tables([read_row_group(store, *group, SCHEMA.names) for group in groups])
        draft = Corpus(store, Manifest(0, recipe, shards, {}, {}))
        return real, recipe, _statistics(draft, merge_all([part.tally for part in done]))


def _statistics(corpus: Corpus, tally: Tally) -> dict[str, Any]:
    try:
        from beatray.corpus.summary import statistics_of
    except ImportError:  # a machine without scikit-learn: there are no clusters of beats then
        return {"beat_clusters": None, **tally}
    return statistics_of(corpus, tally)


def _write(real: pa.Table, folder: str, start: int, end: int) -> Shard:
    rows, count = np.arange(start, end), end - start
    table = real.take(pa.array(rows % len(real))).combine_chunks()
    moved = np.random.default_rng(start).integers(-JITTER_UV, JITTER_UV, (count, 12, 1), np.int16)
    signal = np.clip(signals_of(table["signal"]), -RAIL_UV, RAIL_UV) + moved
    names = [f"large/{row:07d}" for row in rows.tolist()]
    data = pa.py_buffer(np.ascontiguousarray(signal, "<i2"))
    columns = {
        "record_id": pa.array(names),
        "patient_id": pa.array(names),
        "source": pa.array(["large"] * count),
        "fold": pa.nulls(count, pa.int8()),
        "signal": pa.FixedSizeBinaryArray.from_buffers(pa.binary(SIGNAL_BYTES), count, [None, data]),
        "content_hash": pa.array([hashlib.blake2b(n.encode(), digest_size=16).digest() for n in names], pa.binary(16)),
    }
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return write_shard(Store(folder), f"large-{start:07d}.parquet", "large", table)
