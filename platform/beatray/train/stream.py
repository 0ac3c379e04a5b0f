"""Feeds one rank: exactly ordered batches from the corpus, read ahead by Ray Data.

Each rank opens its own Ray Data execution per chunk of steps (`read.py`), in the order of its plan (`order.py`); rows
wait in memory (`row_buffer.py`) until their batch is due; a thread puts batches together a little ahead. The next
chunk is opened while the present one drains, so the start-up of an execution is paid once. Contract: the batches are
those of the plan, to the row. A row group that does not match the manifest raises CorpusError with the shard's name
when its rows are due; or, if the user chose so, its rows are left out and counted. Closing the generator ends all of
it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from beatray.errors import CorpusError
from beatray.train.blocks import Arrays, Packed
from beatray.train.order import MicroBatch, Step, StepSequence, Unit
from beatray.train.prefetcher import Prefetcher
from beatray.train.read import read_units
from beatray.train.stream_settings import StreamSettings
from beatray.train.units import MakeViews, ReadSettings, held_rows, no_rows

BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """A rank's share of one global step.

    `parts` is the plan; the arrays hold the rows that exist, in its order. They are all of them unless shards may be
    skipped: then `dropped` is how many of the rank's rows each part lacks, and `faults` why, each message once.
    """

    epoch: int
    step: int
    parts: tuple[MicroBatch, ...]
    arrays: Arrays
    dropped: tuple[int, ...]
    faults: tuple[str, ...]

    @property
    def global_rows(self) -> int:
        """Rows of the step over all ranks, as planned."""
        return sum(part.global_rows for part in self.parts)


@dataclass
class _Chunk:
    """Steps fed by one execution, which runs already; `units` are those first needed in them."""

    steps: list[Step]
    units: dict[int, Unit]
    reads: Prefetcher[Packed]
    left: int  # units still to come


def batches(
    settings: StreamSettings,
    rank: int,
    world: int,
    start: tuple[int, int],
    n_steps: int,
    make_views: MakeViews | None = None,
) -> Generator[Batch, None, None]:
    """`n_steps` batches of one rank from (epoch, step) `start` on, over as many epochs as that takes."""
    plan = StepSequence(settings.sizes, settings.order, rank, world, start)
    feed = Prefetcher(_put_together(settings, plan, n_steps, make_views), BATCHES_AHEAD, "batches")
    try:
        yield from feed
    finally:
        feed.close()


def _put_together(
    settings: StreamSettings, plan: StepSequence, n_steps: int, make_views: MakeViews | None
) -> Generator[Batch, None, None]:
    reading = ReadSettings(
        settings.store,
        settings.arrays,
        settings.clusters,
        make_views,
        settings.readers,
        settings.cpus_per_reader,
        targets=settings.targets,
    )
    sizes, held = settings.sizes, held_rows(settings, reading)
    empty, reported = no_rows(reading), set[str]()

    def open_chunk(count: int) -> _Chunk:
        steps, units = plan.chunk(count)
        reads = held.to_read(units)
        source = Prefetcher(read_units(reading, reads, settings.groups), 1, "read")
        return _Chunk(steps, {unit.number: unit for unit in units}, source, len(reads))

    def arrive(chunk: _Chunk, last: Unit) -> Iterator[str]:
        """Take in what was read up to and including `last`; yields the faults."""
        while last.number not in held and not held.reuse(last):
            packed = next(chunk.reads, None)
            if packed is None:
                raise CorpusError("Ray Data delivered fewer row groups than were asked for")
            unit = chunk.units.get(packed.number)
            if unit is None or unit.number in held:
                raise CorpusError(f"read unit {packed.number} arrived when it was not asked for")
            if packed.fault and settings.on_bad_shard == "stop":
                raise CorpusError(packed.fault)
            held.add(unit, packed, sizes[unit.group])
            chunk.left -= 1
            fault = packed.fault
            del packed  # it keeps a block in the object store
            if fault and fault not in reported:
                reported.add(fault)
                yield fault

    chunk, coming = open_chunk(min(settings.chunk_steps, n_steps)), None
    planned = len(chunk.steps)
    try:
        while True:
            for step in chunk.steps:
                missing = [number for number in dict.fromkeys(step.unit.tolist()) if number not in held]
                faults = tuple(fault for number in missing for fault in arrive(chunk, chunk.units[number]))
                if coming is None and planned < n_steps and chunk.left <= settings.open_ahead:
                    coming = open_chunk(min(settings.chunk_steps, n_steps - planned))
                    planned += len(coming.steps)
                arrays, there = held.take(step)
                ends = np.cumsum([part.rows for part in step.parts])[:-1]
                dropped = tuple(int((~part).sum()) for part in np.split(there, ends))
                yield Batch(step.epoch, step.step, step.parts, arrays if arrays else dict(empty), dropped, faults)
            if next(chunk.reads, None) is not None:
                raise CorpusError("Ray Data delivered more row groups than were asked for")
            chunk.reads.close()
            if coming is None:
                return
            chunk, coming = coming, None
    finally:
        chunk.reads.close()
        if coming is not None:
            coming.reads.close()
