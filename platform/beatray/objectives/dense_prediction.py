"""Prediction of tokens beside other terms: what a method with a map for its own ends needs to predict in it, too.

The loss is that of CPC (token_prediction.py). Where a network has a causal context (s4d, lstm), its tokens and contexts
are used, and the map that other terms read is made of them: one pass serves all (`context=encoder`). Of any other
network with local cells (tiny, xresnet1d) the last map's cells are the tokens, and causal S4D layers over them, one
stack per direction of time, make the contexts (`context=head`); they belong to the method and are not exported. `auto`
takes the encoder's context where there is one.

Cells of a convolutional map overlap: with a `horizon_s` that is shorter than what a cell sees to both sides together,
part of what is to be predicted has been seen, and the task gets easier (0.87 s of xresnet1d50, 0.88 s of tiny; with
`norm=group` cells know the mean and the spread of all others besides). A network whose cells see the whole recording
(transformers, two-sided filters) has no use for a causal head and is refused.

`signal` is where tokens are predicted. plain, the default: the crop itself, which `feature_weight` encodes anyway.
views: both views, in the pass that contrast makes. There each lead is hidden for a stretch of its own, and which leads
are hidden at a moment sets this moment apart from others of the recording without a look at the heart.

Contract: `encode` gives the network's last map (B, C, T') and the `Tokens` of the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Stage, TokenEncoder, valid_cells
from beatray.models.s4d import S4Block, S4DSettings
from beatray.objectives.objective import needs_tokens
from beatray.objectives.token_prediction import PredictionSettings, TokenPrediction

DIRECTIONS = ("forward", "backward")
_USUAL_STRIDE = 8
"""Samples per token that the time constants of S4D begin with by default are meant for: those of s4d_tiny."""


@dataclass(frozen=True, slots=True)
class DensePredictionSettings(PredictionSettings):
    """What is predicted, where, and by which context."""

    signal: Literal["plain", "views"] = setting("plain", "where tokens are predicted: the crop itself, or its views")
    context: Literal["auto", "encoder", "head"] = setting(
        "auto", "encoder: its own causal context; head: causal layers over its last map; auto: encoder, if it has one"
    )
    head_layers: int = setting(2, "of each direction of a head", at_least=1)

    def __post_init__(self) -> None:
        check(self)


class Tokens(NamedTuple):
    """Tokens (B, T', D), their context (B, T', C) in each direction, and valid samples (B,)."""

    z: Tensor
    contexts: tuple[Tensor, ...]
    n_valid: Tensor


class CausalHead(nn.Module):
    """S4D layers over the cells of a map, a stack for each direction of time, at the width of the map."""

    def __init__(self, stage: Stage, layers: int) -> None:
        super().__init__()
        longer = stage.stride / _USUAL_STRIDE  # fewer tokens a second: the same times are as many tokens less
        usual = S4DSettings()
        settings = S4DSettings(
            width=stage.channels, dropout=0.0, dt_min=usual.dt_min * longer, dt_max=usual.dt_max * longer
        )
        self.stacks = nn.ModuleList(nn.ModuleList(S4Block(settings) for _ in range(layers)) for _ in DIRECTIONS)

    def forward(self, tokens: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """(B, T', C), valid (B, T') bool -> contexts (B, T', C): token t knows 0..t in the first, t.. in the second."""
        contexts = []
        for stack, backward in zip(self.stacks, (False, True), strict=True):
            x, there = tokens.transpose(1, 2), valid[:, None]
            if backward:
                x, there = x.flip(-1), there.flip(-1)
            for block in stack:  # type: ignore[attr-defined]
                x = block(x, there)
            contexts.append((x.flip(-1) if backward else x).transpose(1, 2))
        return tuple(contexts)


class DensePrediction(nn.Module):
    """Predictors and, where the network has no causal context, a head. ValueError where neither goes."""

    def __init__(self, encoder: Encoder, settings: DensePredictionSettings, crop_seconds: float | None, title: str):
        super().__init__()
        self.settings = settings
        directions: tuple[str, ...] = getattr(encoder, "directions", ()) if isinstance(encoder, TokenEncoder) else ()
        of_encoder = settings.context == "encoder" or (settings.context == "auto" and bool(directions))
        if of_encoder:
            network = needs_tokens(encoder, f"{title} with objective.prediction.context=encoder", causal=True)
            stage, width = network.token_stage, encoder.channels // len(network.directions)
            self.head: CausalHead | None = None
        else:
            if isinstance(encoder, TokenEncoder):
                either = "; take context=encoder" if directions else " as it is set"
                raise ValueError(
                    f"a causal head of objective.prediction needs a network whose cells are local (such as tiny or "
                    f"xresnet1d50), and cells of {encoder.name} have seen what is to be predicted{either}"
                )
            stage, width, directions = encoder.stages[-1], encoder.channels, DIRECTIONS
            self.head = CausalHead(stage, settings.head_layers)
        self.of = TokenPrediction(settings, stage, directions)
        self.of.check_crop(crop_seconds, "objective.augment.crop_seconds", "objective.prediction.horizon_s")
        self.predictors = self.of.predictors(width)

    def encode(self, encoder: Encoder, x_mv: Tensor, n_valid: Tensor) -> tuple[Tensor, Tokens]:
        """One pass of the network: its last map (B, C, T') and its tokens."""
        if self.head is not None:
            fmap = encoder.forward_features(x_mv, n_valid)
            z = fmap.transpose(1, 2)
            return fmap, Tokens(z, self.head(z, valid_cells(n_valid, self.of.stage, z.shape[1])), n_valid)
        network = needs_tokens(encoder, encoder.name, causal=True)
        z = network.tokens(x_mv, n_valid)
        context = network.encode(z, valid=valid_cells(n_valid, self.of.stage, z.shape[1]))
        return context.transpose(1, 2), Tokens(z, context.chunk(len(self.of.directions), dim=-1), n_valid)
