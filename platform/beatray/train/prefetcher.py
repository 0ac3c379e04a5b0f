"""An iterator run by a thread of its own, a few items ahead of its user.

Contract: items come in order; an error of the source is raised where its next item would have come; after `close` the
source is closed and the thread has ended. The thread starts at once, so that slow beginnings are under way early.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long `close` waits for a source that is itself waiting; then the thread is left to end with the process."""


class Prefetcher(Iterator[T], Generic[T]):
    """`source`, at most `depth` items ahead."""

    def __init__(self, source: Generator[T, None, None], depth: int, name: str) -> None:
        self._source, self._stopped, self._ended = source, threading.Event(), False
        self._items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._run, name=f"beatray-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException = StopIteration()
        try:
            for item in self._source:
                self._items.put((item, None))
                del item  # it may pin shared memory while the next one is awaited
                if self._stopped.is_set():
                    break
        except BaseException as caught:
            error = caught
        finally:
            self._source.close()
            self._items.put((None, error))

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item, error = self._items.get()
        if error is not None:
            self._ended = True
            raise error
        return item  # type: ignore[return-value]  # None only beside an error

    def close(self) -> None:
        """End the thread and the source, whatever is left of it."""
        self._stopped.set()
        self._ended = True
        waited = 0.0
        while self._thread.is_alive() and waited < PATIENCE_S and not sys.is_finalizing():
            with contextlib.suppress(queue.Empty):
                self._items.get_nowait()  # room for a put that holds the thread
            self._thread.join(0.02)
            waited += 0.02
        self._items = queue.Queue()  # what was not taken may pin shared memory
