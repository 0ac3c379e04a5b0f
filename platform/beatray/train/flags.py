"""What the first rank and the outside tell each other while a run trains, in small files of the run folder.

Outwards: which group of workers owns the run, and that it is alive. Inwards: a wish to stop with a checkpoint, and that
another start, or a newer group of this start, owns the run now. Files, because they reach a rank on any node from a
driver on any other, through shared folders and object stores alike.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from types import TracebackType

from beatray.errors import SupersededError
from beatray.storage.store import Store
from beatray.train.run_folder import ALIVE, OWNER, STOP, read_text

log = logging.getLogger(__name__)

ALIVE_EVERY_S = 10.0


class Flags:
    """`stop` and `superseded`, kept up to date by a thread; use as a context manager.

    Taking over raises SupersededError if the run belongs to another start already. `start` None: nobody else is there.
    """

    def __init__(self, run: Store, start: str | None) -> None:
        self._run, self._start = run, start
        self._owner = f"{start}/{uuid.uuid4().hex[:8]}"
        self._every_s = 0.5 if run.is_local else 2.0
        self._alive_at = -ALIVE_EVERY_S
        self.stop = False
        self.superseded = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="beatray-flags", daemon=True)
        if start is not None:
            if is_superseded(run, start):
                raise SupersededError("another start of this run has taken over")
            run.write(OWNER, self._owner.encode())

    def __enter__(self) -> Flags:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Look now, and show a sign of life."""
        try:
            self.stop = self.stop or self._run.size(STOP) is not None
            if self._start is None:
                return
            self.superseded = self.superseded or read_text(self._run, OWNER) != self._owner
            if not self.superseded and time.monotonic() - self._alive_at >= ALIVE_EVERY_S:
                self._run.write(ALIVE, f"{self._owner} {time.time():.0f}\n".encode())
                self._alive_at = time.monotonic()
        except OSError as error:  # a disk that is full, or a store that does not answer for a moment
            log.warning("the run folder did not answer: %s", error)

    def _watch(self) -> None:
        while not self._end.wait(self._every_s):
            self.look()


def is_superseded(run: Store, start: str) -> bool:
    """True if the run belongs to another start."""
    owner = read_text(run, OWNER)
    return owner is None or owner.partition("/")[0] != start
