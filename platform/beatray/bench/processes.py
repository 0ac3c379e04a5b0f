"""What this process and all processes below it use, from /proc (Linux)."""

from __future__ import annotations

import os
import time
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


def cpu_of(pid: int) -> float:
    """CPU seconds of one process; OSError once it has ended."""
    return sum(map(int, _stat(pid)[11:13])) / TICK


def cpu_seconds() -> float:
    """CPU time of the family, children that have ended included."""
    if not Path("/proc/self/stat").exists():
        return time.process_time()  # of this process alone: other systems report no more
    ticks = 0
    for pid in family():
        try:
            ticks += sum(map(int, _stat(pid)[11:15]))
        except OSError:
            continue
    return ticks / TICK
