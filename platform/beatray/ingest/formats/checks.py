"""Passes the checks of a reader to a listener, so that a refusal can be explained.

Every reader calls `passed(what, seen)` after each of its checks. There is no listener during an ingest and the call
costs a look at one variable; `beatray ingest explain` listens and prints. Contract: `seen` is about the recording's
technique (sizes, leads, units, rates, checksums), never about the person: no names, ids, dates or free text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, str], None]
"""(what was checked, the value seen)"""

_LISTENER: ContextVar[Listener | None] = ContextVar("beatray_checks", default=None)


def passed(what: str, seen: object) -> None:
    """Report that a check was passed, and on which value: itself, or a function that gives it to a listener."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(what, str(seen() if callable(seen) else seen))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Pass every check made inside the block to `listener`."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
