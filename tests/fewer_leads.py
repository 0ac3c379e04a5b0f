"""A corpus whose recordings have some leads alone, as ingest would have made it of such recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from beatray.corpus.manifest import write_manifest
from beatray.corpus.reader import open_corpus, read_row_group
from beatray.corpus.schema import SCHEMA, SIGNAL_BYTES, signals_of
from beatray.corpus.writer import write_shard
from beatray.record import content_hash
from beatray.storage.store import Store


def present_with(leads: Sequence[int]) -> list[int]:
    """The leads and, where I and II are among them, the limb leads that follow from those."""
    return sorted({*leads, *((2, 3, 4, 5) if {0, 1} <= set(leads) else ())})


def fewer_leads(corpus: str, folder: Path, leads: Sequence[int]) -> str:
    """A copy with those leads alone, and what follows from them; the others are zero and not in the masks."""
    known, store, present = open_corpus(corpus), Store(str(folder)), present_with(leads)
    mask = sum(1 << lead for lead in present)
    shards = []
    for shard in known.manifest.shards:
        groups = [read_row_group(known.store, shard, group, SCHEMA.names) for group in range(len(shard.row_groups))]
        table = pa.concat_tables(groups).combine_chunks()
        whole = signals_of(table["signal"])
        signal = np.zeros(whole.shape, "<i2")
        signal[:, present] = whole[:, present]
        data = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(SIGNAL_BYTES), len(table), [None, pa.py_buffer(np.ascontiguousarray(signal))]
        )
        columns = {
            "signal": data,
            "lead_mask": pa.array([mask] * len(table), pa.int16()),
            "content_hash": pa.array([content_hash(each) for each in signal], pa.binary(16)),
        }
        for name, column in columns.items():
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
        shards.append(write_shard(store, shard.name, shard.source, table))
    write_manifest(store, replace(known.manifest, number=0, shards=tuple(shards), quarantine={}))
    return str(folder)
