"""AdamW and its schedule (Loshchilov and Hutter, ICLR 2017 and 2019)."""

from __future__ import annotations

import math

import torch
from torch import nn

from beatray.settings import TrainSettings


def learning_rate(step: int, total: int, per_epoch: int, settings: TrainSettings) -> float:
    """Of global step `step` of `total`: linear warm-up, then a half cosine to zero."""
    warmup = min(settings.warmup_epochs * per_epoch, total / 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / max(warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def build_optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases and norms (1-d parameters)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    on_gpu = next(iter(trained)).is_cuda
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=on_gpu)
