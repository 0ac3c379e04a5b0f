"""Weak scaling from 1 to 2 workers through the real launch: the same rows for each worker, twice the global batch.

Run: PYTHONPATH=platform python tests/benchmarks/bench_weak_scaling.py [--records N] [--repeats N] [--rows N]

Each repeat trains one epoch with one worker and one with two, each rank with one thread, from a corpus that is streamed
(`cache_mb=0`). Records per second are counted between the first step and the last, as the run's own journal shows
them; the ratio is that of the rate of two workers to twice the rate of one. Beside it the physical limit: the same step
on one batch in memory, in one process and in two at once that know nothing of each other. Two cores that share caches
and memory are no twice one core, and two ranks share them with their readers and Ray as well: the CPU time of every
kind of process is counted, in milliseconds a recording.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from processes import CpuByKind

from beatray.bench.corpus import write_large_corpus
from beatray.corpus.reader import read_row_group
from beatray.ray_session import RaySettings, session
from beatray.track.journal import read_lines
from beatray.train.blocks import corpus_columns, decode
from beatray.train.composed import pretrain_settings
from beatray.train.launch import pretrain
from beatray.train.order import MicroBatch
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks
from beatray.train.step import Learner

WARM_UP = 3


KINDS = {
    "RayTrainWorker": "ranks",
    "_read": "readers",
    "_get_datasource": "readers",
    "raylet/raylet": "raylet",
    "gcs_server": "Ray's other servers",
    "dashboard": "Ray's other servers",
    "monitor": "Ray's other servers",
    "TrainController": "controller of Ray Train",
    "ray::": "readers and other Ray workers",
    "python": "driver",
}


def rates(
    corpus: str, out: Path, name: str, workers: int, overrides: list[str]
) -> tuple[float, float, dict[str, float]]:
    """Records per second of a run after its first step, the share of that time waited for data, and the milliseconds
    of CPU time that each kind of process spent on a recording between the same two steps."""
    overrides = [f"corpus={corpus}", f"out={out}", f"run={name}", f"train.workers={workers}", *overrides]
    run_spec = prepare_run(pretrain_settings(overrides))
    journal = out / name / "metrics.jsonl"

    def stepping() -> bool:
        return 0 < (len(read_lines(journal)) if journal.exists() else 0) < run_spec.steps

    with CpuByKind(KINDS, running=stepping) as cpu:
        result = pretrain(run_spec)
    assert result.finished, f"run {name} ended after {result.steps} steps"
    lines = read_lines(journal)[1:]
    seconds = sum(line["step_s"] + line["data_wait_s"] for line in lines)
    rows = run_spec.rows - run_spec.settings.train.batch_size
    spent = {kind: 1000 * used / rows for kind, used in cpu.seconds().items()}
    return rows / seconds, sum(line["data_wait_s"] for line in lines) / seconds, spent


def steps_per_second(overrides: list[str], seconds: float) -> float:
    """The training step alone, on one batch in memory, in this process."""
    run_spec = prepare_run(pretrain_settings(overrides))
    torch.set_num_threads(1)
    learner, group = Learner(run_spec, Ranks()), run_spec.stream.groups[0]
    table = read_row_group(run_spec.stream.store, group.shard, group.group, corpus_columns(run_spec.stream.arrays))
    rows = run_spec.settings.train.batch_size
    arrays = {name: a[:rows] for name, a in decode(table, run_spec.stream.arrays, run_spec.stream.clusters).items()}
    for number in range(WARM_UP):
        learner.step(number, arrays, 0, (MicroBatch(rows, rows),))
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        learner.step(WARM_UP + steps, arrays, 0, (MicroBatch(rows, rows),))
        steps += 1
    return steps / (time.perf_counter() - began)


def physical_limit(overrides: list[str], seconds: float = 20.0) -> float:
    """How fast each of two processes steps beside the other, as a share of one alone."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        alone = pool.apply(steps_per_second, (overrides, seconds))
        both = pool.starmap(steps_per_second, [(overrides, seconds)] * 2)
        return sum(both) / (2 * alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="rows of each worker in each step")
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--corpus", help="a corpus written earlier by large_corpus")
    asked = parser.parse_args()
    common = ["train.epochs=1", "train.cache_mb=0", "train.readers_per_worker=1", "train.validate_every_epochs=0"]
    common += [f"encoder={asked.encoder}", "tracking.uri=null", "train.checkpoint_every_steps=100000"]
    with tempfile.TemporaryDirectory() as folder, session(RaySettings(cpus=4, object_store_mb=512)):
        corpus = asked.corpus or write_large_corpus(Path(folder) / "corpus", asked.records)
        found: dict[int, list[tuple[float, float, dict[str, float]]]] = {1: [], 2: []}
        for repeat in range(asked.repeats):
            for workers in found:
                overrides = [*common, f"train.batch_size={asked.rows * workers}"]
                found[workers].append(rates(corpus, Path(folder) / "runs", f"{workers}-{repeat}", workers, overrides))
        limit = physical_limit(
            [*common, f"corpus={corpus}", f"out={folder}", "run=alone", f"train.batch_size={asked.rows}"]
        )
        cores = len(os.sched_getaffinity(0))
        print(f"{asked.encoder}, {asked.rows} rows of each worker a step, {cores} cores, median of {asked.repeats}")
        for workers, runs in found.items():
            rate, waited = (statistics.median(run[column] for run in runs) for column in (0, 1))
            print(f"  {workers} worker(s) {rate:7.0f} records/s   data wait {waited:.1%}")
            print("    CPU ms a recording: " + ", ".join(f"{kind} {ms:.2f}" for kind, ms in runs[-1][2].items()))
        ratios = [two[0] / (2 * one[0]) for one, two in zip(found[1], found[2], strict=True)]
        print(f"  two processes that step side by side reach {limit:.3f} of one alone, each")
        print(
            f"  efficiency from 1 to 2 workers {statistics.median(ratios):.3f} (runs: {[round(r, 3) for r in ratios]})"
        )


if __name__ == "__main__":
    main()
