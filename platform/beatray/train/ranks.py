"""The few words ranks exchange, besides gradients: agreement, sums and a broadcast. All of them work alone, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files."""
        return self.rank == 0

    def all_true(self, condition: bool) -> bool:
        """True if the condition holds on every rank."""
        return self._reduce(float(condition), "min") > 0.5

    def total(self, value: float) -> float:
        """The sum over ranks."""
        return self._reduce(value, "sum")

    def _reduce(self, value: float, how: str) -> float:
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MIN if how == "min" else dist.ReduceOp.SUM)
        return float(tensor)

    def from_first(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: list[int]) -> list[list[int]]:
        """Every rank's list of integers, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value)
        return boxes
