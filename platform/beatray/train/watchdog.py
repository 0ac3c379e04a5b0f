"""Turns a stall into an answer: when no step ends for some minutes, every rank writes its stacks and exits.

Two clocks per rank. A thread writes the stacks of all threads to `stalls/<start>-rank-N.txt` of the run folder, waits a
moment so that the other ranks, which wait for this one, write theirs, and ends the process. Should that thread not get
to run (native code that holds Python's lock, a store that hangs), faulthandler's own timer ends the process from C
somewhat later. Ray starts the group again after such an exit; it finds the files and ends at once, so that the user is
informed instead.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from types import TracebackType

from beatray.storage.store import Store

STALLS = "stalls"
GRACE_S = 5.0
"""From the first rank's dump to its exit: the others notice their stall at almost the same moment."""
LATE_S = 30.0
EXIT_CODE = 70


class Watchdog:
    """Of one rank; use as a context manager and call `step` after every step and before anything that takes long."""

    def __init__(self, run: Store, start: str | None, rank: int, minutes: float) -> None:
        self._run, self._seconds = run, 60.0 * minutes
        self._name = _name(start, rank)
        self._last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="beatray-watchdog", daemon=True)
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115  no name: a process that is killed leaves nothing behind

    def __enter__(self) -> Watchdog:
        self.step()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    def step(self) -> None:
        """Something has ended: the clocks start again."""
        self._last = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds + LATE_S, exit=True, file=self._file)

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._seconds / 4)):
            waited = time.monotonic() - self._last
            if waited >= self._seconds:
                self._bark(waited)

    def _bark(self, waited: float) -> None:
        self._file.seek(0)
        self._file.truncate()  # of a stall before, which ended after all
        self._file.write(f"{self._name}: no step ended for {waited:.0f} s; the stacks of all threads:\n")
        self._file.flush()
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._file.seek(0)
        self._run.child(STALLS).write(self._name, self._file.read().encode())
        self._end.wait(GRACE_S)
        if self._end.is_set() or time.monotonic() - self._last < self._seconds:
            self._run.child(STALLS).delete(self._name)  # a step ended after all
            return
        os._exit(EXIT_CODE)


def _name(start: str | None, rank: int) -> str:
    return f"{(start or 'alone')[:8]}-rank-{rank}.txt"


def stalls(run: Store, start: str) -> list[str]:
    """Names of the stack dumps that ranks of this start left in the run folder."""
    return [name for name in run.names(STALLS) if name.startswith(start[:8])]
