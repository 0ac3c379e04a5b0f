"""Embeds a corpus with Ray Data: readers read row groups, workers hold the encoder, the driver writes the files.

One read task per row group, checked against the manifest; a pool of actors, each with its own copy of the encoder and a
GPU where there is one; what they give comes back in order, is gathered by shard and written, one file per shard and
level, while the next one is computed. Contract: the files' bytes do not depend on the number of workers or readers;
finished files are not computed again; a row group that is not what the manifest says raises CorpusError.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from beatray.corpus.manifest import Shard
from beatray.corpus.reader import read_row_group
from beatray.corpus.schema import SIGNAL_BYTES
from beatray.errors import CheckpointError, CorpusError, SettingsError
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
from beatray.infer.worker import COLUMNS, Embedder, unpacked, work_of
from beatray.storage.store import Store, StoreError

CHUNK_GROUPS = 8192
"""Row groups of one execution: a plan of a million read tasks would be slow to make."""
WRITES_AHEAD = 4
WANTED_PER_ACTOR = 3
"""Row groups waiting at each worker, so that it never waits for a reader."""

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
        use_gpu = check_resources(plan, ray.cluster_resources())
        for folder in ("", STAGING, *plan.levels):
            plan.out.clear_temporary(folder)
        total = plan.corpus.manifest.rows
        done = total - sum(shards[number].rows for number in waiting)
        on_progress(done, total)
        for number, written in _computed(plan, waiting, use_gpu):
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
    """Remove the notes, and files of shards that the corpus no longer has."""
    listed = {part.name for part in listing.parts}
    for level in LEVELS:
        for name in store.names(level):
            if f"{level}/{name}" not in listed:
                store.delete(f"{level}/{name}")
    store.delete_folder(STAGING)


def check_resources(plan: EmbedPlan, total: dict[str, float]) -> bool:
    """True if workers get a GPU each; SettingsError with the arithmetic for a plan that could only hang."""
    s = plan.settings
    for_workers, have = s.workers * s.cpus_per_worker, total.get("CPU", 0.0)
    if for_workers + s.cpus_per_reader > have:
        raise SettingsError(
            f"{s.workers} workers need {for_workers:g} CPUs and a reader {s.cpus_per_reader:g}; Ray has {have:g}. "
            "Lower embed.workers, embed.cpus_per_worker or embed.cpus_per_reader, or add nodes."
        )
    use_gpu = total.get("GPU", 0.0) > 0 if s.device == "auto" else s.device == "cuda"
    if use_gpu and total.get("GPU", 0.0) < s.workers:
        raise SettingsError(
            f"{s.workers} workers need as many GPUs; Ray has {total.get('GPU', 0):g}. Lower embed.workers or set "
            "embed.device=cpu."
        )
    return use_gpu


@dataclass(frozen=True, slots=True)
class _Unit:
    """One row group to embed."""

    shard_number: int
    shard: Shard
    group: int

    @property
    def rows(self) -> int:
        return self.shard.row_groups[self.group]


def read_unit(store: Store, unit: _Unit) -> list[pa.Table]:
    """The read task: one row group, checked, with its place in the corpus."""
    table = read_row_group(store, unit.shard, unit.group, COLUMNS)
    for name, value in (("shard", unit.shard_number), ("group", unit.group)):
        table = table.append_column(name, pa.array(np.full(len(table), value, np.int32)))
    return [table]


class _RowGroups(Datasource):  # type: ignore[misc]  # ray ships no types
    """A Ray Data source with one read task per unit, in order."""

    def __init__(self, store: Store, units: Sequence[_Unit]) -> None:
        super().__init__()
        self._store, self._units = store, units

    def estimate_inmemory_data_size(self) -> int:
        return sum(unit.rows for unit in self._units) * SIGNAL_BYTES

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(read_unit, self._store, unit),
                BlockMetadata(
                    num_rows=unit.rows,
                    size_bytes=unit.rows * SIGNAL_BYTES,
                    input_files=(unit.shard.name,),
                    exec_stats=None,
                ),
            )
            for unit in self._units
        ]


def _computed(plan: EmbedPlan, waiting: Sequence[int], use_gpu: bool) -> Iterator[tuple[int, tuple[VectorFile, ...]]]:
    """The waiting shards, each with its files once they are written."""
    shards = plan.corpus.manifest.shards
    gathered: dict[int, dict[int, dict[str, Any]]] = {}
    writing: list[tuple[int, Future[tuple[VectorFile, ...]]]] = []
    with ThreadPoolExecutor(2, thread_name_prefix="beatray-write") as pool:
        units = [_Unit(number, shards[number], g) for number in waiting for g in range(len(shards[number].row_groups))]
        for row in _rows(plan, units, use_gpu):
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
    if gathered:
        missing = ", ".join(shards[number].name for number in gathered)
        raise CorpusError(f"Ray Data delivered only a part of the row groups of {missing}")


def _write(plan: EmbedPlan, shard: Shard, groups: dict[int, dict[str, Any]]) -> tuple[VectorFile, ...]:
    """The files of one shard, its row groups in order, and the note that they are done."""
    parts = []
    for level in plan.levels:
        table = pa.concat_tables([unpacked(groups[number][level]) for number in sorted(groups)])
        parts.append(write_part(plan.out, level, shard.name, shard.sha256, table))
    write_note(plan.out, plan.key, shard.name, parts)
    return tuple(parts)


def _rows(plan: EmbedPlan, units: Sequence[_Unit], use_gpu: bool) -> Iterator[dict[str, Any]]:
    """What the workers return for the units, in order, through Ray Data."""
    s = plan.settings
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and its settings are no news to a user
    for first in range(0, len(units), CHUNK_GROUPS):
        chunk = units[first : first + CHUNK_GROUPS]
        data = ray.data.read_datasource(
            _RowGroups(plan.corpus.store, chunk),
            override_num_blocks=len(chunk),
            num_cpus=s.cpus_per_reader,
            concurrency=min(s.readers, len(chunk)),
        ).map_batches(
            Embedder,
            fn_constructor_kwargs={"work": work_of(plan, use_gpu)},
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            num_cpus=s.cpus_per_worker,
            num_gpus=1 if use_gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=s.workers, max_tasks_in_flight_per_actor=WANTED_PER_ACTOR),
        )
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        try:
            for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from table.to_pylist()
        except ray.exceptions.RayError as error:
            raise _cause(error) from error


def _cause(error: BaseException) -> BaseException:
    """The error of the corpus, the store or the encoder inside Ray's wrapping; otherwise the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        for candidate in (seen, inner):
            for kind in (CorpusError, StoreError, CheckpointError):
                if isinstance(candidate, kind):
                    return kind(str(candidate))
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return error
