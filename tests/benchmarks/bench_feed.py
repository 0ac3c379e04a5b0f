"""Feeding alone: the stream beside plain pyarrow and Ray Data's own Parquet reader; interleaved, medians.

Run: PYTHONPATH=platform python tests/benchmarks/bench_feed.py [--records N] [--repeats N]

All read the same shards from disk into the same arrays (signal, beats, features, keys) in batches of the same size. The
rivals are given this project's own decoder, on Arrow tables, so that only the feeding differs. Plain pyarrow runs in
this process and reads in file order, as `ray.data.read_parquet(...).iter_torch_batches` does unless it is given a
shuffle buffer; the stream gives the exactly shuffled order. Counted is the CPU time of all processes, Ray's own
included, from opening to the end, in a Ray whose workers are running: records per second of one core. Wall time is
shown beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.collate_fn import ArrowBatchCollateFn

from beatray.bench.corpus import write_large_corpus
from beatray.bench.processes import cpu_seconds
from beatray.corpus.reader import read_row_group
from beatray.ray_session import RaySettings, session
from beatray.train.blocks import Arrays, corpus_columns, decode
from beatray.train.composed import pretrain_settings
from beatray.train.order import steps_per_epoch
from beatray.train.prepare import prepare_run
from beatray.train.run_spec import RunSpec
from beatray.train.stream import batches


class Decode(ArrowBatchCollateFn):
    """A collate function that decodes as the stream does."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns

    def __call__(self, batch: pa.Table) -> Any:
        return decode(batch, self.columns, None)


def plain_pyarrow(run_spec: RunSpec) -> Iterator[int]:
    size, columns = run_spec.settings.train.batch_size, run_spec.stream.arrays
    for group in run_spec.stream.groups:
        table = read_row_group(run_spec.stream.store, group.shard, group.group, corpus_columns(columns))
        arrays = decode(table, columns, run_spec.stream.clusters)
        for start in range(0, len(table), size):
            yield len({name: values[start : start + size].copy() for name, values in arrays.items()}["record_key"])


def read_parquet(run_spec: RunSpec, data: ray.data.Dataset, shuffle: int | None) -> Iterator[int]:
    made = data.iter_torch_batches(
        batch_size=run_spec.settings.train.batch_size,
        prefetch_batches=4,
        local_shuffle_buffer_size=shuffle,
        local_shuffle_seed=None if shuffle is None else 0,
        collate_fn=Decode(run_spec.stream.arrays),
    )
    for arrays in made:
        yield len(arrays["record_key"])


def stream(run_spec: RunSpec) -> Iterator[int]:
    def rows(arrays: Arrays) -> int:
        return len(arrays["record_key"])

    steps = steps_per_epoch(run_spec.rows, run_spec.settings.train.batch_size)
    yield from (rows(batch.arrays) for batch in batches(run_spec.stream, 0, 1, (0, 0), steps))


def measure(feed: Iterator[int], records: int) -> tuple[float, float]:
    """Records per second of one core, and per second."""
    began, used = time.perf_counter(), cpu_seconds()
    seen = sum(feed)
    assert seen == records, f"{seen} of {records} records arrived"
    return seen / (cpu_seconds() - used), seen / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--corpus", help="a corpus written earlier by large_corpus")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, session(RaySettings(cpus=4, object_store_mb=1024)):
        corpus = asked.corpus or write_large_corpus(Path(folder), asked.records)
        overrides = [f"corpus={corpus}", "encoder=tiny", f"train.batch_size={asked.batch}", "train.cache_mb=0"]
        run_spec = prepare_run(pretrain_settings(overrides))
        ray.data.DataContext.get_current().enable_progress_bars = False
        columns = corpus_columns(run_spec.stream.arrays)
        data = ray.data.read_parquet(str(run_spec.stream.store.folder / "shards")).select_columns(columns)
        feeds: dict[str, Callable[[], Iterator[int]]] = {
            "plain pyarrow, one process": lambda: plain_pyarrow(run_spec),
            "ray.data.read_parquet": lambda: read_parquet(run_spec, data, None),
            "  with a shuffle buffer of 2048": lambda: read_parquet(run_spec, data, 2048),
            "beatray stream, exact shuffle": lambda: stream(run_spec),
        }
        for name in feeds:
            measure(feeds[name](), run_spec.rows)  # starts the readers' processes and fills the page cache
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in feeds}
        for _ in range(asked.repeats):
            for name in feeds:
                found[name].append(measure(feeds[name](), run_spec.rows))
        print(f"{run_spec.rows} records in batches of {asked.batch}, median of {asked.repeats}")
        for name, runs in found.items():
            per_core, per_second = (statistics.median(values) for values in zip(*runs, strict=True))
            ratios = [mine[0] / its[0] for mine, its in zip(found["beatray stream, exact shuffle"], runs, strict=True)]
            print(
                f"  {name:<32} {per_core:7,.0f} records/s of one core  {per_second:7,.0f} records/s"
                f"   the stream per core against it: {statistics.median(ratios):.2f}x"
            )


if __name__ == "__main__":
    main()
