"""From a WFDB file to a verified corpus row with R-peaks, waves and features: per core, stage by stage, and the rival.

    BEATRAY_DATA=... PYTHONPATH=platform python tests/benchmarks/bench_ingest.py [--repeats N] [--rival N]

All stages run in one process on real PTB-XL recordings from a folder, as a task of `beatray ingest` runs them; CPU time
per recording. The rival is what most scripts do: `wfdb.rdrecord` and `neurokit2.ecg_process` of ONE lead, in the same
round. Medians over interleaved rounds; the first round warms up.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import neurokit2 as nk
import wfdb
from processes import data_archive

from beatray.corpus import schema
from beatray.corpus.writer import parquet_bytes
from beatray.dsp.analyse import analyse
from beatray.ingest.canonical import to_windows
from beatray.ingest.folder_tree import FolderTree
from beatray.ingest.sources import ptbxl

T = TypeVar("T")
STAGES = ("read and check files", "to 500 Hz, 10 s, 1 uV", "R-peaks, waves, features", "to columns", "Parquet, SHA-256")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives, and its CPU seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def one_round(tree: FolderTree, items: list[ptbxl.Item]) -> list[float]:
    """CPU seconds of each stage, in groups of rows as a task has them."""
    spent = [0.0] * len(STAGES)
    stack = schema.Stack()
    for start in range(0, len(items), schema.ROWS_PER_GROUP):
        part = items[start : start + schema.ROWS_PER_GROUP]
        records, spent_now = timed(lambda part=part: [r for item in part for r in ptbxl.read(tree, item)])
        spent[0] += spent_now
        windows, spent_now = timed(lambda records=records: [w for record in records for w in to_windows(record)])
        spent[1] += spent_now

        def measure(windows=windows):  # type: ignore[no-untyped-def]
            signals = stack.of(windows)
            return signals, analyse(signals, [w.n_samples for w in windows], [w.lead_mask for w in windows])

        (signals, measured), spent_now = timed(measure)
        spent[2] += spent_now
        table, spent_now = timed(partial(schema.to_table, windows, measured, signals))
        spent[3] += spent_now
        _, spent_now = timed(lambda table=table: hashlib.sha256(parquet_bytes(table)).digest())
        spent[4] += spent_now
    return spent


def rival(folder: Path, items: list[ptbxl.Item]) -> None:
    """wfdb and NeuroKit2, lead II."""
    for item in items:
        record = wfdb.rdrecord(str(folder / item.path.removesuffix(".hea")))
        try:
            nk.ecg_process(record.p_signal[:, 1], sampling_rate=record.fs)
        except (ValueError, IndexError, ZeroDivisionError):
            continue  # it fails on some recordings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rival", type=int, default=30, help="recordings the rival is given in each round")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        folder_of_set = data_archive("ptbxl/ptbxl-500hz-folds1-9.tar.xz", Path(folder)) / "ptbxl"
        tree = FolderTree(str(folder_of_set))
        items = [item for item in ptbxl.find(tree) if "refused" not in item.meta]
        some = items[:: max(1, len(items) // asked.rival)][: asked.rival]
        rounds: list[list[float]] = []
        rivals: list[float] = []
        for repeat in range(asked.repeats + 1):
            stages = one_round(tree, items)
            seconds = timed(lambda: rival(folder_of_set, some))[1]
            if repeat:
                rounds.append([1000 * s / len(items) for s in stages])
                rivals.append(1000 * seconds / len(some))
        print(f"{len(items)} recordings, median of {asked.repeats} rounds; CPU ms per recording, of one core")
        for name, values in zip(STAGES, zip(*rounds, strict=True), strict=True):
            share = statistics.median(spent / sum(stages) for spent, stages in zip(values, rounds, strict=True))
            print(f"  {name:28s} {statistics.median(values):7.3f} {share:6.1%}")
        total = statistics.median(map(sum, rounds))
        print(f"  {'together':28s} {total:7.3f}   {1000 / total:,.0f} recordings per second")
        print(f"  {'wfdb + neurokit2, one lead':28s} {statistics.median(rivals):7.3f}")
        ratios = [theirs / sum(beatray_s) for theirs, beatray_s in zip(rivals, rounds, strict=True)]
        print(f"  {statistics.median(ratios):.0f} times as fast, with twelve leads against one")


if __name__ == "__main__":
    main()
