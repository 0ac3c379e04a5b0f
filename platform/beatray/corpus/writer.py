"""Writes shards: immutable Parquet files with page checksums, as a deterministic function of their rows.

Contract: the same table gives the same bytes with the same pyarrow; the file appears whole or not at all; the
returned `Shard` carries the SHA-256 of exactly the bytes on disk.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from beatray.corpus.manifest import Shard
from beatray.corpus.schema import ROWS_PER_GROUP
from beatray.corpus.store import Store

FOLDER = "shards"
COMPRESSION = "zstd"
COMPRESSION_LEVEL = 3

QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("item", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def parquet_bytes(table: pa.Table, rows_per_group: int = ROWS_PER_GROUP) -> bytes:
    """The table as a Parquet file with page checksums; no dictionary for the signal, which never repeats."""
    sink = pa.BufferOutputStream()
    repeating = [name for name in ("source", "sex", "patient_id") if name in table.column_names]
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression=COMPRESSION,
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=repeating,
        write_page_checksum=True,
        write_statistics=[n for n in ("record_id", "fold", "source") if n in table.column_names],
    )
    return bytes(sink.getvalue())


def write_shard(store: Store, name: str, source: str, table: pa.Table) -> Shard:
    """Write one shard under `shards/<name>` and describe it for the manifest."""
    data = parquet_bytes(table)
    store.write(f"{FOLDER}/{name}", data)
    full, rest = divmod(table.num_rows, ROWS_PER_GROUP)
    groups = (ROWS_PER_GROUP,) * full + ((rest,) if rest else ())
    return Shard(name, source, table.num_rows, groups, len(data), hashlib.sha256(data).hexdigest())
