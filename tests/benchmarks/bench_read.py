"""Reading a corpus with every checksum compared, beside plain pyarrow on the same files; interleaved, medians.

Run: PYTHONPATH=platform python tests/benchmarks/bench_read.py [--records N] [--repeats N] [--corpus FOLDER]

Both read every row group with all columns that training uses, one thread, from files that the system has in memory.
Plain pyarrow is given no checksum to verify, and the parsed footer, as the reader keeps it; a third column lets it
verify Parquet's own page checksums. Counted is CPU time: rows per second of one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beatray.bench.corpus import write_large_corpus
from beatray.corpus.reader import Corpus, open_corpus, read_row_group
from beatray.corpus.schema import SCHEMA
from beatray.corpus.writer import FOLDER
from beatray.ray_session import RaySettings, session

COLUMNS = [name for name in SCHEMA.names if name != "frank"]


def beatray_rows(corpus: Corpus) -> None:
    """Through the corpus reader."""
    for shard in corpus.manifest.shards:
        for group in range(len(shard.row_groups)):
            read_row_group(corpus.store, shard, group, COLUMNS)


def plain(corpus: Corpus, footers: dict[str, pq.FileMetaData], *, verify: bool) -> None:
    """Through pyarrow alone."""
    for shard in corpus.manifest.shards:
        path = corpus.store.folder / FOLDER / shard.name
        for group in range(len(shard.row_groups)):
            file = pq.ParquetFile(path, metadata=footers[shard.name], page_checksum_verification=verify)
            file.read_row_group(group, columns=COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--corpus", help="a corpus written earlier by large_corpus")
    asked = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        path = asked.corpus
        if path is None:
            with session(RaySettings(cpus=2, object_store_mb=1500)):
                path = write_large_corpus(Path(folder) / "corpus", asked.records)
        corpus = open_corpus(path)
        footers = {s.name: pq.read_metadata(corpus.store.folder / FOLDER / s.name) for s in corpus.manifest.shards}
        ways: dict[str, Callable[[], None]] = {
            "corpus.reader": lambda: beatray_rows(corpus),
            "pyarrow": lambda: plain(corpus, footers, verify=False),
            "pyarrow, page checksums": lambda: plain(corpus, footers, verify=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(asked.repeats + 1):
            for name, read in ways.items():
                began = time.process_time()
                read()
                if repeat:  # the first round warms up
                    seconds[name].append(time.process_time() - began)
        rows = corpus.manifest.rows
        print(f"{rows:,} rows, {len(COLUMNS)} columns, median of {asked.repeats}; rows per second of one core")
        for name, times in seconds.items():
            ratio = statistics.median(p / t for p, t in zip(seconds["pyarrow"], times, strict=True))
            print(f"  {name:24s} {rows / statistics.median(times):8,.0f}   {ratio:5.2f} of plain pyarrow")


if __name__ == "__main__":
    main()
