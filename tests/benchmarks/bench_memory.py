"""Memory over epochs of streaming: of each rank, of the largest reader and of the object store, at regular marks.

Run: PYTHONPATH=platform python tests/benchmarks/bench_memory.py [--records N] [--epochs N] [--workers N]

The corpus is larger than any cache (`cache_mb=0`), nothing is trained. Each rank is a process of its own, as under Ray
Train, and takes its share of every global batch. Shown is private memory (without shared object store pages); "store"
is what lies in the object store at the mark, "spilled" what it had to put on disk since the start. Flat means: from
the end of the first epoch on, the peak of later epochs is that of the first; the last lines compare them. The full
count, 100,000 records over 3 epochs, takes about 6 GB of disk and some minutes: --records 100000.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from processes import private_mib
from ray._private.internal_api import memory_summary

from beatray.bench.corpus import write_large_corpus
from beatray.bench.processes import family
from beatray.ray_session import RaySettings, session
from beatray.train.composed import pretrain_settings
from beatray.train.order import steps_per_epoch
from beatray.train.prepare import prepare_run
from beatray.train.run_spec import RunSpec
from beatray.train.stream import Batch, batches

MARKS_PER_EPOCH = 5


@ray.remote(num_cpus=0.5)
class Rank:
    """Takes its batches and lets them go."""

    def __init__(self, run_spec: RunSpec, rank: int, world: int, steps: int) -> None:
        self.feed: Iterator[Batch] = batches(run_spec.stream, rank, world, (0, 0), steps)

    def advance(self, steps: int) -> tuple[int, float]:
        """Rows taken in the next steps, and this process's private memory in MiB."""
        rows = sum(len(next(self.feed).arrays["record_key"]) for _ in range(steps))
        return rows, private_mib(os.getpid())


def object_store() -> tuple[float, float]:
    """MiB in the object store now, and MiB spilled to disk so far."""
    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    used, spilled = re.search(r"Plasma memory usage (\d+) MiB", summary), re.search(r"Spilled (\d+) MiB", summary)
    return float(used[1]) if used else 0.0, float(spilled[1]) if spilled else 0.0


def readers_mib() -> float:
    """Private memory of the largest process that runs Ray Data's read tasks."""
    sizes = [0.0]
    for pid, title in family().items():
        if title.startswith(("ray::Read", "ray::IDLE")):
            try:
                sizes.append(private_mib(pid))
            except OSError:
                continue  # it has ended
    return max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--corpus", help="a corpus written earlier by large_corpus")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, session(RaySettings(cpus=4, object_store_mb=512)):
        corpus = asked.corpus or write_large_corpus(Path(folder), asked.records)
        overrides = [f"corpus={corpus}", "encoder=tiny", f"train.batch_size={asked.batch}", "train.cache_mb=0"]
        run_spec = prepare_run(pretrain_settings(overrides))
        per_epoch = steps_per_epoch(run_spec.rows, asked.batch)
        world = asked.workers
        ranks = [Rank.remote(run_spec, rank, world, asked.epochs * per_epoch) for rank in range(world)]
        print(f"{run_spec.rows} records, batch {asked.batch}, {world} ranks, MiB")
        print(
            "  epoch   done "
            + "".join(f"   rank {rank}" for rank in range(world))
            + "   reader   store  spilled  rec/s"
        )
        peaks: list[list[float]] = []
        for epoch in range(asked.epochs):
            peaks.append([0.0] * (world + 2))
            cuts = [per_epoch * mark // MARKS_PER_EPOCH for mark in range(MARKS_PER_EPOCH + 1)]
            for first, last in itertools.pairwise(cuts):
                began = time.perf_counter()
                taken = [rank.advance.remote(last - first) for rank in ranks]
                waiting = taken
                while waiting:  # looked at all the while, not only at the marks
                    _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
                    seen = [readers_mib(), object_store()[0]]
                    peaks[-1][world:] = [max(pair) for pair in zip(peaks[-1][world:], seen, strict=True)]
                rows, sizes = zip(*ray.get(taken), strict=True)
                peaks[-1][:world] = [max(pair) for pair in zip(peaks[-1][:world], sizes, strict=True)]
                used, spilled = object_store()
                print(
                    f"  {epoch:5d} {last / per_epoch:6.0%} "
                    + "".join(f"{size:9.0f}" for size in sizes)
                    + f"{readers_mib():9.0f}{used:8.0f}{spilled:9.0f}{sum(rows) / (time.perf_counter() - began):7.0f}",
                    flush=True,
                )
        names = [f"rank {rank}" for rank in range(world)] + ["reader", "store"]
        for number, name in enumerate(names):
            of_epochs = [peak[number] for peak in peaks]
            growth = of_epochs[-1] / of_epochs[0] - 1 if of_epochs[0] else 0.0
            text = ", ".join(f"{peak:.0f}" for peak in of_epochs)
            print(f"  peak of {name}: {text} MiB in epochs 1 to {asked.epochs} ({growth:+.0%})")


if __name__ == "__main__":
    main()
