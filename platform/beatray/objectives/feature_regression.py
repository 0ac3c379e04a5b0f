"""Measured features as targets: a linear head reads them from the embedding of the plain crop, not augmented.

The features are those of the whole recording.

Contrast makes an encoder blind to what its views change, such as the electrical axis and the amplitudes that 3KG turns
and scales; these are what hypertrophy and bundle branch blocks are recognised by. Predicting the intervals, axes and
amplitudes of a recording from its embedding keeps them there, in a form that a linear probe can use. No label is
needed: the features come from the delineation of the corpus.

Contract: the loss is the smooth L1 (Huber) distance in SDs of the corpus, over the features that were measured, as the
mean over the global batch; values further than `FARTHEST_SD` count as that far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.objectives.reduce import ddp_mean, sum_over_ranks
from beatray.objectives.soft_targets import Features

FARTHEST_SD = 5.0


def feature_loss(
    predicted: Tensor, features: Tensor, known: Features, weight: float, static_shapes: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """predicted (n, F) in SDs, features (n, F) raw with NaN where missing -> loss to backpropagate on this rank, means.

    Means are over the global batch: `feature/loss`, and `feature/explained`, the part of the variance that is read
    right (1: all). `static_shapes`: those that are missing take part as zeros.
    """
    there = torch.isfinite(features)
    target = known.standardise(known.impute(features)).clamp(-FARTHEST_SD, FARTHEST_SD)
    predicted = predicted.to(target.dtype)  # out of autocast
    if static_shapes:
        predicted, target = (values.masked_fill(~there, 0.0) for values in (predicted, target))
    else:
        predicted, target = predicted[there], target[there]
    error = (predicted - target).detach()
    total = nn.functional.smooth_l1_loss(predicted, target, reduction="sum")
    sums = torch.stack([there.sum(), total.detach(), error.square().sum(), target.square().sum()])
    count, summed, squared, spread = sum_over_ranks(sums.double())
    explained = 1.0 - squared / spread.clamp_min(1e-12)
    means = {"feature/loss": (summed / count.clamp_min(1.0)).float(), "feature/explained": explained.float()}
    return ddp_mean(total, count, weight), means
