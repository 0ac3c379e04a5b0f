"""When a run has stopped getting better: so many validations in a row without a better one (Prechelt, 1998).

Contract: its decision is a function of the selections it was given, in their order; its `state` lies in every
checkpoint, so that a run that is continued ends where it would have ended. Without a patience it never ends a run. A
selection that is not finite counts as no better one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class EarlyStopping:
    """The least selection so far, and how many validations have come since it."""

    patience: int | None
    best: float | None = None
    since: int = 0

    @classmethod
    def of(cls, patience: int | None, state: list[float | int | None] | None) -> EarlyStopping:
        """As a checkpoint kept it; afresh where it kept none."""
        if state is None:
            return cls(patience)
        best, since = state
        return cls(patience, None if best is None else float(best), int(since or 0))

    @property
    def state(self) -> list[float | int | None]:
        """For a checkpoint."""
        return [self.best, self.since]

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.patience is not None and self.since >= self.patience

    def add(self, selection: float) -> None:
        """One validation; less is better."""
        if math.isfinite(selection) and (self.best is None or selection < self.best):
            self.best, self.since = selection, 0
        else:
            self.since += 1
