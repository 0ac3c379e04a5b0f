"""One row group as the stream takes it: read, checked, decoded, with views where they are made by readers. No Ray here.

A row group that is not what the manifest says has no rows and the message of what is wrong: whether that stops a run is
for the stream to decide. Contract: what comes is a function of the shard, the settings and the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from beatray.corpus.reader import read_row_group
from beatray.corpus.schema import SCHEMA
from beatray.errors import CorpusError
from beatray.storage.store import Store
from beatray.train.blocks import Arrays, Packed, corpus_columns, decode
from beatray.train.order import Unit, lanes_for
from beatray.train.row_buffer import HeldRows
from beatray.train.stream_settings import RowGroup, StreamSettings
from beatray.train.targets import TargetTable

MakeViews = Callable[[Arrays, int], Arrays]
"""(arrays, epoch) -> arrays: views made on a Ray Data worker instead of in the rank."""


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What is read of each row group, and with how many readers."""

    store: Store
    arrays: tuple[str, ...]
    clusters: dict[str, Any] | None = None
    make_views: MakeViews | None = None
    readers: int = 2
    cpus_per_reader: float = 0.25
    task_mb: int = 64  # of rows that one task reads, and that one block holds
    tasks_ahead: int = 1  # finished tasks whose rows wait in the object store
    targets: TargetTable | None = None


def no_rows(settings: ReadSettings) -> Arrays:
    """The arrays of a row group without rows."""
    nothing = decode(SCHEMA.empty_table(), settings.arrays, settings.clusters, settings.targets)
    return _with_views(settings, nothing, 0)


def row_bytes(settings: ReadSettings) -> int:
    """Bytes of one row as it travels and is kept."""
    return sum(array.itemsize * math.prod(array.shape[1:]) for array in no_rows(settings).values())


def _with_views(settings: ReadSettings, arrays: Arrays, epoch: int) -> Arrays:
    if settings.make_views is None:
        return arrays
    return {**settings.make_views(arrays, epoch), "record_key": arrays["record_key"]}


def read_unit(settings: ReadSettings, unit: Unit, group: RowGroup) -> Packed:
    """The usable rows of one row group, decoded; what is wrong with its shard becomes the fault of an empty one."""
    try:
        table = read_row_group(settings.store, group.shard, group.group, corpus_columns(settings.arrays))
        if len(group.rows) != len(table):
            table = table.take(pa.array(group.rows))
        arrays = decode(table, settings.arrays, settings.clusters, settings.targets)
    except CorpusError as error:
        return Packed(unit.number, no_rows(settings), str(error))
    except ValueError as error:
        fault = f"row group {group.group} of shard {group.shard.name} cannot be decoded ({error})"
        return Packed(unit.number, no_rows(settings), fault)
    return Packed(unit.number, _with_views(settings, arrays, unit.epoch))


def held_rows(stream: StreamSettings, settings: ReadSettings) -> HeldRows:
    """Memory for the rows that wait: of the shuffle window, or of a whole corpus that fits and stays the same."""
    sizes, order = stream.sizes, stream.order
    fits = sum(sizes) * row_bytes(settings) <= stream.cache_mb * 2**20
    window = lanes_for(len(sizes), order) * (order.window // 2 + 2) * max(sizes)  # rows held at once, about
    keep = fits and settings.make_views is None  # views differ from epoch to epoch
    return HeldRows(sum(sizes) if keep else min(sum(sizes), window), keep=keep)
