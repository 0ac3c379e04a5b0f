"""BYOL: predict a slow teacher's view of a recording from another view of it; no negatives.

Grill et al., "Bootstrap Your Own Latent" (NeurIPS 2020), as set up for 12-lead ECGs by Mehari and Strodthoff (Comput.
Biol. Med. 2022). Two views go through encoder, projector and predictor; the teacher, a moving average of encoder and
projector, sees them too. With p the predictions and z' the teacher's projections, the loss of a record is

    [2 - 2 cos(p_1, z'_2)] + [2 - 2 cos(p_2, z'_1)],   0 to 8,

equation 2 of the paper without the constant of its reference code. The momentum goes from `momentum` to 1 along a
cosine. Differences from that code: every parameter is averaged, biases too; views are masked and not stretched
(`augment.warp` stretches them), since a stretched ECG has other intervals than the heart had; both views are one batch
for the batch norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from beatray.augment.draws import Draws
from beatray.augment.two_views import MaskedViewSettings, make_masked_views
from beatray.fields import check, setting
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.objectives.contrast import unit_rows
from beatray.objectives.ema import Teacher, cosine_momentum
from beatray.objectives.objective import Objective, Progress, StepResult, Tensors
from beatray.objectives.pairs import encode_views
from beatray.objectives.published import FOR_ECGS
from beatray.objectives.reduce import embedding_std, global_mean
from beatray.objectives.statistics import FeatureStatistics


@dataclass(frozen=True, slots=True)
class ByolSettings:
    """Settings of BYOL."""

    momentum: float = setting(
        0.996,
        "of the teacher at the first step; a run of few steps S needs about 1 - 4 / S, or the teacher never arrives",
        at_least=0.0,
        at_most=1.0,
        searchable=True,
    )
    projector_hidden: int = setting(512, at_least=1)
    projector_dim: int = setting(256, "16 in the ECG study", at_least=1)
    predictor_hidden: int = setting(512, at_least=1)
    augment: MaskedViewSettings = setting(MaskedViewSettings, "how views are made")

    def __post_init__(self) -> None:
        check(self)


class Byol(Objective):
    """The method: see the module text."""

    name = "byol"
    title = "BYOL"
    paper = (
        "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020, "
        f"arXiv 2006.07733; {FOR_ECGS}"
    )
    remedy = "raise objective.momentum or lower the learning rate"
    Settings = ByolSettings

    def __init__(self, encoder: Encoder, settings: ByolSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)
        self.predictor = ProjectionHead(settings.projector_dim, settings.predictor_hidden, settings.projector_dim)
        self.teacher = Teacher(self._student(), batch_statistics=True)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two masked views (B, 12, L) of one window."""
        return make_masked_views(batch, self.settings.augment, draws)

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text, as the mean over the global batch."""
        records = len(views["view_1"])
        z = self.projector(encode_views(self.encoder, views)[1])
        predicted = unit_rows(self.predictor(z))
        with torch.no_grad():
            _, pooled = encode_views(self.teacher.module.encoder, views)
            target = unit_rows(self.teacher.module.projector(pooled))
        cosines = (predicted * target.roll(records, 0)).sum(1)  # rows of view 1 against view 2, and the other way round
        loss, mean = global_mean((2.0 - 2.0 * cosines).sum(), records)
        return StepResult(
            loss, {"loss": mean, "record/loss": mean, "record/embedding_std": embedding_std(unit_rows(z))}
        )

    def after_step(self, at: Progress) -> None:
        """Move the teacher towards the new weights."""
        self.teacher.update(self._student(), cosine_momentum(at, self.settings.momentum))

    def _student(self) -> _Branch:
        return _Branch(self.encoder, self.projector)


class _Branch(nn.Module):
    """What student and teacher have in common."""

    def __init__(self, encoder: Encoder, projector: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
