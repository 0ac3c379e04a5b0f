"""Training from the stream, beside a bare loop over memory and torch's DataLoader: one process, interleaved, medians.

Run: PYTHONPATH=platform python tests/benchmarks/bench_stream.py [--records N] [--repeats N] [--encoder NAME]

All three train the same model from the same weights on the same rows in the same order, with the same views made in the
training process; the losses are compared at the end. The bare loop and the DataLoader (per-sample dataset, one worker
for each training thread) have the decoded corpus in memory; the stream reads the compressed corpus from disk every
epoch (`cache_mb=0`). Decoding is work that the other two never do: its CPU time, measured alone with pyarrow, is
divided by the cores and taken from the stream's time for the "less decoding" columns. Each repeat opens a new stream
in a Ray that has run before, apart from the first, which is shown by itself because it starts Ray Data's workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from beatray.augment.draws import Draws
from beatray.bench.corpus import write_large_corpus
from beatray.corpus.reader import read_row_group
from beatray.objectives.objective import Progress
from beatray.ray_session import RaySettings, session
from beatray.train.blocks import Arrays, corpus_columns, decode
from beatray.train.composed import pretrain_settings
from beatray.train.order import epoch_order, steps_per_epoch
from beatray.train.prepare import prepare_run
from beatray.train.run_spec import RunSpec, build_model, to_tensors
from beatray.train.stream import batches

Feed = Iterator[Arrays]


@dataclass(frozen=True)
class Timing:
    """Seconds of one epoch: until the first batch, all, and of the wait for each batch after the first."""

    first: float
    total: float
    waits: tuple[float, ...]
    loss: float

    @property
    def after_first(self) -> float:
        return self.total - self.first


class Records(Dataset[Arrays]):
    """One record at a time, as a DataLoader wants them."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["record_key"])

    def __getitem__(self, row: int) -> Arrays:
        return {name: values[row] for name, values in self.arrays.items()}


def train_epoch(run_spec: RunSpec, feed: Callable[[], Feed]) -> Timing:
    """One epoch of plain training; the clock starts before the feed is opened."""
    objective = build_model(run_spec.settings.objective, run_spec.settings.encoder, 0, run_spec.statistics)
    optimiser = torch.optim.AdamW(objective.parameters(), 1e-3)
    waits, loss = [], torch.zeros(())
    began = time.perf_counter()
    source = feed()
    while True:
        asked = time.perf_counter()
        arrays = next(source, None)
        waits.append(time.perf_counter() - asked)
        if arrays is None:
            break
        if len(waits) == 1:
            first = time.perf_counter() - began
        batch = to_tensors(arrays, torch.device("cpu"))
        loss = objective(objective.views(batch, Draws.of(batch, 0, 0)), Progress()).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        objective.after_step(Progress())
    return Timing(first, time.perf_counter() - began, tuple(waits[1:-1]), float(loss.detach()))


def decode_all(run_spec: RunSpec) -> tuple[Arrays, float]:
    """The whole corpus in memory, by plain pyarrow, and the CPU seconds that took."""
    arrays = run_spec.stream.arrays
    began = time.process_time()
    parts = []
    for group in run_spec.stream.groups:
        table = read_row_group(run_spec.stream.store, group.shard, group.group, corpus_columns(arrays))
        parts.append(decode(table, arrays, run_spec.stream.clusters))
    seconds = time.process_time() - began
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, seconds


def report(name: str, runs: list[Timing], bare: list[Timing], records: int, decoding: float) -> None:
    """One line: rates, waits, and the ratio to the bare loop of the same repeat."""

    def ratio(what: str, less: float) -> float:
        return statistics.median(getattr(b, what) / (getattr(r, what) - less) for b, r in zip(bare, runs, strict=True))

    wait = statistics.median(1e3 * statistics.fmean(run.waits) for run in runs)
    first = statistics.median(run.first for run in runs)
    rate = records / statistics.median(run.total for run in runs)
    print(
        f"  {name:<28} {rate:6.0f} records/s  first batch {first:5.2f} s  wait {wait:6.2f} ms/step   of the bare loop: "
        f"after the first batch {ratio('after_first', 0):.3f}, epoch {ratio('total', 0):.3f}"
        + (f"; less decoding {ratio('after_first', decoding):.3f}, {ratio('total', decoding):.3f}" if decoding else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--objective", default="beat_ssl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--corpus", help="a corpus written earlier by large_corpus")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, session(RaySettings(cpus=4, object_store_mb=512)):
        corpus = asked.corpus or write_large_corpus(Path(folder), asked.records)
        overrides = [f"corpus={corpus}", f"encoder={asked.encoder}", f"objective={asked.objective}"]
        overrides += [f"train.batch_size={asked.batch}", "train.cache_mb=0"]
        run_spec = prepare_run(pretrain_settings(overrides))
        in_memory, decoding = decode_all(run_spec)
        sizes, batch = run_spec.stream.sizes, asked.batch
        steps = steps_per_epoch(run_spec.rows, batch)
        first_row = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        order = epoch_order(sizes, run_spec.stream.order, 0)
        order = first_row[order[:, 0]] + order[:, 1]
        print(f"{run_spec.rows} records, batch {batch}, {asked.encoder}, {asked.threads} threads on {cores} cores")
        print(
            f"decoding them alone takes {decoding:.2f} s of CPU, {run_spec.rows / decoding:,.0f} records/s of one core"
        )

        def bare() -> Feed:
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                yield {name: values[rows] for name, values in in_memory.items()}

        def loader() -> Feed:
            rows = [order[start : start + batch].tolist() for start in range(0, len(order), batch)]
            made = DataLoader(Records(in_memory), batch_sampler=rows, num_workers=asked.threads, prefetch_factor=4)
            return ({name: tensor.numpy() for name, tensor in part.items()} for part in made)

        def stream() -> Feed:
            return (part.arrays for part in batches(run_spec.stream, 0, 1, (0, 0), steps))

        cold = train_epoch(run_spec, stream)
        feeds: dict[str, Callable[[], Feed]] = {"bare loop": bare, "torch DataLoader": loader, "beatray stream": stream}
        runs: dict[str, list[Timing]] = {name: [] for name in feeds}
        for repeat in range(asked.repeats):
            names = list(feeds)[repeat % 3 :] + list(feeds)[: repeat % 3]
            for name in names:
                runs[name].append(train_epoch(run_spec, feeds[name]))
        for name in feeds:
            report(name, runs[name], runs["bare loop"], run_spec.rows, decoding / cores if "beatray" in name else 0.0)
        again = [replace(cold)] * asked.repeats
        report("beatray, Ray Data cold", again, runs["bare loop"], run_spec.rows, decoding / cores)
        losses = {run.loss for each in runs.values() for run in each}
        print(f"  loss of the last step, of all epochs of all three: {losses}")


if __name__ == "__main__":
    main()
