"""What some methods keep beside their weights: a teacher that follows by a moving average, and a queue of rows.

Both lie in parameters and buffers of the objective, so a checkpoint holds them and a resumed run continues with them to
the bit; both change in `Objective.after_step` alone, so a refused step leaves them, and are equal on all ranks.

A teacher (He et al., MoCo, CVPR 2020, equation 2; Grill et al., BYOL, NeurIPS 2020, section 3.1) is in no optimizer,
clip norm or reducer: its parameters ask for no gradient. Its momentum is a function of `Progress`.
"""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from beatray.objectives.objective import Progress

M = TypeVar("M", bound=nn.Module)


class Teacher(nn.Module, Generic[M]):
    """A copy of `student` that follows it. Call `self.module`; call `update` in `after_step`.

    `batch_statistics`: its batch norms use the statistics of the batch in training, as BYOL's do, and keep running ones
    of their own. Without it the teacher is always in evaluation mode, and its running statistics follow the student's
    as its weights do. Dropout is off in either case.
    """

    def __init__(self, student: M, *, batch_statistics: bool = False) -> None:
        super().__init__()
        self.module: M = copy.deepcopy(student).requires_grad_(False)
        self._batch_statistics = batch_statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> Teacher[M]:
        """As of a module, but dropout never comes on."""
        super().train(mode)
        self.module.eval()
        for part in self.module.modules():
            if self._batch_statistics and hasattr(part, "running_mean"):
                part.train(mode)
        return self

    @torch.no_grad()
    def update(self, student: M, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, of every weight; counters are copied."""
        for mine, theirs in zip(self.module.parameters(), student.parameters(), strict=True):
            _follow(mine, theirs, momentum)
        for kept, now in zip(self.module.buffers(), student.buffers(), strict=True):
            if not kept.is_floating_point():
                kept.copy_(now)
            elif not self._batch_statistics:
                _follow(kept, now, momentum)


def _follow(mine: Tensor, theirs: Tensor, momentum: float) -> None:
    if momentum == 0.0:
        mine.copy_(theirs)  # to the bit
    elif momentum != 1.0:
        mine.lerp_(theirs.to(mine.dtype), 1.0 - momentum)


def cosine_momentum(at: Progress, start: float) -> float:
    """From `start` to 1: 1 - (1 - start) (cos(pi k / K) + 1) / 2 for step k of K (BYOL, appendix B)."""
    return 1.0 - (1.0 - start) * (math.cos(math.pi * at.step / max(at.steps, 1)) + 1.0) / 2.0


def linear_momentum(at: Progress, start: float, end: float) -> float:
    """From `start` to `end`: start + (end - start) k / K for step k of K."""
    return start + (end - start) * at.step / max(at.steps, 1)


class Queue(nn.Module):
    """The newest `size` rows (D,) that came, the newest last, the same on every rank.

    `stage` notes what this step adds, in the order of the global batch (gather it first), once per micro-batch;
    `commit`, in `after_step`, takes it in. The loop calls `drop` for a step that was refused. The buffers are only
    written by `commit`, so the loop need not copy them before a step.
    """

    written_after_step = True
    rows: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._staged: list[Tensor] = []

    def stage(self, rows: Tensor) -> None:
        """Note rows (n, D) of all ranks for the end of this step; nothing in evaluation mode."""
        if self.training:
            self._staged.append(rows.detach().to(self.rows.dtype))

    def drop(self) -> None:
        """Forget what was staged."""
        self._staged = []

    @torch.no_grad()
    def commit(self) -> None:
        """Take in what was staged."""
        if self._staged:
            fresh = torch.cat(self._staged)[-len(self.rows) :]
            self.rows.copy_(torch.cat([self.rows, fresh])[-len(self.rows) :])
            self.filled.copy_((self.filled + len(fresh)).clamp_max(len(self.rows)))
        self.drop()

    @property
    def newest(self) -> Tensor:
        """The rows that are filled, the newest last: (filled, D)."""
        return self.rows[len(self.rows) - int(self.filled) :]
