"""What a model reads, as one kind of table, whether it comes from a corpus or straight from files.

A row is a window of up to 10 s, or a recording that was refused, with the reason. From files nothing is stored: each
task reads a slice of recordings with the readers of ingest (ingest/slices.py) and hands the windows on. Contract:
`COLUMNS` in the order of the corpus or of the files as ingest lists them; `unit` says which unit of reading a row
belongs to, so that answers find their part. CorpusError for a shard that is not what its manifest says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from beatray.corpus.reader import Corpus, read_row_group
from beatray.corpus.schema import SIGNAL_BYTES
from beatray.infer.stream import Unit
from beatray.ingest.plan import IngestSettings, Listed, Slice, plan, stamp_of
from beatray.ingest.slices import read_item
from beatray.ingest.tree import open_tree
from beatray.record import Window
from beatray.storage.store import Store

COLUMNS = pa.schema(
    [
        pa.field("unit", pa.int32()),
        pa.field("record_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("n_samples", pa.int32()),
        pa.field("signal", pa.binary(SIGNAL_BYTES)),
        pa.field("reason", pa.string()),  # of a refusal; null for a window
        pa.field("detail", pa.string()),
    ]
)
OF_CORPUS = ("record_id", "source", "n_samples", "signal")


@dataclass(frozen=True, slots=True)
class Part:
    """What is noted as done at once: a shard, or a slice of files. The same `stamp` means the same recordings."""

    name: str
    stamp: str
    rows: int
    units: tuple[Unit, ...]


def parts_of_corpus(corpus: Corpus) -> list[Part]:
    """The shards of a corpus, a unit for each row group."""
    parts, number = [], 0
    for shard in corpus.manifest.shards:
        units = []
        for group, rows in enumerate(shard.row_groups):
            read = functools.partial(_of_row_group, corpus.store, shard, group, number)
            units.append(Unit(shard.name, rows, {"unit": number}, read))
            number += 1
        parts.append(Part(shard.name, shard.sha256, shard.rows, tuple(units)))
    return parts


def parts_of_files(listed: Listed, settings: IngestSettings, recipe: dict[str, Any]) -> list[Part]:
    """Slices of the recordings that ingest lists, a unit for each."""
    parts = []
    for number, part in enumerate(plan(settings, recipe, listed, set())):
        rows = sum(item.rows for item in part.items)
        unit = Unit(part.name, rows, {"unit": number}, functools.partial(read_slice, part, number))
        parts.append(Part(part.name, stamp_of(part), len(part.items), (unit,)))
    return parts


def read_slice(part: Slice, unit: int) -> list[pa.Table]:
    """The read task of files: all windows of the slice's recordings, and what was refused of them."""
    tree = open_tree(part.location)
    rows: list[dict[str, Any]] = []
    for item in part.items:
        read = read_item(tree, part.source, item)
        rows += [_row(window, unit) for window in read.windows]
        rows += [{"unit": unit, "record_id": row["item"], **row} for row in read.refused]
    return [pa.Table.from_pylist(rows, schema=COLUMNS)]


def _row(window: Window, unit: int) -> dict[str, Any]:
    return {
        "unit": unit,
        "record_id": window.record_id,
        "source": window.source,
        "n_samples": window.n_samples,
        "signal": np.ascontiguousarray(window.signal_uv, "<i2").tobytes(),
    }


def _of_row_group(store: Store, shard: Any, group: int, unit: int) -> list[pa.Table]:
    table = read_row_group(store, shard, group, OF_CORPUS)
    nothing = pa.nulls(len(table), pa.string())
    table = table.append_column("unit", pa.array(np.full(len(table), unit, np.int32)))
    return [table.append_column("reason", nothing).append_column("detail", nothing).select(COLUMNS.names).cast(COLUMNS)]
