"""One MLP probe per weight decay, all trained in one go on the same batches.

The candidates of an MLP probe differ in their weight decay alone: they start from the same weights, see the same
batches and drop the same hidden units. So a batch is drawn once for all of them, and one call updates them all. Each
model is the one that would have been trained by itself, to the last bit, and the one of `fit.fit` with AdamW but for
rounding: decay, clipping of the gradient and loss are its own.

Contract: inputs (n, d) and targets (n, c) float32; the models come in the order of the weight decays, in eval mode. A
loss that is not finite raises FloatingPointError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.evaluate.fit import MAX_GRADIENT_NORM, batches, rate_factor
from beatray.evaluate.settings import FitSettings
from beatray.models.heads import MlpClassifier


def train_mlps(
    inputs: Tensor, targets: Tensor, settings: FitSettings, weight_decays: Sequence[float], seed: int
) -> list[MlpClassifier]:
    """A trained model for each weight decay; `settings.weight_decay` is not read."""
    torch.manual_seed(seed)
    models = [MlpClassifier(inputs.shape[1], targets.shape[1])]
    with torch.random.fork_rng(devices=[]):  # the dropout goes on where the first model left the generator
        models += [MlpClassifier(inputs.shape[1], targets.shape[1]) for _ in weight_decays[1:]]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    optimiser = torch.optim.AdamW(
        [{"params": list(m.parameters()), "weight_decay": w} for m, w in zip(models, weight_decays, strict=True)],
        lr=settings.head_lr,
        fused=True,
    )
    hidden = models[0].hidden.out_features
    for step, positions in enumerate(batches(len(inputs), settings.batch_size, settings.steps, seed)):
        rows = torch.from_numpy(positions)
        x, y = inputs[rows], targets[rows]
        kept = functional.dropout(torch.ones(len(rows), hidden), models[0].dropout.p, training=True)
        losses = torch.stack([_loss(model, x, y, kept) for model in models])
        if not bool(losses.isfinite().all()):
            raise FloatingPointError(f"training loss of step {step + 1} is not finite: lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for model in models:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for group in optimiser.param_groups:
            group["lr"] = settings.head_lr * rate_factor(step, settings.steps)
        optimiser.step()
    return [model.eval() for model in models]


def _loss(model: MlpClassifier, x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
    """Binary cross-entropy with the given hidden units kept (and scaled)."""
    return functional.binary_cross_entropy_with_logits(model.out(torch.relu(model.hidden(x)) * kept), y)
