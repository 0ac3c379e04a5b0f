"""S4-JEPA: predict, through gaps in the tokens of a network that filters in time, what a slow teacher makes of them.

Latent masked prediction on state-space networks, as in a study of pretraining on ECGs (arXiv:2605.12241). Half of the
tokens that the stem makes are replaced, in spans, by a learned token; the network keeps its even spacing in time, so
that nothing is left out. A predictor of one block that sees both sides predicts the teacher's output at the gaps. Loss
and teacher: see latent.py; the targets are of mean 0 and variance 1 over the channels,

    targets=jepa      LN(output of the last layer)
    targets=data2vec  LN(mean of the outputs of the last `top_layers` layers)   (Baevski et al., ICML 2022).

Contract: round(mask_part T') of the T' tokens that hold signal are masked, at least one where there are two and never
all, in spans of `span_min_s` to `span_max_s` that may border on each other (augment/token_masks.py). The stem looks a
few samples into a gap; a span is much longer. Needs a network whose tokens see both sides, and for data2vec one that
shows its layers (`s4d`). Where a network could drop tokens they hold their positions: the learned one gets those of
`vit`.

Differences from the study: it masks with a start probability that it divides by the span again, so that about 6 % are
masked for Data2Vec and the last token never is; it takes blocks of 15 to 20 % for JEPA and sums Data2Vec's loss over
channels. Here both mask alike and take the mean. A linear layer follows the block: its norm alone would fix the length
of a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.token_masks import block_mask
from beatray.augment.two_views import crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, LayerEncoder, cells_of, valid_cells
from beatray.models.s4d import S4Block, S4DSettings
from beatray.models.vit import positions
from beatray.objectives.latent import LatentPrediction, LatentSettings
from beatray.objectives.objective import Progress, StepResult, Tensors, needs_tokens
from beatray.objectives.statistics import FeatureStatistics
from beatray.record import RATE_HZ


@dataclass(frozen=True, slots=True)
class S4JepaSettings(LatentSettings):
    """Settings of S4-JEPA."""

    crop_seconds: float | None = setting(5.0, "null: the whole record", at_least=0.5)
    loss: Literal["l1", "smooth_l1"] = setting("smooth_l1", "of a coordinate of a masked token")
    normalise_targets: bool = setting(True, "each target to mean 0 and variance 1 over its coordinates")
    targets: Literal["jepa", "data2vec"] = setting("jepa", "jepa: of the last layer; data2vec: of the top layers")
    top_layers: int = setting(2, "of data2vec, or all where there are fewer", at_least=1)
    mask_part: float = setting(0.5, "of the tokens", above=0.0, below=1.0)
    span_min_s: float = setting(0.16, "shortest masked span", above=0.0)
    span_max_s: float = setting(0.25, "longest; spans may border on each other", above=0.0)
    predictor_state: int = setting(16, "real state size of the predictor's block; even", at_least=2)
    predictor_dropout: float = setting(0.2, "of whole channels", at_least=0.0, below=1.0)

    def __post_init__(self) -> None:
        check(self)
        if self.span_min_s > self.span_max_s:
            raise ValueError(f"span_min_s must not be above span_max_s, not {self.span_min_s:g}, {self.span_max_s:g}")


class S4Jepa(LatentPrediction):
    """The method: see the module text. ValueError for a network whose tokens see one side only."""

    name = "s4_jepa"
    title = "S4-JEPA"
    paper = (
        "a study of pretraining on ECGs, 2026, arXiv 2605.12241; targets=data2vec Baevski et al., data2vec, "
        "ICML 2022, arXiv 2202.03555"
    )
    Settings = S4JepaSettings

    def __init__(self, encoder: Encoder, settings: S4JepaSettings, statistics: FeatureStatistics | None = None) -> None:
        network = needs_tokens(encoder, self.title)
        if len(network.directions) == 1:
            raise ValueError(
                f"{self.title} needs a network that sees both sides of a gap, and {encoder.name} sees only what came "
                "before as it is set: set encoder.direction=bidirectional, or both"
            )
        if settings.targets == "data2vec" and not isinstance(encoder, LayerEncoder):
            raise ValueError(
                f"objective.targets=data2vec needs a network that shows its layers (encode_layers), which "
                f"{encoder.name} does not; take objective.targets=jepa"
            )
        super().__init__(encoder, settings, statistics)
        self.stage = network.token_stage
        spans_s = (settings.span_min_s, settings.span_max_s)
        self.spans = [max(1, round(span_s * RATE_HZ / self.stage.stride)) for span_s in spans_s]
        self.mask_token = nn.Parameter(torch.empty(self.stage.channels))
        self.mask_token.no_decay = True  # type: ignore[attr-defined]
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predictor = _Predictor(encoder.channels, settings)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """One window `view_1` (B, 12, L) and which of its tokens are masked: `masked` (B, T') bool."""
        out = crop_window(batch, self.settings.crop_seconds, draws)
        out["view_1"] = out.pop("plain")
        tokens = -(-out["view_1"].shape[-1] // self.stage.stride)
        cells = cells_of(out["n_valid"], self.stage, tokens).cpu().numpy()
        share = np.rint(self.settings.mask_part * cells).astype(np.int64)
        quota = np.minimum(np.maximum(share, 1), cells - 1)
        masked = block_mask(draws, "token_spans", tokens, cells, quota, *self.spans)
        out["masked"] = torch.from_numpy(masked).to(out["view_1"].device)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        student = needs_tokens(self.encoder, self.title)
        x_mv, n_valid, masked = views["view_1"], views["n_valid"], views["masked"]
        there = valid_cells(n_valid, self.stage, masked.shape[1])
        tokens = student.tokens(x_mv, n_valid)
        gap = self.mask_token.to(tokens.dtype)
        if student.drops_tokens:
            gap = gap + positions(tokens.shape[1], tokens.shape[2], tokens)
        seen = torch.where(masked[..., None], gap, tokens)
        predicted = self.predictor(student.encode(seen, valid=there), there)
        with torch.no_grad():
            h = self._targets(self._compared(x_mv, n_valid, there))
        return self._result(predicted, h, masked, h, there)

    @classmethod
    def described(cls, settings: S4JepaSettings) -> str:
        """How much is masked, and what the targets are."""
        of = "last layer" if settings.targets == "jepa" else f"mean of the top {settings.top_layers} layers"
        return f"{cls.title}, {settings.mask_part:.0%} masked, targets of the {of}"

    def _compared(self, x_mv: Tensor, n_valid: Tensor, there: Tensor) -> Tensor:
        """What the teacher makes of the whole signal, (B, T', channels), before it is normalised."""
        encoder = self.teacher.module
        tokens = needs_tokens(encoder, self.title).tokens(x_mv, n_valid)
        if self.settings.targets == "jepa" or not isinstance(encoder, LayerEncoder):
            return needs_tokens(encoder, self.title).encode(tokens, valid=there)
        top = encoder.encode_layers(tokens, there)[-self.settings.top_layers :]
        return torch.stack(top).mean(0)


class _Predictor(nn.Module):
    """One S4D block that sees both sides, and a linear layer: (B, T', channels) -> (B, T', channels)."""

    def __init__(self, channels: int, settings: S4JepaSettings) -> None:
        super().__init__()
        sizes = {"state": settings.predictor_state, "dropout": settings.predictor_dropout}
        self.block = S4Block(S4DSettings(width=channels, direction="bidirectional", **sizes))  # type: ignore[arg-type]
        self.out = nn.Linear(channels, channels)

    def forward(self, context: Tensor, there: Tensor) -> Tensor:
        out: Tensor = self.out(self.block(context.transpose(1, 2), there[:, None]).transpose(1, 2))
        return out
