"""SimCLR on ECGs: two random parts of one window, NT-Xent.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020), as set up for 12-lead
ECGs by Mehari and Strodthoff (Comput. Biol. Med. 2022): random resized crop and time-out were their best pair of
transformations; projector 512-512-16, temperature 0.5.

Contract: as every objective, see beat_ssl.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from beatray.augment.two_views import ResizedViewSettings, make_resized_views
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.objectives.pairs import nt_xent_step


@dataclass(frozen=True, slots=True)
class SimClrSettings:
    """Settings of SimCLR."""

    temperature: float = 0.5
    projector_hidden: int = 512
    projector_dim: int = 16
    views: ResizedViewSettings = field(default_factory=ResizedViewSettings)

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")


class SimClr(nn.Module):
    """The objective: see the module text."""

    columns: tuple[str, ...] = ("signal_uv", "n_samples", "record_key")

    def __init__(self, encoder: Encoder, settings: SimClrSettings) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings
        self.projector = ProjectionHead(
            encoder.embed_dim, settings.projector_hidden, settings.projector_dim, batch_norm=False
        )

    def views(self, batch: dict[str, Tensor], seed: int, epoch: int) -> dict[str, Tensor]:
        """From a batch with `columns` to two views (B, 12, L)."""
        out = make_resized_views(batch, self.settings.views, seed, epoch)
        return out | ({"valid": batch["valid"]} if "valid" in batch else {})

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to backpropagate on this rank, and logs over the global batch."""
        return nt_xent_step(self.encoder, self.projector, views, self.settings.temperature)

    def after_step(self) -> None:
        """Nothing to do: there is no moving average and no queue."""
