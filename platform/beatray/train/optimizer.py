"""The optimizer and its schedule, as the settings and the method ask for them.

AdamW and Adam (Loshchilov and Hutter, ICLR 2019: AdamW's decay is decoupled, Adam's is not), SGD with momentum, LARS
(You, Gitman and Ginsburg, arXiv 1708.03888). Linear warm-up, then a half cosine (Loshchilov and Hutter, ICLR 2017) or a
constant rate; the weight decay may move along a half cosine of its own. What decays, and what learns at most at which
rate, is decided by the method and the network (`Objective.parameter_groups`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from beatray.objectives.objective import Objective
from beatray.settings import TrainSettings


def learning_rate(step: int, total: int, per_epoch: int, settings: TrainSettings) -> float:
    """Of global step `step` of `total`: linear warm-up, then the schedule."""
    warmup = min(settings.warmup_epochs * per_epoch, total / 2)
    if step < warmup:
        return settings.learning_rate * min((step + 1) / max(warmup, 1), 1.0)  # a warm-up may end within a step
    if settings.schedule == "constant":
        return settings.learning_rate
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    floor = settings.schedule_floor
    return settings.learning_rate * (cosine if floor == 0.0 else floor + (1.0 - floor) * cosine)


def weight_decay(step: int, total: int, settings: TrainSettings) -> float:
    """Of global step `step` of `total`: from `weight_decay` to `weight_decay_end` along a half cosine."""
    start, end = settings.weight_decay, settings.weight_decay_end
    if end is None:
        return start
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / max(total - 1, 1)))


def set_schedule(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Give each group its rate and decay for one step."""
    for group in optimizer.param_groups:
        scaled = rate * group["lr_scale"]
        group["lr"] = scaled if group["max_lr"] is None else min(scaled, group["max_lr"])
        group["weight_decay"] = decay if group["decays"] else 0.0


def build_optimizer(objective: Objective, settings: TrainSettings, *, masked: bool = False) -> torch.optim.Optimizer:
    """The optimizer over the groups of the objective.

    With `masked` a step is none where the tensor `found_inf` of the optimizer is 1, decided on the device.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": list(group.parameters),
            "lr_scale": group.lr_scale,
            "max_lr": group.max_lr,
            "decays": group.decays,
            "weight_decay": settings.weight_decay if group.decays else 0.0,
        }
        for group in objective.parameter_groups()
    ]
    fused = masked or bool(groups[0]["params"][0].is_cuda)
    rate, betas = settings.learning_rate, settings.betas
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.eps, fused=fused)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=betas, eps=settings.eps, fused=fused)
    if settings.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
        for group in groups if masked and settings.momentum else ():
            for weight in group["params"]:  # else a first step that is masked would leave moments of no value
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    return Lars(groups, lr=rate, momentum=settings.momentum)


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose rate is scaled for each matrix by |w| / (|g| + decay |w|), equation 6 of the paper.

    Vectors (groups that do not decay) take a plain step, as is usual since SimCLR (Chen et al., ICML 2020, appendix B).
    Where the tensor `found_inf` is set and 1, nothing moves, as in torch's fused optimizers.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        update = gradient.add(weight, alpha=group["weight_decay"]) if group["weight_decay"] else gradient.clone()
        if group.get("decays", True):
            size = weight.norm()
            divisor = gradient.norm() + group["weight_decay"] * size
            scale = group["trust"] * size / divisor.clamp_min(1e-30)
            update *= torch.where((size > 0) & (divisor > 0), scale, torch.ones_like(scale))
        moment = self.state[weight].get("momentum_buffer")
        if moment is None:
            moment = self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        refused = getattr(self, "found_inf", None)
        if refused is None:
            moment.mul_(group["momentum"]).add_(update)
            weight.add_(moment, alpha=-group["lr"])
            return
        moment.copy_(torch.where(refused > 0, moment, moment * group["momentum"] + update))
        weight.copy_(torch.where(refused > 0, weight, weight - group["lr"] * moment))
