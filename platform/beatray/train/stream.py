"""Feeds one rank: exactly ordered batches from the corpus, read ahead by Ray Data.

Each rank opens its own Ray Dataset per chunk of steps, with one read task per row group, in the order of its plan
(`order.py`); rows are gathered into batches here. The next chunk is opened in a thread while the present one drains,
so the start-up of an execution is paid once. Contract: the batches are those of the plan, to the row; a row group
that does not match the manifest raises CorpusError with the shard's name; nothing is skipped.
"""

from __future__ import annotations

import functools
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

from beatray.corpus.manifest import CorpusError, Shard
from beatray.corpus.reader import read_row_group
from beatray.corpus.schema import SCHEMA
from beatray.corpus.store import Store
from beatray.train.blocks import Arrays, corpus_columns, decode, pack, unpack
from beatray.train.order import OrderSettings, Part, Plan, Step, Unit

BYTES_PER_ROW = 125_000
"""A decoded row: the signal and, for most objectives, some kilobytes of beats."""

MakeViews = Callable[[Arrays, int], Arrays]
"""(arrays, epoch) -> arrays: views made on a Ray Data worker instead of in the rank."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of the corpus and the rows of it that may be used."""

    shard: Shard
    group: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Where the rows come from and how they are read."""

    store: Store
    groups: tuple[RowGroup, ...]
    order: OrderSettings
    arrays: tuple[str, ...]
    clusters: dict[str, Any] | None = None
    readers: int = 2
    cpus_per_reader: float = 0.25
    chunk_steps: int = 1024
    prefetch: int = 4
    open_ahead: int = 8  # units left in a chunk when the next one is opened
    on_bad_shard: str = "stop"
    cache_mb: int = 1024  # a corpus that fits is read once and kept decoded by every rank

    @property
    def sizes(self) -> list[int]:
        """Usable rows of each row group."""
        return [len(group.rows) for group in self.groups]


@dataclass(frozen=True, slots=True)
class Batch:
    """A rank's share of one global step."""

    epoch: int
    step: int
    parts: tuple[Part, ...]
    arrays: Arrays
    dropped: tuple[int, ...] = (0, 0)
    faults: tuple[str, ...] = ()

    @property
    def global_rows(self) -> int:
        """Rows of the step over all ranks."""
        return sum(part.global_rows for part in self.parts)


def read_unit(
    store: Store, group: RowGroup, wanted: tuple[str, ...], clusters: dict[str, Any] | None, unit: Unit
) -> list[pa.Table]:
    """The read task: one row group, its usable rows, decoded and packed as one block.

    It is given its own row group only: the whole list of a large corpus would travel with every task.
    """
    table = read_row_group(store, group.shard, group.group, corpus_columns(wanted))
    if len(group.rows) != len(table):
        table = table.take(pa.array(group.rows))
    arrays = decode(table.combine_chunks(), wanted, clusters)
    arrays["unit"] = np.full(len(table), unit.number, np.int64)
    arrays["epoch"] = np.full(len(table), unit.epoch, np.int64)
    return [pack(arrays)]


class _RowGroups(Datasource):  # type: ignore[misc]  # ray ships no types
    """A Ray Data source with one read task per unit, in order."""

    def __init__(self, settings: StreamSettings, units: Sequence[Unit]) -> None:
        super().__init__()
        self._settings, self._units = settings, units

    def estimate_inmemory_data_size(self) -> int:
        return sum(self._bytes(unit) for unit in self._units)

    def _bytes(self, unit: Unit) -> int:
        return len(self._settings.groups[unit.group].rows) * BYTES_PER_ROW

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        s = self._settings
        tasks = []
        for unit in self._units:
            group = s.groups[unit.group]
            about = BlockMetadata(
                num_rows=len(group.rows), size_bytes=self._bytes(unit), input_files=(group.shard.name,), exec_stats=None
            )
            read = functools.partial(read_unit, s.store, group, s.arrays, s.clusters, unit)
            tasks.append(ReadTask(read, about))
        return tasks


def _with_views(table: pa.Table, make_views: MakeViews) -> pa.Table:
    arrays = unpack(table)
    epoch = arrays.pop("epoch")
    views = make_views(arrays, int(epoch[0]) if len(epoch) else 0)
    return pack({**views, "unit": arrays["unit"], "epoch": epoch, "record_key": arrays["record_key"]})


