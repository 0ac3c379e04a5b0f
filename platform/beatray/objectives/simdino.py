"""SimDINO: a student's crops predict a slow teacher's output for larger crops; a coding rate keeps directions in use.

Wu et al., "Simplifying DINO via Coding Rate Regularization" (ICML 2025, arXiv 2502.10385), as set up for ECGs by xECG
(arXiv 2509.10151). Of one window come two global and some local crops. The student sees all, the teacher, a moving
average of it, the global ones. With unit projections s_v of the student and t_g of the teacher, n records and d
dimensions,

    L = -coefficient * mean over records and pairs v != g of cos(t_g, s_v) - expansion * gamma * R,
    R = mean over the student's global crops of 1/2 logdet(I + d / (n eps) Z^T Z),   gamma = (d + n) / (d n),

Z (n, d) the rows of one crop over the global batch. R is greatest where all directions are used alike,
d/2 ln(1 + 1/eps), and 1/2 ln(1 + d/eps) where all rows are equal; so there are no centring, no prototypes and no
temperatures. SimDINOv2 (`patch_weight` above 0) lets the student see its global crops with blocks of patches hidden
and takes minus patch_weight times the mean cosine of its and the teacher's projections of these patches.

What differs from the papers: crops are cuts of a window, never stretched, since that would change intervals; of the
other transformations of xECG only the loss of leads is here; the projector has two layers and no batch norm; what is
hidden is zero in the signal, so that no convolution sees over its edge, and a learned vector is added to its tokens.

Contract: only Z^T Z travels between ranks, with its gradient. A short recording is cut within its signal where that is
long enough; hidden patches lie within the signal. The patch term needs a network that makes tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beatray.augment.crops import crop, draw_starts
from beatray.augment.draws import Draws
from beatray.augment.lead_masks import mask_leads
from beatray.augment.token_masks import block_mask
from beatray.augment.two_views import crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Stage, cells_of, chosen_positions, valid_cells
from beatray.models.heads import ProjectionHead
from beatray.objectives.coding_rate import coding_rate, rate_share
from beatray.objectives.contrast import unit_rows
from beatray.objectives.ema import Teacher, linear_momentum
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_tokens
from beatray.objectives.reduce import embedding_std, gather_rows, global_mean, sum_over_ranks, world_size
from beatray.objectives.statistics import FeatureStatistics
from beatray.record import RATE_HZ

GLOBALS = ("view_1", "view_2")
MIN_BLOCK_S = 0.2
"""Patches are hidden in blocks of at least this length, as far as so many are to be hidden."""

MIN_CODING_RATE = 0.1
"""Of its way from equal rows to balanced ones: below, embeddings count as collapsed."""


@dataclass(frozen=True, slots=True)
class SimDinoSettings:
    """Settings of SimDINO."""

    crop_seconds: float | None = setting(10.0, "the window that is cut up; null: the whole record", at_least=0.5)
    global_part: float = setting(0.8, "of the window, each of the two global crops", above=0.0, at_most=1.0)
    local_part: float = setting(0.4, "of the window, each local crop", above=0.0, at_most=1.0)
    local_crops: int = setting(4, at_least=0)
    lead_drop: float = setting(
        0.2, "probability that a lead of a crop is zero", at_least=0.0, below=1.0, searchable=True
    )
    momentum: float = setting(0.99, "of the teacher at the first step; 1 at the last", at_least=0.0, at_most=1.0)
    coefficient: float = setting(1.0, "of the cosine", above=0.0, searchable=True)
    expansion: float = setting(1.0, "of the coding rate, times gamma; 0.1 in xECG", at_least=0.0, searchable=True)
    eps: float = setting(0.05, "distortion of the coding rate; 0.5 in the paper's v1", above=0.0)
    patch_weight: float = setting(0.0, "above 0: SimDINOv2, with hidden patches; 1 in xECG", at_least=0.0)
    mask_ratio: float = setting(0.3, "of the patches of a global crop; with patch_weight", above=0.0, below=1.0)
    projector_hidden: int = setting(512, at_least=1)
    projector_dim: int = setting(256, at_least=1)

    def __post_init__(self) -> None:
        check(self)
        if self.local_part > self.global_part:
            raise ValueError(f"local_part ({self.local_part:g}) must not be above global_part ({self.global_part:g})")

    @property
    def local_names(self) -> tuple[str, ...]:
        """Names of the local crops."""
        return tuple(f"local_{number}" for number in range(1, self.local_crops + 1))


class SimDino(Objective):
    """The method: see the module text. ValueError where patches are to be hidden from a network without tokens."""

    name = "simdino"
    title = "SimDINO"
    paper = (
        "Wu et al., Simplifying DINO via Coding Rate Regularization, ICML 2025, arXiv 2502.10385; for ECGs "
        "xECG, 2025, arXiv 2509.10151"
    )
    remedy = "raise objective.expansion or lower the learning rate"
    views_text = "A view is a cut of the same stretch without some of its leads; smaller cuts are not shown."
    Settings = SimDinoSettings

    def __init__(
        self, encoder: Encoder, settings: SimDinoSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        super().__init__(encoder, settings, statistics)
        hidden, out = settings.projector_hidden, settings.projector_dim
        self.projector = ProjectionHead(encoder.embed_dim, hidden, out, batch_norm=False)
        if settings.patch_weight > 0:  # a part that takes no part gets no weights
            self.stage: Stage = needs_tokens(encoder, f"{self.title} with patch_weight above 0").token_stage
            self.patch_projector = ProjectionHead(encoder.channels, hidden, out, batch_norm=False)
            self.mask_token = nn.Parameter(torch.zeros(self.stage.channels))
            self.mask_token.no_decay = True  # type: ignore[attr-defined]
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.teacher = Teacher(self._student(), batch_statistics=True)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Crops view_1, view_2, local_1, .. (B, 12, l), n_valid_NAME (B,) of each; hidden_1, hidden_2 (B, T') bool."""
        s = self.settings
        window = crop_window(batch, s.crop_seconds, draws)
        x_mv, n_valid = window["plain"], window["n_valid"]
        out = {"crop_start": window["crop_start"]}
        for number, name in enumerate((*GLOBALS, *s.local_names), 1):
            part = s.global_part if name in GLOBALS else s.local_part
            length = max(1, round(part * x_mv.shape[-1]))
            drawn = draws.uniform("sub_crop", 1, number)[:, 0]
            start = torch.from_numpy(draw_starts(drawn, n_valid.cpu().numpy(), length)).to(x_mv.device)
            out[name] = mask_leads(crop(x_mv, start, length), draws, number, s.lead_drop)
            out[f"n_valid_{name}"] = (n_valid - start).clamp(0, length)
            if s.patch_weight > 0 and name in GLOBALS:
                tokens = -(-length // self.stage.stride)
                cells = cells_of(out[f"n_valid_{name}"], self.stage, tokens).cpu().numpy()
                shortest = max(1, round(MIN_BLOCK_S * RATE_HZ / self.stage.stride))
                hidden = block_mask(draws, f"hidden_{number}", tokens, cells, to_hide(cells, s.mask_ratio), shortest)
                out[f"hidden_{number}"] = torch.from_numpy(hidden).to(x_mv.device)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        s, records = self.settings, len(views["view_1"])
        large, tokens, hidden = self._globals(views)
        z = unit_rows(self.projector(large)).unflatten(0, (2, records))
        if s.local_names:
            x_mv, n_valid = stacked(views, s.local_names)
            small = unit_rows(self.projector(self.encoder(x_mv, n_valid))).unflatten(0, (len(s.local_names), records))
            z = torch.cat([z, small])
        with torch.no_grad():
            x_mv, n_valid = stacked(views, GLOBALS)
            fmap = self.teacher.module.encoder.forward_features(x_mv, n_valid)
            pooled = self.teacher.module.encoder.pool(fmap, n_valid)
            target = unit_rows(self.teacher.module.projector(pooled)).unflatten(0, (2, records))
        with torch.autocast(z.device.type, enabled=False):
            loss, cosine = global_mean(cosines(target, z).sum(), records, -s.coefficient)
            moments = z[:2].transpose(1, 2) @ z[:2]  # (2, d, d)
            everywhere = gather_rows(moments[None], [1] * world_size()).sum(0)  # the sum over ranks, with gradient
            rows = sum_over_ranks(z.new_full((), float(records), dtype=torch.float64))
            rate = coding_rate(everywhere, rows, s.eps).mean()
            gamma = s.expansion * (z.shape[2] + rows) / (z.shape[2] * rows.clamp_min(1.0))
            # every rank has the same rate, and its gradient comes back summed over ranks: no factor of their number
            loss = loss - gamma.to(rate.dtype) * rate
        means = {
            "record/cosine": cosine,
            "record/coding_rate": rate_share(rate.detach(), rows, z.shape[2], s.eps).float(),
            "record/embedding_std": embedding_std(z[:2].flatten(0, 1)),
        }
        total = -s.coefficient * cosine - (gamma * rate.detach()).float()
        if hidden is not None and tokens is not None:
            of_student, there = self._patches(tokens, hidden)
            with torch.no_grad():
                of_teacher, _ = self._patches(fmap.transpose(1, 2), hidden)
                target = unit_rows(self.teacher.module.patch_projector(of_teacher))
            agreement = unit_rows(self.patch_projector(of_student)) * target
            count: Tensor | int = len(agreement)
            if there is not None:
                agreement, count = agreement * there[:, None], there.sum()
            of_patches, means["patch/cosine"] = global_mean(agreement.sum(), count, -s.patch_weight)
            loss, total = loss + of_patches, total - s.patch_weight * means["patch/cosine"]
        return StepResult(loss, {"loss": total, **means}, {"record/rows": rows.float()})

    def after_step(self, at: Progress) -> None:
        """Move the teacher towards the new weights."""
        self.teacher.update(self._student(), linear_momentum(at, self.settings.momentum, 1.0))

    @classmethod
    def described(cls, settings: SimDinoSettings) -> str:
        """Which crops, and whether patches are hidden."""
        patches = f", {settings.mask_ratio:.0%} of patches hidden" if settings.patch_weight else ""
        return f"{cls.title}{'v2' if settings.patch_weight else ''}, 2 + {settings.local_crops} crops{patches}"

    @classmethod
    def curves(cls, settings: SimDinoSettings) -> Sequence[Curve]:
        """Both parts of the loss, and the spread of recordings."""
        return [
            Curve("record/cosine", "cosine of student and teacher"),
            Curve("record/coding_rate", "coding rate (0: equal)", True, MIN_CODING_RATE, "collapsed below"),
            *([Curve("patch/cosine", "cosine of hidden patches")] if settings.patch_weight else []),
            embedding_curves("record")[1],
        ]

    @classmethod
    def warnings(cls, settings: SimDinoSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse, also into few directions, which the spread does not show."""
        found = super().warnings(settings, means, at)
        rate = means.get("record/coding_rate", 1.0)
        if rate < MIN_CODING_RATE and at.part > 0.1 and means.get("record/rows", 2.0) >= 2.0:
            found["record/coding_rate"] = (
                f"record embeddings use few directions (coding rate {rate:.2f} < {MIN_CODING_RATE} of the way from "
                f"equal to balanced): {cls.remedy}"
            )
        return found

    def _globals(self, views: Tensors) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Pooled global crops (2n, embed_dim) of the student; with hidden patches the tokens and which are hidden."""
        x_mv, n_valid = stacked(views, GLOBALS)
        if self.settings.patch_weight == 0:
            return self.encoder(x_mv, n_valid), None, None
        network = needs_tokens(self.encoder, self.title)
        hidden = torch.cat([views["hidden_1"], views["hidden_2"]])
        cell = (torch.arange(x_mv.shape[-1], device=x_mv.device) - self.stage.offset + self.stage.stride / 2).long()
        gone = hidden[:, (cell // self.stage.stride).clamp(0, hidden.shape[1] - 1)]
        tokens = network.tokens(x_mv.masked_fill(gone[:, None], 0.0), n_valid)
        tokens = torch.where(hidden[..., None], tokens + self.mask_token, tokens)
        encoded = network.encode(tokens, valid=valid_cells(n_valid, self.stage, tokens.shape[1]))
        return self.encoder.pool(encoded.transpose(1, 2), n_valid), encoded, hidden

    def _patches(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens (n, T', D) of hidden patches (n, T') as rows (N, D), and which of these there are; None: all."""
        if not self.static_shapes:
            return tokens[hidden], None
        most = int(to_hide(np.array([hidden.shape[1]]), self.settings.mask_ratio)[0])
        at, there = chosen_positions(hidden, most)
        return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[2])).flatten(0, 1), there.flatten()

    def _student(self) -> _Branch:
        return _Branch(self.encoder, self.projector, getattr(self, "patch_projector", None))


class _Branch(nn.Module):
    """What student and teacher have in common."""

    def __init__(self, encoder: Encoder, projector: ProjectionHead, patch_projector: ProjectionHead | None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        if patch_projector is not None:
            self.patch_projector = patch_projector


def stacked(views: Tensors, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Crops of one length as one batch, and the samples of each that are signal."""
    return torch.cat([views[name] for name in names]), torch.cat([views[f"n_valid_{name}"] for name in names])


def cosines(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean cosine of each record over pairs of crops that are not the same: unit (G, n, d), (V, n, d) -> (n,).

    The student's first G crops are the teacher's.
    """
    pairs = torch.einsum("gnd,vnd->gvn", teacher, student)
    same = torch.eye(len(teacher), len(student), dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same[..., None], 0.0).sum((0, 1)) / (pairs.shape[0] * pairs.shape[1] - len(teacher))


def to_hide(cells: NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """How many of `cells` (B,) patches are hidden: at least one and not all, where there are two."""
    count: NDArray[np.int64] = np.minimum(np.maximum(np.rint(ratio * cells).astype(np.int64), 1), cells - 1)
    return count
