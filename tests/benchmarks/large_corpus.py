"""A corpus of any size for benchmarks: the bundled recordings, written again and again under new ids.

Every copy is moved by a few microvolts per lead, so that no two rows are equal and the file compresses as real
recordings do. Beats and features stay those of the original. All rows may be trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from beatray.commands.demo import SAMPLE
from beatray.corpus.manifest import Shard, write_manifest
from beatray.corpus.reader import open_corpus, read_row_group
from beatray.corpus.schema import SCHEMA, SIGNAL_BYTES, signals_of
from beatray.corpus.writer import write_shard
from beatray.ingest.convert import ingest
from beatray.ingest.plan import IngestSettings
from beatray.storage.store import Store

ROWS_PER_SHARD, JITTER_UV, RAIL_UV = 1024, 25, 32_000


def write_large_corpus(folder: Path, records: int) -> str:
    """A corpus of `records` rows in `folder`, by the real ingest and the real writer; needs an open Ray session."""
    with tempfile.TemporaryDirectory() as small:
        ingest(IngestSettings({name: str(SAMPLE / f"{name}-sample.zip") for name in ("ptbxl", "ludb")}, small))
        corpus = open_corpus(small)
        places = [(shard, group) for shard in corpus.manifest.shards for group in range(len(shard.row_groups))]
        real = pa.concat_tables(read_row_group(corpus.store, *place, SCHEMA.names) for place in places)
    known, write = ray.put(real), ray.remote(_write)
    cuts = [*range(0, records, ROWS_PER_SHARD), records]
    shards = ray.get([write.remote(known, str(folder), s, e) for s, e in itertools.pairwise(cuts)])
    write_manifest(Store(str(folder)), replace(corpus.manifest, number=0, shards=tuple(shards), quarantine={}))
    return str(folder)


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
