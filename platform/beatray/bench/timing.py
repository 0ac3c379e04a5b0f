"""What a number of steps took: rates, the wait for data, memory. And the steps of a learner that are timed so.

The steps are those of train/loop.py without its journal, checkpoints and other ranks: batches come from a feed, their
views are made a step ahead in a thread where steps overlap, a step is handed over and the one before is read. Seconds
are those of the clock, from one step's end to the next, so that nothing is left out. Steps that warm up (caches, a
compiler, a pool of memory) are not counted.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from beatray.bench.feed import Fed
from beatray.bench.processes import cpu_seconds
from beatray.train.blocks import Arrays
from beatray.train.step import Learner, Outcome, ahead
from beatray.train.timing import peak_mib

WARM_UP = 2
LEAST = 2
"""Steps that are counted, however long they take."""


@dataclass(slots=True)
class Timing:
    """Steps that were counted, in any number of rounds."""

    rows: int = 0
    step_s: list[float] = field(default_factory=list)
    waited_s: float = 0.0
    cpu_s: float = 0.0  # of all processes, readers and workers included
    memory_mib: float = 0.0
    refused: int = 0  # steps whose loss or gradient was not finite
    rounds: list[float] = field(default_factory=list)  # records/s of each

    @property
    def seconds(self) -> float:
        """Of all counted steps."""
        return sum(self.step_s)

    @property
    def records_per_s(self) -> float:
        """Over all of them."""
        return self.rows / self.seconds

    @property
    def records_per_cpu_s(self) -> float:
        """Per second that some core worked for it: what other jobs do on the machine hardly moves it."""
        return self.rows / self.cpu_s if self.cpu_s else 0.0

    @property
    def step_ms(self) -> float:
        """Median of a step."""
        return 1e3 * statistics.median(self.step_s)

    @property
    def spread(self) -> float:
        """From the tenth to the ninetieth percentile of a step, as a part of its median."""
        if len(self.step_s) < 2:
            return 0.0
        tenths = statistics.quantiles(self.step_s, n=10, method="inclusive")
        return (tenths[-1] - tenths[0]) / statistics.median(self.step_s)

    @property
    def data_wait(self) -> float:
        """The part of the time in which the loop waited for a batch."""
        return self.waited_s / self.seconds

    def count(self, rows: int, seconds: float, waited_s: float) -> None:
        """One step more."""
        self.rows += rows
        self.step_s.append(seconds)
        self.waited_s += waited_s

    def add(self, other: Timing) -> None:
        """Take in another round."""
        self.rows += other.rows
        self.step_s += other.step_s
        self.waited_s += other.waited_s
        self.cpu_s += other.cpu_s
        self.memory_mib = max(self.memory_mib, other.memory_mib)
        self.refused += other.refused
        self.rounds.append(other.records_per_s)


def time_steps(
    learner: Learner, feed: Generator[Fed], seconds: float, last: int, warm_up: int = WARM_UP, least: int = LEAST
) -> Timing:
    """Steps of the learner for so many seconds, opening the feed and warming up included; at least so many of them.

    `last` is the last step of the run that it has a schedule for.
    """
    timing, under_way = Timing(), None
    used = before = 0.0
    ends = time.perf_counter() + seconds
    with contextlib.closing(ahead(learner, feed, _cut)) as steps, peak_memory(learner) as memory:
        for number in itertools.count():
            if number == warm_up:
                used, before = cpu_seconds(), time.perf_counter()
            asked = time.perf_counter()
            fed, ready = next(steps)
            waited = time.perf_counter() - asked
            outcome: Outcome | None = learner.launch(min(number, last), fed.epoch, ready, fed.parts)
            if learner.overlaps:
                under_way, outcome = outcome, under_way
            if outcome is not None:
                timing.refused += outcome.read()[0] is None
            now = time.perf_counter()
            if number >= warm_up:
                timing.count(fed.rows, now - before, waited)
                before = now
            if now >= ends and len(timing.step_s) >= least:
                timing.cpu_s = cpu_seconds() - used
                break
        if under_way is not None:
            timing.refused += under_way.read()[0] is None
    timing.memory_mib = memory[0]
    return timing


def time_feed(feed: Generator[Fed], seconds: float) -> Timing:
    """Whole epochs after the first, as fast as they come, for so many seconds; one at least.

    Before its first batch a feed reads a shuffle window, which later batches then get for nothing: from one epoch's end
    to the next as much is read as is handed over. `step_s` holds the seconds of an epoch.
    """
    timing, ends = Timing(), time.perf_counter() + seconds
    epoch, rows, began, used = 0, 0, 0.0, 0.0
    with contextlib.closing(feed):
        for fed in feed:
            if fed.epoch != epoch:
                now = time.perf_counter()
                if epoch > 0:
                    timing.rows += rows
                    timing.step_s.append(now - began)
                    if now >= ends:
                        break
                else:
                    used, now = cpu_seconds(), time.perf_counter()
                epoch, rows, began = fed.epoch, 0, now
            rows += fed.rows
        timing.cpu_s = cpu_seconds() - used
    return timing


@contextlib.contextmanager
def peak_memory(learner: Learner | torch.device) -> Iterator[list[float]]:
    """MiB at most in the block, filled in at its end: of the GPU's allocator, or of this process."""
    device = learner if isinstance(learner, torch.device) else next(learner.objective.parameters()).device
    found = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # some systems do not let a process forget its peak
            Path("/proc/self/clear_refs").write_text("5")
    try:
        yield found
    finally:
        found[0] = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_mib()


def _cut(fed: Fed) -> tuple[Arrays, int, list[int]]:
    return fed.arrays, fed.epoch, [part.rows for part in fed.parts]
