"""What this process and all processes below it use, from /proc (Linux)."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Fields 3 and on of /proc/PID/stat; the second is a name that may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family() -> dict[int, str]:
    """Process ids of this process and all below it, with their titles."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                pid = int(folder.name)
                parents[pid] = int(_stat(pid)[1])
                titles[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue  # it has ended
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {pid: titles[pid] for pid in sorted(mine) if pid in titles}


def cpu_seconds() -> float:
    """CPU time of the family, children that have ended included."""
    ticks = 0
    for pid in family():
        try:
            ticks += sum(map(int, _stat(pid)[11:15]))
        except OSError:
            continue
    return ticks / TICK


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
