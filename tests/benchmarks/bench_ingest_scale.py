"""`beatray ingest` of 1,000, 10,000 and 100,000 recordings: cost per recording and memory must stay flat.

    BEATRAY_DATA=... PYTHONPATH=platform python tests/benchmarks/bench_ingest_scale.py [--sizes N ...] [--folder FOLDER]

The recordings are the real ones of PTB-XL again and again, each time under a new name, moved by up to 25 uV a lead and
with 2 uV of white noise, so that no two are the same. They are written once as WFDB (12 GB for 100,000). Wall time and
CPU time are those of the command with all of Ray, without the benchmark's own; memory is the largest sum over all its
processes, shared pages once, looked at every few seconds, because the kernel walks through all of it for that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from processes import data_archive, proportional_mib

from beatray.bench.processes import cpu_seconds
from beatray.ingest.folder_tree import FolderTree
from beatray.ingest.sources import ptbxl
from beatray.record import LEADS

RECORDS_PER_FOLDER = 1000
LOOK_EVERY_S = 4.0
JITTER_UV, NOISE_UV, LIMIT_UV = 25, 2.0, 32_000


def real_signals(folder: Path) -> NDArray[np.int16]:
    """(n, 12, 5000) uV of the whole 10 s recordings of PTB-XL."""
    tree = FolderTree(str(data_archive("ptbxl/ptbxl-500hz-folds1-9.tar.xz", folder) / "ptbxl"))
    items = [item for item in ptbxl.find(tree) if "refused" not in item.meta]
    records = [record for item in items for record in ptbxl.read(tree, item)]
    return np.stack([np.rint(record.signal_mv * 1000).astype(np.int16) for record in records])


def write_folder(signals: NDArray[np.int16], root: Path, number: int) -> None:
    """One thousand recordings as WFDB, format 16, with checksums and initial values."""
    chance = np.random.default_rng(number)
    folder = root / f"{number:04d}"
    folder.mkdir(parents=True)
    for count in range(RECORDS_PER_FOLDER):
        name = f"{number * RECORDS_PER_FOLDER + count:07d}"
        real = signals[(number * RECORDS_PER_FOLDER + count) % len(signals)]
        moved = real + chance.integers(-JITTER_UV, JITTER_UV, (12, 1)) + chance.normal(0.0, NOISE_UV, real.shape)
        counts = np.clip(np.rint(moved), -LIMIT_UV, LIMIT_UV).astype("<i2")
        sums = counts.sum(axis=1, dtype=np.int64).astype(np.int16)
        lines = [f"{name} 12 500 5000"]
        lines += [
            f"{name}.dat 16 1000(0)/mV 16 0 {counts[lead, 0]} {sums[lead]} 0 {title}"
            for lead, title in enumerate(LEADS)
        ]
        (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
        (folder / f"{name}.dat").write_bytes(np.ascontiguousarray(counts.T).tobytes())


def run(root: Path, out: Path, size: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and the largest memory in MiB of one `beatray ingest`."""
    peak, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(LOOK_EVERY_S):
            peak = max(peak, proportional_mib())

    watcher = threading.Thread(target=watch)
    own, began = proportional_mib(), time.perf_counter()
    cpu = cpu_seconds() - time.process_time()
    overrides = [f"wfdb={root}", "--out", str(out), f"limit={size}", "cluster.cpus=2", "cluster.object_store_mb=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "beatray", "ingest", *overrides], stdout=subprocess.PIPE, text=True
    )
    watcher.start()
    spent = 0.0
    while process.poll() is None:
        spent = max(spent, cpu_seconds() - time.process_time() - cpu)
        time.sleep(0.5)
    ended.set()
    watcher.join()
    assert process.returncode == 0 and process.stdout, process.stdout and process.stdout.read()
    return time.perf_counter() - began, spent, peak - own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", help="where recordings are written, or were written before")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(asked.folder or temporary) / "recordings"
        if not root.is_dir():
            signals = real_signals(Path(temporary))
            folders = [(signals, root, number) for number in range(-(-max(asked.sizes) // RECORDS_PER_FOLDER))]
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.starmap(write_folder, folders, chunksize=1)
        print(f"{'recordings':>12s} {'wall s':>9s} {'per second':>11s} {'CPU ms each':>12s} {'peak MiB':>9s}")
        for size in asked.sizes:
            wall, cpu, peak = run(root, Path(temporary) / f"corpus-{size}", size)
            print(f"{size:12,} {wall:9.1f} {size / wall:11.0f} {1000 * cpu / size:12.2f} {peak:9.0f}", flush=True)


if __name__ == "__main__":
    main()
