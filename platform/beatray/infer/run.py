"""Embeds a corpus with Ray Data: readers read row groups, workers hold the encoder, the driver writes the files.

One read task per row group (stream.py), checked against the manifest; what the workers give comes back in order, is
gathered by shard and written, one file per shard and level, while the next one is computed. Contract: the files' bytes
do not depend on the number of workers or readers; finished files are not computed again; a row group that is not what
the manifest says raises CorpusError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from beatray.corpus.manifest import Shard
from beatray.corpus.reader import read_row_group
from beatray.infer.files import (
    LEVELS,
    LISTING,
    STAGING,
    Listing,
    VectorFile,
    read_listing,
    write_listing,
    write_note,
    write_part,
)
from beatray.infer.plan import EmbedPlan, finished_parts
from beatray.infer.stream import Unit, answers, use_gpu
from beatray.infer.worker import COLUMNS, Embedder, unpacked, work_of
from beatray.storage.store import Store

WRITES_AHEAD = 4

OnProgress = Callable[[int, int], None]
"""(recordings done, recordings in all)"""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What came of it: how many shards were computed now and how many were there before."""

    listing: Listing
    computed: int
    kept: int


def embed(plan: EmbedPlan, on_progress: OnProgress = lambda done, total: None) -> Embedded:
    """Embed what is not embedded yet, and commit. Needs an open Ray session.

    Raises SettingsError for a plan that cannot run, CorpusError for a damaged corpus.
    """
    shards = plan.corpus.manifest.shards
    parts = finished_parts(plan)
    waiting = [number for number, shard in enumerate(shards) if shard.name not in parts]
    kept = len(parts)
    if waiting:
        gpu = use_gpu(plan.settings, "embed")
        for folder in ("", STAGING, *plan.levels):
            plan.out.clear_temporary(folder)
        total = plan.corpus.manifest.rows
        done = total - sum(shards[number].rows for number in waiting)
        on_progress(done, total)
        for number, written in _computed(plan, waiting, gpu):
            parts[shards[number].name] = written
            done += shards[number].rows
            on_progress(done, total)
    listing = Listing(
        made_by=plan.made_by,
        corpus={"manifest": plan.corpus.manifest.number, "sha256": plan.corpus.manifest.hash},
        widths=plan.widths,
        parts=tuple(part for shard in shards for part in parts[shard.name]),
    )
    if plan.out.size(LISTING) is None or read_listing(plan.out) != listing:
        write_listing(plan.out, listing)
    _tidy(plan.out, listing)
    return Embedded(listing, len(waiting), kept)


def _tidy(store: Store, listing: Listing) -> None:
    """Remove the notes, and vectors of shards that the corpus no longer has."""
    listed = {part.name for part in listing.parts}
    for level in LEVELS:
        for name in store.names(level):
            if f"{level}/{name}" not in listed and name.endswith(".parquet"):
                store.delete(f"{level}/{name}")
    store.delete_folder(STAGING)


def read_unit(store: Store, shard_number: int, shard: Shard, group: int) -> list[pa.Table]:
    """The read task: one row group, checked, with its position in the corpus."""
    table = read_row_group(store, shard, group, COLUMNS)
    for name, value in (("shard", shard_number), ("group", group)):
        table = table.append_column(name, pa.array(np.full(len(table), value, np.int32)))
    return [table]


def _units(plan: EmbedPlan, number: int) -> list[Unit]:
    """What is read of a shard: its row groups."""
    shard = plan.corpus.manifest.shards[number]
    units = []
    for group, rows in enumerate(shard.row_groups):
        read = functools.partial(read_unit, plan.corpus.store, number, shard, group)
        units.append(Unit(shard.name, rows, {"shard": number, "group": group}, read))
    return units


def _computed(plan: EmbedPlan, waiting: Sequence[int], gpu: bool) -> Iterator[tuple[int, tuple[VectorFile, ...]]]:
    """The waiting shards, each with its files once they are written."""
    shards = plan.corpus.manifest.shards
    gathered: dict[int, dict[int, dict[str, Any]]] = {}
    writing: list[tuple[int, Future[tuple[VectorFile, ...]]]] = []
    with ThreadPoolExecutor(2, thread_name_prefix="beatray-write") as pool:
        units = [unit for number in waiting for unit in _units(plan, number)]
        for row in answers(units, Embedder, work_of(plan, gpu), plan.settings, gpu):
            number = int(row["shard"])
            groups = gathered.setdefault(number, {})
            groups[int(row["group"])] = row
            if len(groups) == len(shards[number].row_groups):
                writing.append((number, pool.submit(_write, plan, shards[number], gathered.pop(number))))
            while writing and (len(writing) > WRITES_AHEAD or writing[0][1].done()):
                done, future = writing.pop(0)
                yield done, future.result()
        for done, future in writing:
            yield done, future.result()


def _write(plan: EmbedPlan, shard: Shard, groups: dict[int, dict[str, Any]]) -> tuple[VectorFile, ...]:
    """The files of one shard, its row groups in order, and the note that they are done."""
    parts = []
    for level in plan.levels:
        table = pa.concat_tables([unpacked(groups[number][level]) for number in sorted(groups)])
        parts.append(write_part(plan.out, level, shard.name, shard.sha256, table))
    write_note(plan.out, plan.key, shard.name, parts)
    return tuple(parts)
