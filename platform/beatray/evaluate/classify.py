"""The classification task: which classes of a label space a recording shows (multilabel).

`frozen`, `mlp`, `knn`: the probes of `probe` on pooled features. `finetune`: encoder and a linear layer end to end on
random 5-s crops, binary cross-entropy. Started from random weights they are the two controls. Beside them stand the
probe on measured features (intervals, amplitudes: no network at all) and the probe on permuted labels, which must fall
to chance, or labels leak.

Thresholds and learning rate of a fine-tuned model: with held-out validation records they are read there. Without, a
first run trains on all but one inner fold of the training part and is scored on that fold; the second run, trained on
all of it, is the one that is tested.

Contract: `x_mv` (n, 12, 5000) float32, `truth` (n, c) bool, or int8 with `IGNORE` where a class is not known, which is
never learned from; scores are probabilities (n_test, c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from beatray.evaluate.fit import crop_starts, fit
from beatray.evaluate.metrics import IGNORE, Truth
from beatray.evaluate.probes import judge
from beatray.evaluate.segment import PREDICT_BATCH, autocast
from beatray.evaluate.settings import FitSettings
from beatray.evaluate.split import Index, nested_fractions
from beatray.models.encoder import Encoder
from beatray.models.heads import LinearClassifier


def finetune(
    make_encoder: Callable[[], Encoder],
    x_mv: NDArray[np.float32],
    n_samples: NDArray[np.int64],
    truth: Truth,
    train: Index,
    fold: tuple[Index, Index],
    settings: FitSettings,
    encoder_lrs: Sequence[float],
    seed: int,
    *,
    bf16: bool = False,
    device: str = "cpu",
) -> tuple[nn.Module, NDArray[np.float64], float]:
    """A trained model, its thresholds and the AUROC on the fold, by which the best of `encoder_lrs` is taken."""

    def trained(part: Index, rate: float) -> nn.Module:
        return train_classifier(
            make_encoder(), x_mv, n_samples, truth, part, settings, rate, seed, bf16=bf16, device=device
        )

    fit_on, scored = fold
    models = [trained(fit_on, rate) for rate in encoder_lrs]
    best, thresholds, reached = judge(
        [predict(model, x_mv, n_samples, scored, device) for model in models], truth[scored]
    )
    if np.array_equal(fit_on, train):
        return models[best], thresholds, reached
    return trained(train, encoder_lrs[best]), thresholds, reached


def train_classifier(
    encoder: Encoder,
    x_mv: NDArray[np.float32],
    n_samples: NDArray[np.int64],
    truth: Truth,
    train: Index,
    settings: FitSettings,
    encoder_lr: float,
    seed: int,
    *,
    bf16: bool = False,
    device: str = "cpu",
) -> nn.Module:
    """`encoder` (changed in place) and a linear layer, trained on the records `train`."""
    torch.manual_seed(seed)
    model = Classifier(encoder, truth.shape[1]).to(device).train()
    generator = np.random.default_rng([seed, 0xC809])
    length = min(settings.crop_samples, x_mv.shape[2])

    def step_loss(positions: NDArray[np.int64]) -> Tensor:
        records = train[positions]
        starts = crop_starts(n_samples[records], length, generator)
        x = np.stack([x_mv[r, :, s : s + length] for r, s in zip(records, starts, strict=True)])
        valid = torch.from_numpy((n_samples[records] - starts).clip(1, length))
        y = torch.from_numpy((truth[records] == 1).astype(np.float32)).to(device)
        with autocast(bf16, device):
            logits = model(torch.from_numpy(x).to(device), valid.to(device))
        if truth.dtype == np.bool_:
            return functional.binary_cross_entropy_with_logits(logits.float(), y)
        known = torch.from_numpy((truth[records] != IGNORE).astype(np.float32)).to(device)
        summed = functional.binary_cross_entropy_with_logits(logits.float(), y, known, reduction="sum")
        return summed / known.sum().clamp(min=1)

    groups: list[tuple[nn.Module, float]] = [(model.encoder, encoder_lr), (model.head, settings.head_lr)]
    fit(groups, step_loss, len(train), settings, seed)
    return model.eval()


@torch.no_grad()
def predict(
    model: nn.Module, x_mv: NDArray[np.float32], n_samples: NDArray[np.int64], index: Index, device: str = "cpu"
) -> NDArray[np.float64]:
    """Probabilities (len(index), c) of whole records."""
    parts = []
    for first in range(0, len(index), PREDICT_BATCH):
        records = index[first : first + PREDICT_BATCH]
        x = torch.from_numpy(np.array(x_mv[records], np.float32)).to(device)
        logits = model(x, torch.from_numpy(n_samples[records]).to(device))
        parts.append(torch.sigmoid(logits.float()).cpu())
    return torch.cat(parts).double().numpy()


def shuffled_labels(truth: Truth, part: Index, seed: int) -> Truth:
    """A copy of `truth` with the label rows of the records `part` permuted: a probe trained on it scores 0.5.

    Whole rows move, so the classes keep their frequencies and their company; the truth of other records stays.
    """
    permuted = truth.copy()
    permuted[part] = truth[np.random.default_rng([seed, 0x5FFF]).permutation(part)]
    return permuted


def label_subsets(
    patients: Sequence[str | None], train: Index, share: float, fractions: Sequence[float], seed: int, at_least: int
) -> dict[float, Index]:
    """The records that one seed of this task sees: of a random `share` of the training patients, nested fractions."""
    pool = nested_fractions(patients, train, (share,), seed, at_least)[share]
    return nested_fractions(patients, pool, fractions, seed, at_least)


class Classifier(nn.Module):
    """Encoder, its own pool, one linear layer."""

    def __init__(self, encoder: Encoder, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = LinearClassifier(encoder.embed_dim, n_classes)

    def forward(self, x_mv: Tensor, n_samples: Tensor) -> Tensor:
        """Signal (B, 12, T) with valid lengths (B,) to logits (B, c)."""
        logits: Tensor = self.head(self.encoder(x_mv, n_samples))
        return logits
