"""How long a piece of work still takes, from updates on how much of it is done.

Contract: what was done before the first update (an interrupted run that continues) does not count for the rate, and
work that is done again (a worker died) begins a new count; the rate is that of the newest updates, up to `UPDATES` of
them.
"""

from __future__ import annotations

from collections import deque

UPDATES = 100


class Pace:
    """Takes the updates one by one; `seconds_left` is None until two of them show a rate."""

    def __init__(self) -> None:
        self._updates: deque[tuple[float, int]] = deque(maxlen=UPDATES)

    def add(self, at_s: float, done: int) -> None:
        """At a time of a steady clock so much was done."""
        if self._updates and done < self._updates[-1][1]:
            self._updates.clear()
        if done and (not self._updates or done > self._updates[-1][1]):
            self._updates.append((at_s, done))

    def seconds_left(self, total: int, now_s: float) -> float | None:
        """What is left at the rate between the oldest and the newest update kept, less the time since the newest."""
        if len(self._updates) < 2:
            return None
        (began, first), (newest, done) = self._updates[0], self._updates[-1]
        rate = (done - first) / max(newest - began, 1e-9)
        return max((total - done) / rate - (now_s - newest), 0.0)


def duration_text(seconds: float) -> str:
    """7 s, 1:05 min, 2:30 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
