"""SimCLR on ECGs: two random parts of one window, NT-Xent.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020), as set up for 12-lead
ECGs by Mehari and Strodthoff (Comput. Biol. Med. 2022): random resized crop and time-out were their best pair of
transformations; projector 512-512-16, temperature 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from beatray.augment.draws import Draws
from beatray.augment.two_views import ResizedViewSettings, make_resized_views
from beatray.fields import check, setting
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.objectives.objective import Objective, Progress, StepResult, Tensors
from beatray.objectives.pairs import nt_xent_step
from beatray.objectives.published import FOR_ECGS
from beatray.objectives.statistics import FeatureStatistics


@dataclass(frozen=True, slots=True)
class SimClrSettings:
    """Settings of SimCLR."""

    temperature: float = setting(0.5, above=0.0, searchable=True)
    projector_hidden: int = setting(512, at_least=1)
    projector_dim: int = setting(16, at_least=1)
    augment: ResizedViewSettings = setting(ResizedViewSettings, "how views are made", was="views")

    def __post_init__(self) -> None:
        check(self)


class SimClr(Objective):
    """The method: see the module text."""

    name = "simclr"
    title = "SimCLR"
    paper = (
        "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, arXiv "
        f"2002.05709; {FOR_ECGS}"
    )
    Settings = SimClrSettings

    def __init__(self, encoder: Encoder, settings: SimClrSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.projector = ProjectionHead(
            encoder.embed_dim, settings.projector_hidden, settings.projector_dim, batch_norm=False
        )

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two views (B, 12, L)."""
        return make_resized_views(batch, self.settings.augment, draws)

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """NT-Xent over the global batch."""
        return nt_xent_step(self.encoder, self.projector, views, self.settings.temperature)
