"""What ranks exchange besides gradients: sums, agreement, broadcast, gather. All work alone, too.

They lie on the host and travel between hosts: no accelerator is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from beatray.objectives.reduce import host_group

T = TypeVar("T")


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
        return self.sums([int(condition)])[0] == self.world

    def barrier(self) -> None:
        """Until every rank is here."""
        self.sums([0])

    def sums(self, values: list[int]) -> list[int]:
        """The sums over ranks, in 64 bits, which wrap."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, group=host_group())
        summed: list[int] = tensor.tolist()
        return summed

    def from_first(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=host_group())
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value, group=host_group())
        return boxes
