"""What the outside tells a run while it trains: stop with a checkpoint, or: another start has taken over.

A thread of the first rank looks at two small files of the run folder once or twice a second. Files, because they reach
a rank on any node from a driver on any other, through shared folders and object stores alike.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from beatray.train.run_folder import STARTED, STOP, RunFolder

log = logging.getLogger(__name__)


class Flags:
    """`stop` and `superseded`, kept up to date in the background; use as a context manager."""

    def __init__(self, folder: RunFolder, start: str | None) -> None:
        self._folder, self._start = folder, start
        self._every_s = 0.5 if folder.place.is_local else 2.0
        self.stop = False
        self.superseded = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="beatray-flags", daemon=True)

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
        """Look now."""
        try:
            self.stop = self.stop or self._folder.place.size(STOP) is not None
            if self._start is not None:
                started = self._folder.read(STARTED)
                self.superseded = self.superseded or (started is not None and started != self._start)
        except OSError as error:  # a store that does not answer for a moment
            log.warning("the run folder did not answer: %s", error)

    def _watch(self) -> None:
        while not self._end.wait(self._every_s):
            self.look()
