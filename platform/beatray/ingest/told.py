"""How far the slices of an ingest are while they are at work: tasks tell it to a small actor, the driver asks there.

Counts are absolute and by the name of the slice, so that a task that is tried again counts once. Nobody waits for the
actor: a task sends at most one message a second and takes no answer, the driver looks whether its last question was
answered; where the actor is lost, finished slices are all that is known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

EVERY_S = 1.0
Far = tuple[int, int]
"""Recordings read, and how many of those were refused."""


class Board:
    """What an actor remembers."""

    def __init__(self) -> None:
        self._far: dict[str, Far] = {}

    def tell(self, name: str, far: Far) -> None:
        self._far[name] = far

    def ask(self) -> dict[str, Far]:
        return dict(self._far)


@dataclass(slots=True)
class Teller:
    """What a task holds; `far` may be called after every recording."""

    board: Any
    name: str
    every_s: float = EVERY_S
    _told_at: float = field(default_factory=time.monotonic)

    def far(self, read: int, refused: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= self.every_s:
            self._told_at = now
            self.board.tell.remote(self.name, (read, refused))


class Listener:
    """The driver's end."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._board: Any = ray.remote(num_cpus=0)(Board).remote()
        self._every_s = every_s
        self._question: Any = None
        self._asked_at = time.monotonic()
        self._known: dict[str, Far] = {}

    def teller(self, name: str) -> Teller:
        """For the task of a slice."""
        return Teller(self._board, name, self._every_s, time.monotonic())

    def far(self, running: Iterable[str]) -> Far:
        """The sum over these slices, as of the last answer."""
        self._listen()
        known = [self._known[name] for name in running if name in self._known]
        return sum(read for read, _ in known), sum(refused for _, refused in known)

    def _listen(self) -> None:
        if self._question is not None and ray.wait([self._question], timeout=0)[0]:
            try:
                self._known = ray.get(self._question)
            except RayError:
                self._known = {}
            self._question = None
        if self._question is None and time.monotonic() - self._asked_at >= self._every_s:
            self._asked_at = time.monotonic()
            self._question = self._board.ask.remote()
