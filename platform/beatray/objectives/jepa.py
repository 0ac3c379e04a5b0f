"""ECG-JEPA: predict, from a few tokens of a recording, what a slow teacher makes of all the others.

Weimann and Conrad, "Self-Supervised Pre-Training with Joint-Embedding Predictive Architecture Boosts ECG Classification
Performance" (arXiv:2410.13867). The teacher encodes all tokens of a window. The student encodes the 15 to 25 % that are
kept; the others are masked in blocks of at least 10 tokens (augment/token_masks.py). A predictor, half as wide
(models/jepa.py), predicts the teacher's output at the masked ones. Loss and teacher: see latent.py.

`loss=smooth_l1 normalise_targets=true` are the loss and the targets of the other method of this name (Kim,
arXiv:2410.08559); its tokens of single leads and its attention are not here.

Contract: of the T' tokens of a window that hold signal ceil(r T') are kept, at least one, and at least one is masked
where there are two; the blocks are drawn for each recording and epoch. Tokens beyond the signal are neither kept nor
predicted. The student never sees a masked sample. Needs a network that leaves tokens out (`vit`).

Differences from the paper: r is drawn once an epoch for all recordings, not once a batch, so that a view does not
depend on the batch; the teacher moves after a step and not before the next one, which is the same but for accumulated
gradients, where the reference code moves it with every micro-batch; signals are scaled as everywhere here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.augment.draws import Draws
from beatray.augment.token_masks import block_mask
from beatray.augment.two_views import crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, cells_of, chosen_positions
from beatray.models.jepa import TokenPredictor
from beatray.models.vit import ViTSettings
from beatray.objectives.latent import LatentPrediction, LatentSettings
from beatray.objectives.objective import Progress, StepResult, Tensors, needs_tokens
from beatray.objectives.statistics import FeatureStatistics

KEPT, MASKED, NO_SIGNAL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class JepaSettings(LatentSettings):
    """Settings of ECG-JEPA."""

    keep_min: float = setting(0.15, "least part of the tokens that is kept", above=0.0, below=1.0)
    keep_max: float = setting(0.25, "most", above=0.0, below=1.0)
    shortest_block: int = setting(10, "of masked tokens", at_least=1)
    predictor_width: int | None = setting(None, "even, a multiple of its heads; null: half the network's", at_least=2)
    predictor_depth: int | None = setting(None, "null: the network's", at_least=1)
    predictor_heads: int | None = setting(None, "null: the network's", at_least=1)
    predictor_bias: bool = setting(False, "in its linear layers and norms")

    def __post_init__(self) -> None:
        check(self)
        if self.keep_min > self.keep_max:
            raise ValueError(f"keep_min must not be above keep_max, not {self.keep_min:g} and {self.keep_max:g}")


class Jepa(LatentPrediction):
    """The method: see the module text. ValueError for a network that cannot leave tokens out."""

    name = "jepa"
    title = "ECG-JEPA"
    paper = (
        "Weimann and Conrad, Self-Supervised Pre-Training with Joint-Embedding Predictive Architecture Boosts "
        "ECG Classification Performance, 2024, arXiv 2410.13867"
    )
    Settings = JepaSettings

    def __init__(self, encoder: Encoder, settings: JepaSettings, statistics: FeatureStatistics | None = None) -> None:
        network = needs_tokens(encoder, self.title, drops=True)
        super().__init__(encoder, settings, statistics)
        self.stage = network.token_stage
        self.predictor = TokenPredictor(encoder.channels, predictor_settings(encoder, settings))

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """One window `view_1` (B, 12, L), and what becomes of each token: `part` (B, T') int8."""
        s = self.settings
        out = crop_window(batch, s.crop_seconds, draws)
        out["view_1"] = out.pop("plain")
        tokens = -(-out["view_1"].shape[-1] // self.stage.stride)
        cells = cells_of(out["n_valid"], self.stage, tokens).cpu().numpy()
        ratio = s.keep_min + (s.keep_max - s.keep_min) * float(draws.shared("keep_ratio", 1)[0])
        masked = block_mask(draws, "token_blocks", tokens, cells, cells - kept(cells, ratio), s.shortest_block)
        part = np.where(np.arange(tokens) < cells[:, None], np.where(masked, MASKED, KEPT), NO_SIGNAL)
        out["part"] = torch.from_numpy(part.astype(np.int8)).to(out["view_1"].device)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        student = needs_tokens(self.encoder, self.title, drops=True)
        teacher = needs_tokens(self.teacher.module, self.title, drops=True)
        x_mv, n_valid, part = views["view_1"], views["n_valid"], views["part"]
        most_kept, most_masked = self._most(part.shape[1]) if self.static_shapes else (None, None)
        kept_at, kept_there = chosen_positions(part == KEPT, most_kept)
        masked_at, masked_there = chosen_positions(part == MASKED, most_masked)
        whole = not self.static_shapes and bool(  # attention is faster so
            kept_there.all() & masked_there.all() & (part != NO_SIGNAL).all()
        )
        both = None if whole else torch.cat([kept_there, masked_there], dim=1)
        encoded = student.encode(student.tokens(x_mv, n_valid), kept_at, None if whole else kept_there)
        predicted = self.predictor(encoded, kept_at, masked_at, part.shape[1], both)
        with torch.no_grad():
            seen = None if whole else part != NO_SIGNAL
            h = self._targets(teacher.encode(teacher.tokens(x_mv, n_valid), valid=seen))
            target = h.gather(1, masked_at[..., None].expand(-1, -1, h.shape[2]))
        return self._result(predicted, target, masked_there, h, part != NO_SIGNAL)

    def _most(self, tokens: int) -> tuple[int, int]:
        """How many of so many tokens are kept at the most, and how many are masked, in any epoch."""
        all_of_them = np.array([tokens])
        most, least = (int(kept(all_of_them, r)[0]) for r in (self.settings.keep_max, self.settings.keep_min))
        return most, tokens - least

    @classmethod
    def described(cls, settings: JepaSettings) -> str:
        """How much is masked, and the loss if it is not the paper's."""
        masked = f"{1 - settings.keep_max:.0%} to {1 - settings.keep_min:.0%} masked"
        loss = "" if settings.loss == "l1" else ", smooth L1"
        return f"{cls.title}, {masked}{loss}{', normalised targets' if settings.normalise_targets else ''}"


def kept(cells: NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """How many of so many tokens are kept: ceil(ratio cells), but one is masked where there are two."""
    share = np.ceil(np.round(ratio * cells, 9)).astype(np.int64)  # 0.07 of 100 is 7.000000000000001
    return np.maximum(np.minimum(share, cells - 1), 1)


def predictor_settings(encoder: Encoder, settings: JepaSettings) -> ViTSettings:
    """Sizes of the predictor. ValueError where neither the settings nor the network give them, or they do not fit."""
    known = {item.name: getattr(encoder.settings, item.name) for item in fields(encoder.settings)}
    depth, heads = settings.predictor_depth or known.get("depth"), settings.predictor_heads or known.get("heads")
    if depth is None or heads is None:
        raise ValueError(
            f"{encoder.name} has no depth and heads of its own: set objective.predictor_depth and predictor_heads"
        )
    width = settings.predictor_width or encoder.channels // 2
    if width % 2 or width % heads:
        raise ValueError(
            f"the predictor has {width} channels, which must be even and a multiple of its {heads} heads: set "
            "objective.predictor_width or objective.predictor_heads"
        )
    return ViTSettings(width=width, depth=depth, heads=heads, bias=settings.predictor_bias)
