"""The segmentation task: which samples are P wave, QRS complex, T wave.

Three protocols, on the shared LUDB target (`labels.wave_mask`) or on one target per lead (`labels.lead_masks`), for
which the decoder's last layer has four classes for each of 12 leads. `linear`: the encoder stays as it is, its feature
maps are computed once, and one linear layer reads every cell of them on its own. `frozen`: the same with a light
convolutional decoder, which also sees the neighbours. `finetune`: encoder and decoder are trained end to end on random
5-s crops. Started from random weights, the first two are the "random weights" controls and the third
training from scratch.

Loss: cross-entropy plus soft Dice over P, QRS and T (Milletari et al., 3DV 2016, eq. for the Dice coefficient, here
pooled over the batch), on scored samples alone.

Contract: `x_mv` (n, 12, 5000) float32 at 500 Hz, `target` (n, 5000) or (n, 12, 5000) int8 with `metrics.IGNORE`;
predictions are int8 of the same shape.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from beatray.evaluate.fit import crop_starts, fit
from beatray.evaluate.metrics import IGNORE
from beatray.evaluate.settings import FitSettings
from beatray.evaluate.split import Index
from beatray.models.encoder import Encoder, Stage
from beatray.models.segmentation import CLASSES, ConvDecoder, UNetDecoder

DECODER_DEPTH = 2
DECODER_CHANNELS = 64
DECODER_KERNEL = 9
PREDICT_BATCH = 16
N_CLASSES = len(CLASSES)


def train_decoder(
    maps: Tensor,
    target: NDArray[np.int8],
    stage: Stage,
    settings: FitSettings,
    seed: int,
    device: str = "cpu",
    depth: int = DECODER_DEPTH,
) -> nn.Module:
    """A decoder trained on frozen feature maps (n, C, T'); channels are standardised inside it; depth 0 is linear."""
    torch.manual_seed(seed)
    head = conv_decoder(stage, depth, leads_of(target))
    decoder = ScaledDecoder(maps.mean(dim=(0, 2)), maps.std(dim=(0, 2)), head).to(device)
    truth = torch.from_numpy(target.astype(np.int64))

    def step_loss(positions: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(positions)
        return segmentation_loss(decoder(maps[rows].to(device), truth.shape[-1]), truth[rows].to(device))

    fit([(decoder, settings.head_lr)], step_loss, len(maps), settings, seed)
    return decoder.eval()


@torch.no_grad()
def predict_from_maps(decoder: nn.Module, maps: Tensor, n_samples: int, device: str = "cpu") -> NDArray[np.int8]:
    """Class of every sample, (n, n_samples) or (n, 12, n_samples), by the largest logit."""
    parts = [_classes(decoder(part.to(device), n_samples)) for part in maps.split(PREDICT_BATCH)]
    return torch.cat(parts).to(torch.int8).cpu().numpy()


def finetune(
    encoder: Encoder,
    x_mv: NDArray[np.float32],
    target: NDArray[np.int8],
    train: Index,
    settings: FitSettings,
    encoder_lr: float,
    seed: int,
    *,
    decoder: str = "conv",
    bf16: bool = False,
    device: str = "cpu",
) -> nn.Module:
    """Train `encoder` (changed in place) and a new decoder on the records `train`; signal to logits in one module."""
    torch.manual_seed(seed)
    leads = leads_of(target)
    head = conv_decoder(encoder.stages[-1], leads=leads)
    if decoder == "unet":
        head = UNetDecoder(encoder.stages, classes=leads * N_CLASSES)
    model = Segmenter(encoder, head).to(device).train()
    generator = np.random.default_rng([seed, 0xC809])
    length = min(settings.crop_samples, x_mv.shape[2])

    def step_loss(positions: NDArray[np.int64]) -> Tensor:
        records = train[positions]
        starts = crop_starts(np.full(len(records), x_mv.shape[2]), length, generator)
        x = np.stack([x_mv[r, :, s : s + length] for r, s in zip(records, starts, strict=True)])
        y = np.stack([target[r, ..., s : s + length] for r, s in zip(records, starts, strict=True)]).astype(np.int64)
        with autocast(bf16, device):
            logits = model(torch.from_numpy(x).to(device))
        return segmentation_loss(logits.float(), torch.from_numpy(y).to(device))

    groups: list[tuple[nn.Module, float]] = [(encoder, encoder_lr), (head, settings.head_lr)]
    fit(groups, step_loss, len(train), settings, seed)
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, x_mv: NDArray[np.float32], device: str = "cpu") -> NDArray[np.int8]:
    """Class of every sample, (n, 5000) or (n, 12, 5000), of whole records."""
    parts = []
    for first in range(0, len(x_mv), PREDICT_BATCH):
        x = torch.from_numpy(np.array(x_mv[first : first + PREDICT_BATCH], np.float32)).to(device)
        parts.append(_classes(model(x)).to(torch.int8).cpu())
    return torch.cat(parts).numpy()


def segmentation_loss(logits_bct: Tensor, target_bt: Tensor) -> Tensor:
    """Cross-entropy + (1 - mean soft Dice of P, QRS, T) over the samples that are not `IGNORE`; 0 if none is left.

    With a target per lead (B, 12, T), the logits (B, 48, T) count as those of 12 B records.
    """
    logits_bct = logits_bct.unflatten(1, (-1, N_CLASSES)).flatten(0, 1)
    target_bt = target_bt.reshape(-1, target_bt.shape[-1])
    scored = target_bt != IGNORE
    if not bool(scored.any()):
        return logits_bct.sum() * 0.0
    entropy = functional.cross_entropy(logits_bct, target_bt, ignore_index=IGNORE)
    chance = logits_bct.softmax(dim=1) * scored.unsqueeze(1)
    truth = functional.one_hot(target_bt.clamp(min=0), logits_bct.shape[1]).movedim(2, 1) * scored.unsqueeze(1)
    both = (chance * truth).sum(dim=(0, 2))[1:]
    total = (chance + truth).sum(dim=(0, 2))[1:]
    return entropy + 1.0 - ((2 * both + 1.0) / (total + 1.0)).mean()


def autocast(bf16: bool, device: str) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic where asked for."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=bf16)


def conv_decoder(stage: Stage, depth: int = DECODER_DEPTH, leads: int = 1) -> nn.Module:
    """The light decoder: feature map (B, C, T') to logits (B, 4 leads, samples)."""
    return ConvDecoder(stage, depth=depth, hidden=DECODER_CHANNELS, kernel=DECODER_KERNEL, classes=leads * N_CLASSES)


def leads_of(target: NDArray[np.int8]) -> int:
    """How many masks a record has: 1 if it is shared."""
    return target.shape[1] if target.ndim == 3 else 1


def _classes(logits_bkt: Tensor) -> Tensor:
    """The class with the largest logit: (B, 4, T) -> (B, T), (B, 48, T) -> (B, 12, T)."""
    found: Tensor = logits_bkt.unflatten(1, (-1, N_CLASSES)).argmax(dim=2)
    return found[:, 0] if found.shape[1] == 1 else found


class ScaledDecoder(nn.Module):
    """A decoder on standardised channels (fixed numbers), so that encoders of any output scale meet the same one."""

    mean: Tensor
    sd: Tensor

    def __init__(self, mean_c: Tensor, sd_c: Tensor, decoder: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", mean_c[:, None])
        self.register_buffer("sd", sd_c.clamp(min=1e-6)[:, None])
        self.decoder = decoder

    def forward(self, fmap_bct: Tensor, n_samples: int) -> Tensor:
        """(B, C, T') to logits (B, 4, n_samples)."""
        logits: Tensor = self.decoder([(fmap_bct - self.mean) / self.sd], n_samples)
        return logits


class Segmenter(nn.Module):
    """Encoder and decoder in one."""

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x_mv: Tensor) -> Tensor:
        """Signal (B, 12, T) to logits (B, 4, T)."""
        logits: Tensor = self.decoder(self.encoder.forward_stages(x_mv), x_mv.shape[2])
        return logits