def _blocks(settings: StreamSettings, units: Sequence[Unit], make_views: MakeViews | None) -> Iterator[Arrays]:
    """One execution of Ray Data: the units' arrays, in order."""
    data = ray.data.read_datasource(
        _RowGroups(settings, units),
        override_num_blocks=len(units),
        num_cpus=settings.cpus_per_reader,
        concurrency=settings.readers,
    )
    if make_views is not None:
        data = data.map_batches(
            functools.partial(_with_views, make_views=make_views),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=settings.cpus_per_reader,
            concurrency=settings.readers,
        )
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    try:
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=settings.prefetch):
            yield unpack(table)
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> BaseException:
    """The CorpusError inside Ray's wrapping, so that the run names the shard; otherwise the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        for candidate in (seen, cause):
            if isinstance(candidate, CorpusError):
                return CorpusError(str(candidate))
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return error


@dataclass
class _Chunk:
    """Steps being fed by one execution, already started: `first` is its first block, `reads` the units it reads."""

    steps: list[Step]
    units: list[Unit]
    reads: list[Unit]
    blocks: Iterator[Arrays]
    first: Arrays | None = None


class _Held:
    """Decoded units whose rows are not used up yet; with `keep`, row groups once read serve all later epochs."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._arrays: dict[int, Arrays] = {}
        self._left: dict[int, int] = {}
        self._kept: dict[int, Arrays] = {}
        self._asked_for: set[int] = set()

    def to_read(self, units: Sequence[Unit]) -> list[Unit]:
        """The units that must be read, in order; the others will be here by the time they are needed."""
        if not self.keep:
            return list(units)
        fresh = []
        for unit in units:
            if unit.group not in self._asked_for:
                self._asked_for.add(unit.group)
                fresh.append(unit)
        return fresh

    def has(self, unit: Unit) -> bool:
        """True if the unit's rows are at hand."""
        if unit.number not in self._arrays and unit.group in self._kept:
            self._arrays[unit.number], self._left[unit.number] = self._kept[unit.group], unit.rows_used
        return unit.number in self._arrays

    def add(self, unit: Unit, arrays: Arrays) -> None:
        """Take in what was read for a unit."""
        if len(arrays["unit"]) and int(arrays["unit"][0]) != unit.number:
            raise CorpusError(f"read unit {int(arrays['unit'][0])} arrived in place of {unit.number}")
        self._arrays[unit.number], self._left[unit.number] = arrays, unit.rows_used
        if self.keep:
            self._kept[unit.group] = arrays

    def take(self, step: Step) -> Arrays:
        """The rows of a step, in its order; units with no further use are let go."""
        out: Arrays = {}
        for number in np.unique(step.unit).tolist():
            here = step.unit == number
            for name, values in self._arrays[number].items():
                if name not in ("unit", "epoch"):
                    out.setdefault(name, np.empty((len(step.unit), *values.shape[1:]), values.dtype))
                    out[name][here] = values[step.row[here]]
            self._left[number] -= int(here.sum())
            if self._left[number] == 0:
                del self._arrays[number], self._left[number]
        return out


def _no_rows(settings: StreamSettings, make_views: MakeViews | None) -> Arrays:
    """What a rank without a share of a short last batch gets: the same arrays with no rows."""
    arrays = decode(SCHEMA.empty_table(), settings.arrays, settings.clusters)
    if make_views is None:
        return arrays
    return {**make_views(arrays, 0), "record_key": arrays["record_key"]}


def batches(
    settings: StreamSettings,
    rank: int,
    world: int,
    start: tuple[int, int],
    n_steps: int,
    make_views: MakeViews | None = None,
) -> Iterator[Batch]:
    """`n_steps` batches of one rank from (epoch, step) `start` on, over as many epochs as that takes."""
    plan = Plan(settings.sizes, settings.order, rank, world, start)
    fits = sum(settings.sizes) * BYTES_PER_ROW <= settings.cache_mb * 2**20
    held = _Held(keep=fits and make_views is None)  # views differ from epoch to epoch
    empty = _no_rows(settings, make_views)

    def open_chunk(count: int) -> _Chunk:
        steps, units = plan.chunk(count)
        reads = held.to_read(units)
        chunk = _Chunk(steps, units, reads, _blocks(settings, reads, make_views) if reads else iter(()))
        chunk.first = next(chunk.blocks, None)
        return chunk

    unit_of: dict[int, Unit] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="beatray-open-chunk") as opener:
        planned = min(settings.chunk_steps, n_steps)
        coming: Future[_Chunk] | None = opener.submit(open_chunk, planned)
        while coming is not None:
            chunk, coming = coming.result(), None
            unit_of |= {unit.number: unit for unit in chunk.units}
            more = min(settings.chunk_steps, n_steps - planned)
            arrived = 0
            for step in chunk.steps:
                for number in np.unique(step.unit).tolist():
                    while not held.has(unit_of[number]):
                        block = chunk.first if chunk.first is not None else next(chunk.blocks, None)
                        chunk.first = None
                        if block is None:
                            raise CorpusError("Ray Data delivered fewer row groups than were asked for")
                        held.add(chunk.reads[arrived], block)
                        arrived += 1
                if more and coming is None and len(chunk.reads) - arrived <= settings.open_ahead:
                    coming = opener.submit(open_chunk, more)
                arrays = held.take(step) if len(step.unit) else dict(empty)
                yield Batch(step.epoch, step.step, step.parts, arrays, (0,) * len(step.parts))
            # Read to the end: an iterator left half read keeps a thread and its prefetched blocks alive.
            if next(chunk.blocks, None) is not None:
                raise CorpusError("Ray Data delivered more row groups than were asked for")
            if more and coming is None:
                coming = opener.submit(open_chunk, more)
            planned += more if coming is not None else 0
