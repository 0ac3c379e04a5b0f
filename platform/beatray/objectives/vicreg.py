"""VICReg: two views agree, every coordinate varies, no two coordinates are redundant; no negatives and no teacher.

Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning" (ICLR
2022), equations 1 to 6. With z, z' (N, D) the expanded views of the N records of the global batch, C the covariance
matrix of z over records and v_d its diagonal,

    L = invariance s(z, z') + variance [v(z) + v(z')] / 2 + covariance [c(z) + c(z')],
    s = mean of (z - z')^2,   v(z) = mean over d of max(0, 1 - sqrt(v_d + eps)),   c(z) = sum over i != j of C_ij^2 / D,

with weights 25, 25 and 1. C is unbiased (divided by N - 1). As in the authors' code, and unlike equations 5 and 6, s is
the mean over coordinates too and the two variance terms are halved.

Contract: z are not normalised; the statistics are those of the global batch with their whole gradient, whatever ranks
hold its rows; of fewer than two records every variance is 0. Differences from the paper: views are masked windows of a
recording; the expander ends without a bias, which no term could see; its 8,192 coordinates are a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.two_views import MaskedViewSettings, make_masked_views
from beatray.fields import check, setting
from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.encoder import Encoder, at_least_float32
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves
from beatray.objectives.pairs import encode_views
from beatray.objectives.reduce import embedding_std, gather_counts, gather_rows
from beatray.objectives.statistics import FeatureStatistics

EPS = 1e-4
"""Added to a variance, so that its root has a finite gradient where nothing varies."""


@dataclass(frozen=True, slots=True)
class VicregSettings:
    """Settings of VICReg."""

    invariance: float = setting(25.0, "weight of the distance between views", at_least=0.0, searchable=True)
    variance: float = setting(25.0, "weight of the spread of every coordinate", at_least=0.0, searchable=True)
    covariance: float = setting(1.0, "weight of what coordinates have in common", at_least=0.0, searchable=True)
    projector_hidden: int = setting(2048, "of both hidden layers of the expander", at_least=1)
    projector_dim: int = setting(2048, "8192 in the paper", at_least=1)
    augment: MaskedViewSettings = setting(MaskedViewSettings, "how views are made")

    def __post_init__(self) -> None:
        check(self)


class Vicreg(Objective):
    """The method: see the module text."""

    name = "vicreg"
    title = "VICReg"
    paper = (
        "Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised "
        "Learning, ICLR 2022, arXiv 2105.04906"
    )
    remedy = "raise objective.variance or lower the learning rate"
    Settings = VicregSettings

    def __init__(self, encoder: Encoder, settings: VicregSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.projector = Expander(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two masked views (B, 12, L) of one window."""
        return make_masked_views(batch, self.settings.augment, draws)

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text over the global batch.

        Every rank has the rows of all, and so the whole loss: `gather_rows` adds up what all ranks send back, and data
        parallel training averages it again.
        """
        s, records = self.settings, len(views["view_1"])
        projected = self.projector(encode_views(self.encoder, views)[1])
        with torch.autocast(projected.device.type, enabled=False):
            z = at_least_float32(projected)
            sizes = [counts[0] for counts in gather_counts([records], z.device)]
            both = gather_rows(z.unflatten(0, (2, records)).transpose(0, 1), sizes)
            terms = vicreg_terms(both[:, 0], both[:, 1])
            loss = s.invariance * terms.invariance + s.variance * terms.variance + s.covariance * terms.covariance
        means = {f"record/{name}": value.detach().float() for name, value in terms._asdict().items()}
        means = {"loss": loss.detach().float(), **means, "record/embedding_std": embedding_std(unit_rows(z))}
        return StepResult(loss, means, {"record/rows": loss.new_full((), float(sum(sizes))).float()})

    @classmethod
    def described(cls, settings: VicregSettings) -> str:
        """The weights of its three terms."""
        return f"{cls.title}, weights {settings.invariance:g}, {settings.variance:g}, {settings.covariance:g}"

    @classmethod
    def curves(cls, settings: VicregSettings) -> Sequence[Curve]:
        """The three terms, and the spread of recordings."""
        return [
            Curve("record/invariance", "invariance: squared distance of views"),
            Curve("record/variance", "variance: what the SD lacks to 1", True),
            Curve("record/covariance", "covariance of coordinates"),
            embedding_curves("record")[1],
        ]


class Expander(nn.Module):
    """Linear, batch norm over all ranks, ReLU, twice, and Linear: (B, embed_dim) -> (B, out)."""

    def __init__(self, embed_dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden_1 = nn.Linear(embed_dim, hidden, bias=False)
        self.norm_1 = GlobalBatchNorm1d(hidden)
        self.hidden_2 = nn.Linear(hidden, hidden, bias=False)
        self.norm_2 = GlobalBatchNorm1d(hidden)
        self.out = nn.Linear(hidden, out, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        inner = torch.relu(self.norm_1(self.hidden_1(pooled)))
        z: Tensor = self.out(torch.relu(self.norm_2(self.hidden_2(inner))))
        return z


class VicregTerms(NamedTuple):
    """The terms of the loss without their weights: s, [v(z) + v(z')] / 2, c(z) + c(z')."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(z_1: Tensor, z_2: Tensor, eps: float = EPS) -> VicregTerms:
    """The terms of two views (N, D), of any scale, of a whole batch; N may be 0."""
    invariance = (z_1 - z_2).square().sum() / max(z_1.numel(), 1)
    (v_1, c_1), (v_2, c_2) = _spread(z_1, eps), _spread(z_2, eps)
    return VicregTerms(invariance, (v_1 + v_2) / 2.0, c_1 + c_2)


def _spread(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """v and c of one view (N, D)."""
    rows, width = z.shape
    centred = z - z.sum(0) / max(rows, 1)
    covariance = centred.T @ centred / max(rows - 1, 1)
    variances = covariance.diagonal()
    shortfall = torch.relu(1.0 - (variances + eps).sqrt()).mean()
    return shortfall, (covariance - variances.diag()).square().sum() / width
