"""What one step of a run costs: seconds, memory and parameters, measured in a process of its own.

A step is the one that trains: views, forward, backward, optimizer and what follows it, of a whole global batch of the
corpus' own recordings, on one core. Each is of another epoch, for what is drawn once an epoch can change what a step
costs (the parts of TS2Vec: fourfold), and their mean counts. Seconds are CPU time where the step runs on the CPU, so
that a machine shared with others gives the same as an idle one; on a GPU they are wall time. Memory is the most that
the process ever held (resident), of which `base_mib` was there before the model: the interpreter, the libraries and the
recordings.

Contract: nothing is written; the weights and draws are those the run would begin with.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beatray.corpus.reader import read_row_group
from beatray.errors import TrainingError
from beatray.train.blocks import Arrays, corpus_columns, decode
from beatray.train.order import MicroBatch, share, steps_per_epoch
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec
from beatray.train.step import Learner

WARM_UP = 1
STEPS = 8
LONGEST_S = 20.0
"""Of the steps that are measured: a step of minutes is not waited for eight times."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step of a run: mean seconds by `clock` (cpu, wall), memory in MiB, and what is trained."""

    step_s: float
    clock: str
    steps: int  # that were measured
    peak_mib: float
    base_mib: float
    encoder_parameters: int
    parameters: int  # that the optimizer trains, heads included
    batch_size: int

    @property
    def step_mib(self) -> float:
        """What the step takes beyond the process that runs it."""
        return max(self.peak_mib - self.base_mib, 0.0)


def processor() -> str:
    """The processor of this machine, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "an unknown processor")


def peak_mib() -> float:
    """The most this process ever held."""
    try:
        fields = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()
        return int(fields[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def first_rows(run_spec: RunSpec, count: int) -> Arrays:
    """The arrays of the first `count` recordings of the run, or of all there are."""
    stream, parts, left = run_spec.stream, [], count
    for group in stream.groups:
        if left <= 0:
            break
        table = read_row_group(stream.store, group.shard, group.group, corpus_columns(stream.arrays))
        rows = table.take(list(group.rows[:left])).combine_chunks()
        parts.append(decode(rows, stream.arrays, stream.clusters, stream.targets))
        left -= len(parts[-1]["record_key"])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Steps:
    """Steps of a run in this process, each the first of its epoch; `cost` of those since the warm-up."""

    def __init__(self, run_spec: RunSpec) -> None:
        settings = run_spec.settings
        self._run_spec = replace(
            run_spec, settings=replace(settings, train=replace(settings.train, augment_on="device"))
        )
        torch.set_num_threads(settings.train.threads_per_worker)
        gpu = settings.train.device != "cpu" and torch.cuda.is_available()
        self._clock = "wall" if gpu else "cpu"
        self._arrays = first_rows(run_spec, settings.train.batch_size)
        rows = len(self._arrays["record_key"])
        cuts = share(rows, rows, 0, 0, 1, settings.train.gradient_accumulation_steps)
        self._parts = tuple(MicroBatch(len(cut), total) for cut, total in cuts)
        self._base_mib = peak_mib()
        self._learner = Learner(self._run_spec, Ranks(device=torch.device("cuda" if gpu else "cpu")))
        self._taken: list[float] = []

    def step(self, *, counts: bool = True) -> float:
        """One step, of the first epoch that none has counted of; its seconds."""
        train = self._run_spec.settings.train
        epoch = len(self._taken) % train.epochs
        number = epoch * steps_per_epoch(self._run_spec.rows, train.batch_size)
        began = self._now()
        self._learner.step(number, self._arrays, epoch, self._parts)
        seconds = self._now() - began
        if counts:
            self._taken.append(seconds)
        return seconds

    def cost(self) -> StepCost:
        """What the counted steps cost."""
        objective = self._learner.objective
        return StepCost(
            step_s=statistics.fmean(self._taken),
            clock=self._clock,
            steps=len(self._taken),
            peak_mib=round(max(peak_mib(), self._base_mib), 1),  # the system's count is a little off either way
            base_mib=round(self._base_mib, 1),
            encoder_parameters=sum(each.numel() for each in objective.exported().parameters()),
            parameters=sum(each.numel() for each in objective.parameters() if each.requires_grad),
            batch_size=len(self._arrays["record_key"]),
        )

    def _now(self) -> float:
        if self._clock == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


class Apart:
    """`Steps` in a fresh process, so that its memory is that of the one run; ask it for a step at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def step(self, *, counts: bool = True) -> float:
        """As `Steps.step`."""
        return float(self._ask("step" if counts else "warm up"))

    def cost(self) -> StepCost:
        """As `Steps.cost`."""
        found: StepCost = self._ask("cost")
        return found

    def _ask(self, request: str) -> Any:
        try:
            self._connection.send(request)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise TrainingError("the process that times a step was lost: was there too little memory?") from error
        if isinstance(answer, Exception):
            raise TrainingError(f"a step cannot be timed: {type(answer).__name__}: {answer}") from answer
        return answer


@contextmanager
def apart(run_spec: RunSpec) -> Iterator[Apart]:
    """Steps of a run in a process of its own, which ends with the block; TrainingError for what goes wrong there."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, run_spec), daemon=True)
    process.start()
    there.close()
    try:
        yield Apart(here)
    finally:
        here.close()
        process.join(timeout=10.0)
        if process.is_alive():
            process.kill()
            process.join()


def time_step(run_spec: RunSpec) -> StepCost:
    """The cost of a step: a warm-up, then the mean of a few, in a fresh process."""
    with apart(run_spec) as steps:
        for _ in range(WARM_UP):
            steps.step(counts=False)
        spent = 0.0
        for _ in range(STEPS):
            spent += steps.step()
            if spent > LONGEST_S:
                break
        return steps.cost()


def _serve(connection: Connection, run_spec: RunSpec) -> None:
    """Runs in the fresh process: do what is asked until the other end is closed."""
    steps: Steps | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            steps = steps or Steps(run_spec)
            connection.send(steps.cost() if request == "cost" else steps.step(counts=request == "step"))
        except Exception as error:
            connection.send(error)
