"""What of an encoder is trained when it learns from labels, and how fast: the head alone, the last layers, or all.

A frozen part is frozen whole: its weights get no gradient and its batch norms neither measure the batch nor move their
running statistics, so that it is the pretrained encoder to the bit. Layers that are trained learn at

    encoder_lr * layer_decay^d of the head's rate, d = layers between the layer and the head,

the layer-wise decay of Clark et al. (ELECTRA, ICLR 2020, appendix) and Bao et al. (BEiT, ICLR 2022).

`LabelledSettings` is what all objectives that learn from labels have in common. The last fields are no choices: they
say what the labels of a corpus turned out to be, and are filled in before a run begins, so that a run that is continued
must find the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from beatray.augment.light import LightSettings
from beatray.fields import setting
from beatray.models.depth import layers_of
from beatray.models.encoder import Encoder
from beatray.objectives.objective import ParameterGroup, grouped

Trained = Literal["head", "last", "all"]


@dataclass(frozen=True, slots=True)
class LabelledSettings:
    """What is learned from, and what of the encoder learns."""

    labels: str = setting("", "what recordings are taught: a label space, waves, age, sex or table")
    seen_tests: Literal["refuse", "leave_out"] = setting(
        "refuse", "test recordings that the encoder was pretrained on; leave_out: counted, and not scored"
    )
    fraction: float = setting(
        1.0, "of the labelled training patients; smaller sets lie in larger", above=0.0, at_most=1.0
    )
    fraction_seed: int | None = setting(
        None, "which patients those are, and who validates where no folds say so; null: seed", at_least=0
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
