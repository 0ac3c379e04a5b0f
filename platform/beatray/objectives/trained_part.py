"""What of an encoder is trained when it learns from labels, and how fast: the head alone, the last layers, or all.

A frozen part is frozen whole: its weights get no gradient and its batch norms neither measure the batch nor move their
running statistics, so that it is the pretrained encoder to the bit. Layers that are trained learn at

    encoder_lr * layer_decay^d of the head's rate, d = layers between the layer and the head,

the layer-wise decay of Clark et al. (ELECTRA, ICLR 2020, appendix) and Bao et al. (BEiT, ICLR 2022).

`LabelledSettings` and `LabelledObjective` are what all objectives that learn from labels have in common. The last
fields of the settings are no choices: they hold what the labels of a corpus turned out to be, and are filled in before
a run begins, so that a run that is continued must find the same.

To learn from, a window is cropped and lightly changed (augment/light.py); to validate on, it is the whole recording as
it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.light import LightSettings, lightly_changed
from beatray.augment.two_views import crop_window
from beatray.fields import setting
from beatray.models.depth import layers_of
from beatray.models.encoder import Encoder
from beatray.models.labelled_heads import build_head
from beatray.objectives.objective import Curve, Objective, ParameterGroup, Tensors, grouped
from beatray.objectives.statistics import FeatureStatistics

Trained = Literal["head", "last", "all"]

ERRORS = ("loss", "mae")
"""What is better the less there is of it; of all other scores more is better."""


@dataclass(frozen=True, slots=True)
class LabelledSettings:
    """What is learned from, and what of the encoder learns."""

    labels: str = setting("", "what is learned: a label space, waves, age, sex or table")
    seen_tests: Literal["refuse", "leave_out"] = setting(
        "refuse", "test recordings that the encoder was pretrained on; leave_out: counted, and not scored"
    )
    fraction: float = setting(
        1.0, "of the labelled training patients; smaller sets lie in larger", above=0.0, at_most=1.0
    )
    fraction_seed: int | None = setting(
        None, "which patients those are, and who validates where no folds decide it; null: seed", at_least=0
    )
    validation_share: float = setting(
        0.2,
        "of the training patients, where the splits name no labelled recording to validate on",
        above=0.0,
        below=1.0,
    )
    from_scratch: bool = setting(
        False, "the network of the encoder with random weights, to compare with; tested on the same recordings"
    )
    trained: Trained = setting("all", "of the network: head (frozen encoder), last (layers), all")
    last_layers: int = setting(1, "with trained=last: so many", at_least=1)
    encoder_lr: float | None = setting(
        None, "learning rate of the encoder as a part of the head's; null: 0.1, or 1 from random weights", above=0.0
    )
    layer_decay: float = setting(1.0, "each layer nearer to the signal learns so much slower", above=0.0, at_most=1.0)
    augment: LightSettings = setting(LightSettings, "how recordings are varied")
    names: tuple[str, ...] = setting((), "filled in: what the outputs are called")
    targets_sha256: str = setting("", "filled in: of the targets of all recordings trained or validated on")


class LabelledObjective(Objective):
    """Encoder and head, what is trained of them, their views and what chooses the best.

    A subclass sets the head, gives `forward` and `validated`, and names its scores.
    """

    supervised = True

    def __init__(
        self,
        encoder: Encoder,
        settings: LabelledSettings,
        head: dict[str, Any],
        statistics: FeatureStatistics | None = None,
    ) -> None:
        super().__init__(encoder, settings, statistics)
        self.reads = (*Objective.reads, "target")
        self.frozen_modules = freeze(encoder, settings.trained, settings.last_layers)
        self.head_description = head
        self.head = build_head(encoder, head)
        self.train()

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """`view_1` (B, 12, L), n_valid (B,) and the targets."""
        light = self.settings.augment
        out = crop_window(batch, None if draws.validates else light.crop_seconds, draws)
        x_mv, n_valid = out["plain"], out["n_valid"]
        target = self.targets_of(batch["target"], out["crop_start"], x_mv.shape[-1])
        if not draws.validates:
            x_mv = lightly_changed(x_mv, n_valid, light, draws)
        return {"view_1": x_mv, "n_valid": n_valid, "target": target}

    def targets_of(self, target: Tensor, start: Tensor, length: int) -> Tensor:
        """The targets of windows of `length` samples that begin at `start` (B,): those of the recordings."""
        return target

    def selection(self, scores: Mapping[str, float]) -> float:
        """The chosen score, so that less is better; the loss where it is not defined."""
        select = self.settings.select
        name = self.validation_scores(self.settings)[0] if select == "auto" else select
        value = scores.get(f"validation_{name}", float("nan"))
        if not np.isfinite(value):
            return scores["validation_loss"]
        return value if name in ERRORS else -value

    def parameter_groups(self) -> list[ParameterGroup]:
        """The head, and the layers of the encoder that are trained, each at its own rate."""
        s = self.settings
        return layer_groups(self.encoder, self.head.parameters(), s.encoder_lr or 1.0, s.layer_decay)

    @classmethod
    def validation_scores(cls, settings: Any) -> Sequence[str]:
        """The scores that `validated` returns beside the loss; the first selects the best unless `select` is set."""
        raise NotImplementedError(f"{cls.__name__} names no scores")

    @classmethod
    def curves(cls, settings: Any) -> Sequence[Curve]:
        """The scores of the validation."""
        names = cls.validation_scores(settings)
        return [Curve(f"validation_{name}", f"validation: {name}", name not in ERRORS) for name in names]


def trained_text(settings: LabelledSettings, head: str) -> str:
    """A phrase on what is trained; `head` is what the head is called."""
    texts = {"head": f"the {head} alone", "last": f"the last {settings.last_layers} layers", "all": "all layers"}
    return texts[settings.trained]


def freeze(encoder: Encoder, trained: Trained, last_layers: int = 1) -> list[nn.Module]:
    """Take the gradient from what is not trained; returns its modules, which must stay in evaluation mode."""
    layers = layers_of(encoder)
    kept = {"head": 0, "last": min(last_layers, len(layers)), "all": len(layers)}[trained]
    frozen = layers[: len(layers) - kept]
    for _, parameters in frozen:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return [module for modules, _ in frozen for module in modules]


def layer_groups(
    encoder: Encoder, head: Iterable[nn.Parameter], encoder_lr: float, layer_decay: float
) -> list[ParameterGroup]:
    """The head's parameters and those of each layer that is trained, with their learning-rate scales."""
    groups = grouped(head)
    for depth, (_, parameters) in enumerate(reversed(layers_of(encoder))):
        groups += grouped(parameters, encoder_lr * layer_decay**depth)
    return groups
