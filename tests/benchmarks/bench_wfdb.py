"""The own WFDB reader against `wfdb.rdrecord`: the same files, one process, interleaved repeats, medians.

Run: BEATRAY_DATA=<folder> PYTHONPATH=platform python tests/benchmarks/bench_wfdb.py
The own reader does more: it checks lengths, checksums and initial values, picks the leads by name and converts units.
"""

from __future__ import annotations

import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wfdb

from beatray.ingest.canonical import to_windows
from beatray.ingest.formats.wfdb_annotation import parse_annotations
from beatray.ingest.formats.wfdb_record import read_counts, read_twelve_leads
from beatray.ingest.sources import ptbxl
from beatray.ingest.tree import open_tree

REPEATS = 7


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def each(work: Callable[[Any], object], inputs: list[Any]) -> Callable[[], None]:
    """Do `work` on one input after the other and keep no result, as a converter does."""

    def run() -> None:
        for value in inputs:
            work(value)

    return run


def compare(title: str, count: int, rivals: dict[str, Callable[[], object]]) -> None:
    """Print items per second of each rival, and the ratio to the last one."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for name in rivals:
        rivals[name]()  # caches and imports
    for _ in range(REPEATS):
        for name, work in rivals.items():
            times[name].append(seconds(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    slowest = list(medians.values())[-1]
    print(f"{title} ({count} files, median of {REPEATS} interleaved repeats)")
    for name, median in medians.items():
        print(f"  {name:<52} {count / median:9,.0f} /s   {slowest / median:5.1f}x")


def main() -> None:
    data = Path(os.environ["BEATRAY_DATA"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for archive in ("ptbxl/ptbxl-500hz-folds1-9.tar.xz", "ludb/ludb-1.0.1.tar.xz"):
            with tarfile.open(data / archive) as tar:
                tar.extractall(folder, filter="data")
        tree = open_tree(str(folder / "ptbxl"))
        paths = [path for path in tree.names() if path.endswith(".hea")]
        stems = [str(folder / "ptbxl" / path.removesuffix(".hea")) for path in paths]
        items = [item for item in ptbxl.find(tree) if "refused" not in item.meta]
        compare(
            "12-lead records, format 16",
            len(paths),
            {
                "beatray: counts, all checks": each(lambda path: read_counts(tree, path), paths),
                "beatray: leads by name, mV, all checks": each(lambda path: read_twelve_leads(tree, path), paths),
                "wfdb.rdrecord(physical=False)": each(lambda stem: wfdb.rdrecord(stem, physical=False), stems),
                "wfdb.rdrecord": each(wfdb.rdrecord, stems),
            },
        )
        compare(
            "records to corpus windows (read, resample, quantise, hash)",
            len(items),
            {"beatray": each(lambda item: [to_windows(record) for record in ptbxl.read(tree, item)], items)},
        )
        marks = sorted((folder / "ludb-1.0.1" / "data").glob("*.ii"))
        compare(
            "annotation files",
            len(marks),
            {
                "beatray": each(lambda path: parse_annotations(path.read_bytes()), marks),
                "wfdb.rdann": each(lambda path: wfdb.rdann(str(path.with_suffix("")), "ii"), marks),
            },
        )


if __name__ == "__main__":
    main()
