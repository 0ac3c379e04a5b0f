"""What a loop is fed with while it is measured: one batch again and again, the real stream, or direct reading.

`direct` needs no Ray: threads read, check and decode row groups (Arrow's decompression and the checksums hold no lock
of the interpreter), rows wait in the stream's own memory, a thread puts batches together. `stream` is what a run is fed
by, through Ray Data. Signals leave as int16 microvolts; millivolts are made of them with the views, on the device.
Contract: both give the batches of the plan (train/order.py), to the row.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from beatray.errors import CorpusError
from beatray.train.blocks import Arrays, Packed
from beatray.train.order import MicroBatch, Step, StepSequence, Unit
from beatray.train.prefetcher import Prefetcher
from beatray.train.run_spec import RunSpec, ViewsOnWorker
from beatray.train.units import MakeViews, ReadSettings, held_rows, read_unit

BATCHES_AHEAD = 2
UNITS_AHEAD = 2
"""Row groups under way for each reader."""

GROUPS = 4
"""Row groups over which a feed is timed, again and again."""


@dataclass(frozen=True, slots=True)
class Fed:
    """One global batch: its arrays, or its views where readers make them."""

    epoch: int
    parts: tuple[MicroBatch, ...]
    arrays: Arrays

    @property
    def rows(self) -> int:
        """Recordings of the batch."""
        return sum(part.rows for part in self.parts)


def same(fed: Fed) -> Generator[Fed]:
    """One batch in memory, without an end."""
    while True:
        yield fed


def stream(run_spec: RunSpec, n_steps: int, readers: int) -> Generator[Fed]:
    """The first `n_steps` batches of a run from its own stream, by so many processes of an open Ray session."""
    from beatray.train.stream import batches  # Ray may not be installed

    settings = replace(run_spec.stream, readers=readers)
    source = batches(settings, 0, 1, (0, 0), n_steps, _views_of(run_spec))
    with contextlib.closing(source):
        for batch in source:
            yield Fed(batch.epoch, batch.parts, batch.arrays)


def direct(run_spec: RunSpec, n_steps: int, readers: int) -> Generator[Fed]:
    """The same batches, read by so many threads of this process. CorpusError for a shard that is not what it was."""
    ahead = Prefetcher(_put_together(run_spec, n_steps, readers), BATCHES_AHEAD, "direct")
    with contextlib.closing(ahead):
        yield from ahead


def to_time(run_spec: RunSpec) -> RunSpec:
    """The run on so few row groups that epochs are short, every one of them read from disk in every epoch."""
    stream = run_spec.stream
    groups = stream.groups[:GROUPS]
    patients = stream.order.patients
    if patients is not None:
        patients = patients[: sum(len(group.rows) for group in groups)]
    order = replace(stream.order, patients=patients)
    return replace(run_spec, stream=replace(stream, groups=groups, order=order, cache_mb=0))


def _views_of(run_spec: RunSpec) -> MakeViews | None:
    return ViewsOnWorker.of(run_spec) if run_spec.settings.train.augment_on == "workers" else None


def _put_together(run_spec: RunSpec, n_steps: int, readers: int) -> Generator[Fed]:
    settings = run_spec.stream
    reading = ReadSettings(
        settings.store, settings.arrays, settings.clusters, _views_of(run_spec), targets=settings.targets
    )
    plan = StepSequence(settings.sizes, settings.order, 0, 1)
    held, planned = held_rows(settings, reading), 0
    steps: deque[Step] = deque()
    units: dict[int, Unit] = {}
    under_way: deque[tuple[Unit, Future[Packed]]] = deque()
    pool = ThreadPoolExecutor(readers, "beatray-direct")
    try:
        while steps or planned < n_steps:
            while planned < n_steps and (not steps or len(under_way) < UNITS_AHEAD * readers > len(steps)):
                fresh, first_needed = plan.chunk(1)
                planned += 1
                steps += fresh
                units |= {unit.number: unit for unit in first_needed}
                for unit in held.to_read(first_needed):
                    under_way.append((unit, pool.submit(read_unit, reading, unit, settings.groups[unit.group])))
            step = steps.popleft()
            for number in dict.fromkeys(step.unit.tolist()):
                while number not in held and not held.reuse(units[number]):
                    unit, found = under_way.popleft()
                    packed = found.result()
                    if packed.fault:
                        raise CorpusError(packed.fault)
                    held.add(unit, packed, settings.sizes[unit.group])
                units.pop(number, None)
            yield Fed(step.epoch, step.parts, held.take(step)[0])
    finally:
        pool.shutdown(cancel_futures=True)
