"""A corpus of any size for benchmarks: the bundled recordings, written again and again under new ids.

Every copy is moved by a few microvolts per lead, so that no two rows are equal and the file compresses as real
recordings do. Beats and features stay those of the original. All rows may be trained on.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from beatray.commands.demo import SAMPLE
from beatray.corpus.manifest import write_manifest
from beatray.corpus.reader import open_corpus
from beatray.corpus.schema import SCHEMA, SIGNAL_BYTES, signals_of
from beatray.corpus.store import Store
from beatray.corpus.writer import write_shard
from beatray.ingest.convert import ingest
from beatray.ingest.plan import IngestSettings

ROWS_PER_SHARD = 1024
JITTER_UV = 25


def write_large_corpus(folder: Path, records: int) -> str:
    """A corpus of `records` rows in `folder`, through the real ingest and the real writer; needs an open Ray session."""
    with tempfile.TemporaryDirectory() as small:
        sources = {name: str(SAMPLE / f"{name}-sample.zip") for name in ("ptbxl", "ludb")}
        ingest(IngestSettings(sources, small))
        corpus = open_corpus(small)
        real = pa.concat_tables([corpus.row_group(*place, SCHEMA.names) for place in _places(corpus)]).combine_chunks()
    store = Store(str(folder))
    shards = []
    for start in range(0, records, ROWS_PER_SHARD):
        rows = np.arange(start, min(start + ROWS_PER_SHARD, records))
        shards.append(write_shard(store, f"large-{start:07d}.parquet", "large", _copies(real, rows)))
    write_manifest(store, replace(corpus.manifest, number=0, shards=tuple(shards), quarantine={}))
    return str(folder)


def _places(corpus):  # type: ignore[no-untyped-def]
    return [(s, g) for s, shard in enumerate(corpus.manifest.shards) for g in range(len(shard.row_groups))]


def _copies(real: pa.Table, rows: np.ndarray) -> pa.Table:
    table = real.take(pa.array(rows % len(real))).combine_chunks()
    moved = np.random.default_rng(int(rows[0])).integers(-JITTER_UV, JITTER_UV, (len(rows), 12, 1))
    signal = np.clip(signals_of(table["signal"]) + moved, -32768, 32767).astype("<i2")
    names = [f"large/{row:07d}" for row in rows.tolist()]
    columns = {
        "record_id": pa.array(names),
        "patient_id": pa.array(names),
        "source": pa.array(["large"] * len(rows)),
        "fold": pa.nulls(len(rows), pa.int8()),
        "signal": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(SIGNAL_BYTES), len(rows), [None, pa.py_buffer(np.ascontiguousarray(signal))]
        ),
        "content_hash": pa.array([hashlib.blake2b(n.encode(), digest_size=16).digest() for n in names], pa.binary(16)),
    }
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table
