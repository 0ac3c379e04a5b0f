"""3KG as published: NT-Xent over views of a turned and stretched heart.

Gopal et al., "3KG: Contrastive Learning of 12-Lead Electrocardiograms using Physiologically-Inspired Augmentations",
PMLR 158, 2021: angles up to 45 degrees, scales up to 1.5, half of every lead masked, views projected to the dipole
(`augment.mode` project), temperature 0.1. Own pairs are the positives; patients are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from beatray.augment.draws import Draws
from beatray.augment.two_views import ViewSettings, make_two_views
from beatray.fields import check, setting
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.objectives.objective import Objective, Progress, StepResult, Tensors
from beatray.objectives.pairs import nt_xent_step
from beatray.objectives.statistics import FeatureStatistics


@dataclass(frozen=True, slots=True)
class ThreeKgSettings:
    """Settings of 3KG."""

    temperature: float = setting(0.1, above=0.0, searchable=True)
    projector_hidden: int = setting(256, at_least=1)
    projector_dim: int = setting(128, at_least=1)
    augment: ViewSettings = setting(ViewSettings(mode="project"), "how views are made", was="views")

    def __post_init__(self) -> None:
        check(self)


class ThreeKg(Objective):
    """The method: see the module text."""

    name = "three_kg"
    title = "3KG"
    paper = (
        "Gopal et al., 3KG: Contrastive Learning of 12-Lead Electrocardiograms using Physiologically-Inspired "
        "Augmentations, PMLR 158, 2021, arXiv 2106.04452"
    )
    views_text = (
        "A view turns and stretches the heart, goes back to 12 leads and loses a stretch of each lead; where leads are "
        "masked the loop is bent or falls to zero."
    )
    Settings = ThreeKgSettings

    def __init__(
        self, encoder: Encoder, settings: ThreeKgSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        super().__init__(encoder, settings, statistics)
        self.projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)
        if settings.augment.keep_beats:
            self.reads = (*self.reads, "r_peaks")

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two views (B, 12, L)."""
        return make_two_views(batch, self.settings.augment, draws)

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """NT-Xent over the global batch."""
        return nt_xent_step(self.encoder, self.projector, views, self.settings.temperature)
