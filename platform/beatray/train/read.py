"""Reads row groups with Ray Data: decoded, in the order asked for, a fault of a shard beside the rows.

One read task takes a few row groups, so that what Ray Data costs for each task and block is paid seldom; with views on
workers it makes them as well. A row group that is not what the manifest says arrives without rows and with the message:
whether that stops a run is for the stream to decide. Contract: what arrives is what was asked for, once, in that order;
closing the generator ends the execution.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from beatray.ray_internals import blocks_of, rest_while_ahead
from beatray.train.blocks import Packed, pack, unpack
from beatray.train.order import Unit
from beatray.train.stream_settings import RowGroup
from beatray.train.units import ReadSettings, read_unit, row_bytes

Work = tuple[Unit, RowGroup]
"""A row group, and as which unit of the plan it is read."""


def _read_task(settings: ReadSettings, work: Sequence[Work]) -> Iterator[pa.Table]:
    """It is given its own row groups only: the whole list of a large corpus would travel with every task."""
    for unit, group in work:
        yield pack(read_unit(settings, unit, group))


class _RowGroups(Datasource):  # type: ignore[misc]  # ray ships no types
    """A Ray Data source with the given read tasks, in order."""

    def __init__(self, settings: ReadSettings, tasks: Sequence[Sequence[Work]]) -> None:
        super().__init__()
        self._settings, self._tasks = settings, tasks
        self._row_bytes = row_bytes(settings)

    def bytes_of(self, work: Sequence[Work]) -> int:
        """Of a task's output."""
        return sum(len(group.rows) for _, group in work) * self._row_bytes

    def estimate_inmemory_data_size(self) -> int:
        return sum(self.bytes_of(work) for work in self._tasks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        made = []
        for work in self._tasks:
            names = tuple(group.shard.name for _, group in work)
            about = BlockMetadata(
                num_rows=len(work), size_bytes=self.bytes_of(work), exec_stats=None, input_files=names
            )
            made.append(ReadTask(functools.partial(_read_task, self._settings, work), about))
        return made


def _tasks(work: Sequence[Work], bytes_of_row: int, limit: int) -> list[list[Work]]:
    """The work in order, as many row groups together as stay within `limit` bytes."""
    tasks: list[list[Work]] = []
    size = limit
    for unit, group in work:
        more = len(group.rows) * bytes_of_row
        if size + more > limit:
            tasks.append([])
            size = 0
        tasks[-1].append((unit, group))
        size += more
    return tasks


def read_units(
    settings: ReadSettings, units: Sequence[Unit], groups: Sequence[RowGroup]
) -> Generator[Packed, None, None]:
    """One execution of Ray Data: the units, in order. What is yielded lies in shared memory: copy it and let it go."""
    tasks = _tasks([(unit, groups[unit.group]) for unit in units], row_bytes(settings), settings.task_mb * 2**20)
    if not tasks:
        return
    source = _RowGroups(settings, tasks)
    biggest = max(map(source.bytes_of, tasks))
    data = ray.data.read_datasource(
        source,
        override_num_blocks=len(tasks),
        num_cpus=settings.cpus_per_reader,
        concurrency=settings.readers,
    )
    context = data.context  # a copy of this execution's own
    room = (settings.readers + settings.tasks_ahead) * biggest
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=room)
    context.target_max_block_size = biggest  # one block a task, and Ray Data knows beforehand how big
    rest_while_ahead(context)
    context.memory_usage_poll_interval_s = None  # it takes a thread in every task
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for block in blocks_of(data):
        yield from unpack(block)
        del block  # what is bound to a name stays in the object store while the next one is awaited
