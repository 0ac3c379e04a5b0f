"""Learning from marked waves: which samples are P wave, QRS complex, T wave.

    mean over scored samples of the cross-entropy
    + dice_weight * (1 - mean over P, QRS, T of (2 sum p t + 1) / (sum p + sum t + 1)),

p the softmax over the classes, t the one-hot truth, sums over the scored samples of the global batch (soft Dice:
Milletari et al., 3DV 2016). A sample that is not scored counts in nothing. The decoders are those of
models/segmentation.py; with a target for each lead the last layer has four classes for each of 12 leads.

Contract: `target` (B, 5000) or (B, 12, 5000) int8 as `evaluate.labels` makes it, -1 where a sample is not scored; it is
cropped with its recording. In evaluation mode the outputs are counts of samples for each recording and wave, (B, 3): in
both, in the truth, in the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from beatray.augment.crops import crop
from beatray.evaluate.metrics import IGNORE, SegmentCounts, mean_of_known, pooled_f1, record_dice
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, at_least_float32
from beatray.models.segmentation import CLASSES
from beatray.objectives.objective import Curve, Progress, StepResult, Tensors
from beatray.objectives.reduce import counted_mean, gather_rows, world_size
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.trained_part import LabelledObjective, LabelledSettings, trained_text
from beatray.record import LEADS

N_CLASSES = len(CLASSES)
SCORES = ("f1", "dice")


@dataclass(frozen=True, slots=True)
class SegmentationSettings(LabelledSettings):
    """Settings of learning from marked waves."""

    leads: Literal["shared", "per_lead"] = setting("shared", "one mask for all leads, or one for each")
    min_leads: int = setting(3, "leads that must mark a sample, with leads=shared", at_least=1, at_most=12)
    decoder: Literal["conv", "unet"] = setting("conv", "conv reads the last feature map, unet all of them")
    decoder_depth: int = setting(2, "convolutions of conv; 0: a linear layer of every cell", at_least=0)
    decoder_channels: int = setting(64, "of conv", at_least=1)
    decoder_kernel: int = setting(9, "of conv; odd", at_least=1)
    dice_weight: float = setting(1.0, at_least=0.0)
    select: Literal["auto", "f1", "dice", "loss"] = setting("auto", "the score of the best checkpoint; auto: f1")

    def __post_init__(self) -> None:
        check(self)
        if self.decoder_kernel % 2 == 0:
            raise ValueError(f"decoder_kernel must be odd, not {self.decoder_kernel}")


class Segmentation(LabelledObjective):
    """The objective: see the module text."""

    name = "segmentation"
    title = "Segmentation"
    Settings = SegmentationSettings
    views_text = "A view is the stretch whose waves are learned."
    mean_over = "scored_samples"

    def __init__(
        self, encoder: Encoder, settings: SegmentationSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        super().__init__(encoder, settings, described_decoder(settings), statistics)

    def targets_of(self, target: Tensor, start: Tensor, length: int) -> Tensor:
        """The target of the same samples as the signal's, (B, M, L), M masks; what is filled in is not scored."""
        masks = target[:, None] if target.dim() == 2 else target
        return crop(masks - IGNORE, start.cpu(), length) + IGNORE

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        x_mv, target = views["view_1"], views["target"].long()
        logits = self.head(self.encoder.forward_stages(x_mv, views["n_valid"]), x_mv.shape[-1])
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits).unflatten(1, (-1, N_CLASSES))  # (B, M, 4, L)
            scored = (target != IGNORE).to(logits.dtype)
            truth = target.clamp_min(0)
            errors = functional.cross_entropy(logits.movedim(2, 1), truth, reduction="none") * scored
            loss, entropy, count = counted_mean(errors.sum(), scored.sum())
            dice = self._dice(logits, truth, scored)
        means = {"entropy": entropy, "dice_loss": dice.detach().float()}
        total = entropy + self.settings.dice_weight * means["dice_loss"]
        found = {} if self.training else counts_of(logits.detach().argmax(2), target)
        return StepResult(
            loss + self.settings.dice_weight * dice,
            {"loss": total, **{f"waves/{name}": value for name, value in means.items()}},
            {"scored_samples": count},
            found,
        )

    def _dice(self, logits: Tensor, target: Tensor, scored: Tensor) -> Tensor:
        """1 - soft Dice over the global batch. Every rank has the same value, and the gradient of its own rows."""
        chance = logits.softmax(2) * scored[:, :, None]
        truth = functional.one_hot(target, N_CLASSES).movedim(-1, 2) * scored[:, :, None]
        sums = torch.stack([(chance * truth).sum((0, 1, 3)), (chance + truth).sum((0, 1, 3))])[None, :, 1:]
        both, total = gather_rows(sums, [1] * world_size()).sum(0)
        dice: Tensor = ((2.0 * both + 1.0) / (total + 1.0)).mean()
        return 1.0 - dice

    def validated(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """F1 of samples pooled over recordings, and the mean Dice of recordings, of each lead that has its own mask."""
        found = (outputs[name].astype(np.int64) for name in ("both", "truth", "predicted"))
        counts = SegmentCounts(*(each.reshape(-1, each.shape[-1]) for each in found))
        return {"f1": pooled_f1(counts).value, "dice": mean_of_known(record_dice(counts))}

    @classmethod
    def described(cls, settings: SegmentationSettings) -> str:
        """By which decoder, and with what of the encoder."""
        return f"{cls.title}, {settings.decoder} decoder, {trained_text(settings, 'decoder')}"

    @classmethod
    def validation_scores(cls, settings: SegmentationSettings) -> Sequence[str]:
        """The same for all settings."""
        return SCORES

    @classmethod
    def curves(cls, settings: SegmentationSettings) -> Sequence[Curve]:
        """Both parts of the loss, and the scores of the validation."""
        parts = [Curve("waves/entropy", "cross-entropy"), Curve("waves/dice_loss", "1 - soft Dice", True)]
        return [*parts, *super().curves(settings)]


def described_decoder(settings: SegmentationSettings) -> dict[str, Any]:
    """The decoder, as `build_head` takes it: feature maps to logits (B, 4 M, L), M masks."""
    outputs = N_CLASSES * (len(LEADS) if settings.leads == "per_lead" else 1)
    if settings.decoder == "unet":
        return {"name": "unet", "outputs": outputs}
    sizes = {"depth": settings.decoder_depth, "hidden": settings.decoder_channels, "kernel": settings.decoder_kernel}
    return {"name": "conv", "outputs": outputs, **sizes}


def counts_of(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Scored samples of each mask of each recording (B, M, L) by wave: (B, M, 3) each."""
    waves = torch.arange(1, N_CLASSES, device=target.device)[:, None, None]
    scored = (target != IGNORE)[:, None]
    truth, found = (target[:, None] == waves) & scored, (predicted[:, None] == waves) & scored
    named = {"both": truth & found, "truth": truth, "predicted": found}
    return {name: marked.sum(3).transpose(1, 2) for name, marked in named.items()}
