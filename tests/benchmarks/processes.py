"""Memory of this process and of all below it, from /proc (Linux), and data sets from archives."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

from beatray.bench.processes import family


def private_mib(pid: int) -> float:
    """Memory of one process that it shares with none: without the object store."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) / 1024


def proportional_mib() -> float:
    """Memory of this process and all below it; what several share counts once (PSS)."""
    total = 0
    for pid in family():
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def data_archive(name: str, into: Path) -> Path:
    """Unpack an archive of the folder BEATRAY_DATA; exits with a message without it."""
    named = os.environ.get("BEATRAY_DATA")
    if not named:
        sys.exit("set BEATRAY_DATA to the folder with ludb/, ptbxl/ and misc/")
    with tarfile.open(Path(named) / name) as tar:
        tar.extractall(into, filter="data")
    return into
