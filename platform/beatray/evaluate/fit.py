"""The one supervised training loop of the evaluation: heads and fine-tuned encoders alike.

Why apart from pretraining: labels are few, runs take seconds and nothing is resumed, so there is no stream and no
checkpoint here. Contract: `step_loss(positions)` returns the scalar loss of the records at `positions` (b,), an index
into the training part; batches walk through a fresh permutation per epoch, drawn by NumPy from the seed alone, so the
same seed sees the same records whatever the model. A loss that is not finite raises FloatingPointError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beatray.evaluate.settings import FitSettings

MAX_GRADIENT_NORM = 5.0


def fit(
    groups: list[tuple[nn.Module, float]],
    step_loss: Callable[[NDArray[np.int64]], Tensor],
    n_records: int,
    settings: FitSettings,
    seed: int,
) -> list[float]:
    """Train the modules of `groups`, each with its own peak learning rate; returns the loss of every step."""
    parameters = [p for module, _ in groups for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": [p for p in module.parameters() if p.requires_grad], "lr": rate} for module, rate in groups],
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, settings.steps))
    losses: list[float] = []
    for positions in batches(n_records, settings.batch_size, settings.steps, seed):
        optimiser.zero_grad(set_to_none=True)
        loss = step_loss(positions)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"training loss of step {len(losses)} is {losses[-1]}: lower the learning rate")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
    return losses


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step`: linear over the first tenth, then half a cosine to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def batches(n_records: int, batch_size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`steps` batches; each epoch is a fresh permutation, cut evenly into as many as come nearest to `batch_size`.

    So a batch has up to half as many positions more, and all of them where they are fewer than 1.5 batches.
    """
    generator = np.random.default_rng([seed, 0xBA7C])
    per_epoch = max(1, round(n_records / batch_size))
    done = 0
    while True:
        for positions in np.array_split(generator.permutation(n_records), per_epoch):
            if done == steps:
                return
            yield positions
            done += 1


def crop_starts(lengths: NDArray[np.int64], crop: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Random first samples (b,) of crops of `crop` samples out of records of `lengths` (b,); 0 for shorter records."""
    return generator.integers(0, np.maximum(1, lengths - crop + 1))
