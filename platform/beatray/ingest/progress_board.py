"""Progress of the slices of an ingest while they are converted: tasks report to a small actor, the driver reads it.

Counts are absolute and by the name of the slice, so that a task that is tried again counts once. Nothing waits for the
actor: a task sends at most one message a second and takes no answer, the driver checks whether its last request was
answered; where the actor is lost, only finished slices are known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

EVERY_S = 1.0
Counts = tuple[int, int]
"""Recordings read, and how many of those were refused."""


class ProgressBoard:
    """The state of the actor: the newest counts of each slice."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}

    def report(self, name: str, counts: Counts) -> None:
        self._counts[name] = counts

    def snapshot(self) -> dict[str, Counts]:
        return dict(self._counts)


@dataclass(slots=True)
class ProgressReporter:
    """The task's end; `report` may be called after every recording."""

    board: Any
    name: str
    every_s: float = EVERY_S
    _reported_at: float = field(default_factory=time.monotonic)

    def report(self, read: int, refused: int) -> None:
        now = time.monotonic()
        if now - self._reported_at >= self.every_s:
            self._reported_at = now
            self.board.report.remote(self.name, (read, refused))


class ProgressReader:
    """The driver's end."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._board: Any = ray.remote(num_cpus=0)(ProgressBoard).remote()
        self._every_s = every_s
        self._request: Any = None
        self._requested_at = time.monotonic()
        self._counts: dict[str, Counts] = {}

    def reporter(self, name: str) -> ProgressReporter:
        """For the task of a slice."""
        return ProgressReporter(self._board, name, self._every_s, time.monotonic())

    def counts(self, running: Iterable[str]) -> Counts:
        """The sum over these slices, as of the last answer."""
        self._update()
        known = [self._counts[name] for name in running if name in self._counts]
        return sum(read for read, _ in known), sum(refused for _, refused in known)

    def _update(self) -> None:
        if self._request is not None and ray.wait([self._request], timeout=0)[0]:
            try:
                self._counts = ray.get(self._request)
            except RayError:
                self._counts = {}
            self._request = None
        if self._request is None and time.monotonic() - self._requested_at >= self._every_s:
            self._requested_at = time.monotonic()
            self._request = self._board.snapshot.remote()
