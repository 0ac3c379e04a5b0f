"""CREMA: fill in what was masked, and identify the recording by the rest (hybrid learning; with weight 0 a plain MAE).

Song et al., "Foundation Models for ECG: Leveraging Hybrid Self-Supervised Learning" (arXiv 2407.07110): a masked
autoencoder (He et al., CVPR 2022) on a signal transformer, regularised by a contrast of two maskings of one window. The
paper's text leaves its numbers open; they follow masked autoencoders of ECGs (Na et al., ST-MEM, ICLR 2024) and are
settings here. A transformer encodes the patches that are kept; a smaller one, with a learned token in every gap, draws
all patches; only masked ones count. With two maskings v and the mean of the kept tokens projected to z_v,

    L = mean over v of [mean over masked patches of (x - x')^2] + contrast_weight * NT-Xent(z_1, z_2).

Contract: of the T' patches of a window that hold signal round((1 - mask_ratio) T') are kept; the targets are leads in
the encoder's own scale. A sample beyond the signal and a lead that is zero throughout count in nothing. The encoder
never sees a masked sample. Needs a network whose tokens are patches that do not overlap and may be left out (`vit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.augment.draws import Draws
from beatray.augment.two_views import VIEWS, crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, at_least_float32, cells_of, valid_cells
from beatray.models.heads import ProjectionHead
from beatray.models.vit import Block, ViTSettings, positions
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_tokens
from beatray.objectives.pairs import nt_xent_term
from beatray.objectives.reduce import embedding_std, global_mean
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.terms import combine_terms


@dataclass(frozen=True, slots=True)
class CremaSettings:
    """Settings of CREMA."""

    crop_seconds: float | None = setting(10.0, "null: the whole record", at_least=0.5)
    mask_ratio: float = setting(0.75, "of the patches", above=0.0, below=1.0)
    contrast_weight: float = setting(0.1, "0: a masked autoencoder alone, with one masking", at_least=0.0)
    temperature: float = setting(0.1, "of the contrast", above=0.0, searchable=True)
    projector_hidden: int = setting(256, at_least=1)
    projector_dim: int = setting(128, at_least=1)
    decoder_width: int = setting(256, "even, a multiple of decoder_heads", at_least=2)
    decoder_depth: int = setting(4, at_least=1)
    decoder_heads: int = setting(4, at_least=1)
    normalise_patches: bool = setting(False, "targets of mean 0 and variance 1 in every patch; hides the amplitude")

    def __post_init__(self) -> None:
        check(self)

    @property
    def maskings(self) -> tuple[int, ...]:
        """The maskings of a window; a contrast needs two."""
        return VIEWS if self.contrast_weight > 0 else VIEWS[:1]


class Crema(Objective):
    """The method: see the module text. ValueError for a network that cannot leave tokens out."""

    name = "crema"
    title = "CREMA"
    paper = (
        "Song et al., Foundation Models for ECG: Leveraging Hybrid Self-Supervised Learning, 2024, arXiv "
        "2407.07110; without the contrast He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR "
        "2022, arXiv 2111.06377"
    )
    Settings = CremaSettings

    def __init__(self, encoder: Encoder, settings: CremaSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.stage = needs_tokens(encoder, self.title, drops=True).token_stage
        self.decoder = PatchDecoder(self.stage.channels, 12 * self.stage.stride, settings)
        if settings.contrast_weight > 0:  # a part that takes no part gets no weights
            self.projector = ProjectionHead(self.stage.channels, settings.projector_hidden, settings.projector_dim)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """One window `view_1` (B, 12, L) and for each masking `order_v` (B, T'), the patches, those kept first."""
        out = crop_window(batch, self.settings.crop_seconds, draws)
        out["view_1"] = out.pop("plain")
        patches = -(-out["view_1"].shape[-1] // self.stage.stride)
        beyond = ~valid_cells(out["n_valid"], self.stage, patches).cpu().numpy()
        for view in self.settings.maskings:
            drawn = draws.uniform("patches", patches, view) + beyond  # what holds no signal comes last
            order = np.argsort(drawn, axis=1, kind="stable")
            out[f"order_{view}"] = torch.from_numpy(order).to(out["view_1"].device)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        s, network = self.settings, needs_tokens(self.encoder, self.title, drops=True)
        x_mv = views["view_1"]
        tokens = network.tokens(x_mv, views["n_valid"])
        orders = torch.cat([views[f"order_{view}"] for view in s.maskings])
        times = len(s.maskings)
        # patches kept of each row: a part of those that hold signal, so fewer in a short recording
        shares = self.kept(cells_of(views["n_valid"], self.stage, tokens.shape[1])).repeat(times)
        most = self.most_kept(tokens.shape[1])
        there = torch.arange(most, device=x_mv.device) < shares[:, None]
        encoded = network.encode(tokens.repeat(times, 1, 1), orders[:, :most], there)
        drawn = self.decoder(encoded, orders, there)
        with torch.autocast(x_mv.device.type, enabled=False):
            target, counts = self._targets(x_mv, views["n_valid"])
            masked = torch.ones_like(orders, dtype=torch.bool).scatter(1, orders[:, :most], ~there)
            errors, known = masked_errors(
                drawn.to(target.dtype), target.repeat(times, 1, 1), counts.repeat(times, 1, 1), masked
            )
        loss, mean = global_mean(errors.sum(), known.sum())
        means = {"loss": mean, "patch/loss": mean}
        pooled = (encoded * there[..., None]).sum(1) / shares[:, None].to(encoded.dtype)
        if s.contrast_weight == 0:
            return StepResult(loss, {**means, "record/embedding_std": embedding_std(unit_rows(pooled))})
        term = nt_xent_term("record", s.contrast_weight, self.projector(pooled), s.temperature)
        contrast = combine_terms([term])
        total = mean + contrast.means["loss"]
        return StepResult(loss + contrast.loss, {**means, **contrast.means, "loss": total}, contrast.counts)

    def kept(self, cells: Tensor) -> Tensor:
        """How many of so many patches are kept: at least one, and at least one is masked where there are two."""
        share = torch.round((1.0 - self.settings.mask_ratio) * cells.double()).long()
        return torch.minimum(share, cells - 1).clamp_min(1)

    def most_kept(self, cells: int) -> int:
        """`kept` of a number that the host knows."""
        share: int = round((1.0 - self.settings.mask_ratio) * cells)
        return max(min(share, cells - 1), 1)

    @classmethod
    def described(cls, settings: CremaSettings) -> str:
        """Whether it is a plain masked autoencoder."""
        kind = f"contrast {settings.contrast_weight:g}" if settings.contrast_weight else "masked autoencoder alone"
        return f"{cls.title}, {settings.mask_ratio:.0%} masked, {kind}"

    @classmethod
    def curves(cls, settings: CremaSettings) -> Sequence[Curve]:
        """Both parts of the loss, and the spread of recordings."""
        contrast, spread = embedding_curves("record")
        return [
            Curve("patch/loss", "error of masked patches"),
            *([contrast] if settings.contrast_weight else []),
            spread,
        ]

    @classmethod
    def warnings(cls, settings: CremaSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse of the contrast; a masked autoencoder alone spreads nothing over a sphere and cannot collapse so."""
        return super().warnings(settings, means, at) if settings.contrast_weight else {}

    def _targets(self, x_mv: Tensor, n_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled patches (B, T', 12 P), and which of their values count."""
        exact = at_least_float32(x_mv)
        target = patches_of(self.encoder.lead_scale(exact), self.stage.stride)
        there = torch.arange(x_mv.shape[-1], device=x_mv.device) < n_valid[:, None]
        counts = patches_of((there[:, None, :] & (x_mv != 0).any(-1, keepdim=True)).to(target.dtype), self.stage.stride)
        if self.settings.normalise_patches:
            target = normalised(target, counts)
        return target, counts


class PatchDecoder(nn.Module):
    """Kept tokens and their positions to all patches: a learned token in the gaps, blocks, a linear layer."""

    def __init__(self, width_in: int, patch_values: int, settings: CremaSettings) -> None:
        super().__init__()
        width = settings.decoder_width
        sizes = ViTSettings(width=width, depth=settings.decoder_depth, heads=settings.decoder_heads)
        self.enter = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.mask_token.no_decay = True  # type: ignore[attr-defined]
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.out = nn.Linear(width, patch_values)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, order: Tensor, there: Tensor | None = None) -> Tensor:
        """encoded (B, K, D) of patches order[:, :K], order (B, T') -> (B, T', values of a patch), in time order.

        Where `there` (B, K) is false the token counts as a gap.
        """
        kept = self.enter(encoded)
        if there is not None:
            kept = torch.where(there[..., None], kept, self.mask_token.to(kept.dtype))
        gaps = self.mask_token.to(kept.dtype).expand(len(kept), order.shape[1] - kept.shape[1], -1)
        back = order.argsort(1)[..., None].expand(-1, -1, kept.shape[2])
        x = torch.cat([kept, gaps], dim=1).gather(1, back)
        x = x + positions(x.shape[1], x.shape[2], x)
        for block in self.blocks:
            x = block(x, None)
        out: Tensor = self.out(self.norm(x))
        return out


def patches_of(x: Tensor, patch: int) -> Tensor:
    """(B, L, T) -> (B, ceil(T / patch), L patch): patch j holds the `patch` (odd) samples around sample j * patch.

    Beyond both ends there are zeros.
    """
    count = -(-x.shape[-1] // patch)
    left = patch // 2
    padded = functional.pad(x, (left, max(count * patch - left - x.shape[-1], 0)))[..., : count * patch]
    patches: Tensor = padded.unflatten(-1, (count, patch)).transpose(1, 2).flatten(2)
    return patches


def normalised(patches: Tensor, counts: Tensor) -> Tensor:
    """Each patch with mean 0 and variance 1 over the values of it that count, the others 0: (B, T', V) twice."""
    n = counts.sum(-1, keepdim=True).clamp_min(1.0)
    away = (patches - (patches * counts).sum(-1, keepdim=True) / n) * counts
    return away / (away.square().sum(-1, keepdim=True) / n + 1e-6).sqrt()


def masked_errors(drawn: Tensor, target: Tensor, counts: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """For each row its mean over masked patches of the mean squared error over the values that count, and whether it
    has any: drawn, target, counts (B, T', V), masked (B, T') -> (B,), (B,) of 0 and 1."""
    values = counts.sum(-1)
    of_patch = ((drawn - target).square() * counts).sum(-1) / values.clamp_min(1.0)
    scored = masked & (values > 0)
    patches = scored.sum(1)
    return (of_patch * scored).sum(1) / patches.clamp_min(1), (patches > 0).to(of_patch.dtype)
