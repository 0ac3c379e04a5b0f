"""Memory and CPU time of this process and of all below it, from /proc (Linux), and data sets from archives."""

from __future__ import annotations

import os
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

from beatray.bench.processes import cpu_of, family


class CpuByKind:
    """CPU seconds of this process and all below it while the block lasts, by what kind of process they are.

    Each process is looked at twice a second, so that those that end in between are counted but for their last moments.
    Only what is used while `running` says so counts: start and end cost the same for any length of run.
    """

    def __init__(self, kinds: dict[str, str], running: Callable[[], bool] = lambda: True) -> None:
        self._kinds, self._running = kinds, running  # part of a title -> what such processes are called
        self._first: dict[int, float] = {}
        self._last: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> CpuByKind:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seconds(self) -> dict[str, float]:
        """By kind, the most first."""
        found: dict[str, float] = {}
        for pid, (title, used) in self._last.items():
            kind = next((name for part, name in self._kinds.items() if part in title), "other")
            found[kind] = found.get(kind, 0.0) + used - self._first[pid]
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _look(self) -> None:
        over, counts = False, False
        while not over:
            over = self._over.wait(0.5)
            before, running = counts, self._running()
            if before and not running:
                return  # it was over since the last look
            began, counts = not before, running
            for pid, title in family().items():
                try:
                    used = cpu_of(pid)
                except OSError:
                    continue
                if began:
                    self._first[pid] = used
                self._first.setdefault(pid, 0.0)
                # Ray gives an idle worker another title: what it was before is what used the time
                idle = "IDLE" in title and pid in self._last
                self._last[pid] = (self._last[pid][0] if idle else title, used)


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
