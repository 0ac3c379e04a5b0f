"""One step of an objective in this process, as the loop makes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from beatray.augment.draws import Draws
from beatray.objectives.objective import Progress, StepResult


def views_of(objective: Any, batch: dict[str, Tensor], seed: int = 0, epoch: int = 0) -> dict[str, Tensor]:
    """The views of a batch."""
    made: dict[str, Tensor] = objective.views(batch, Draws.of(batch, seed, epoch))
    return made


def step_of(
    objective: Any, batch: dict[str, Tensor], seed: int = 0, epoch: int = 0, at: Progress | None = None
) -> StepResult:
    """Views and forward pass of a batch."""
    result: StepResult = objective(views_of(objective, batch, seed, epoch), at or Progress())
    return result
