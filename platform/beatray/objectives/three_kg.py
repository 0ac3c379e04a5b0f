"""3KG as published: NT-Xent over views of a turned and stretched heart.

Gopal et al., "3KG: Contrastive Learning of 12-Lead Electrocardiograms using Physiologically-Inspired Augmentations",
PMLR 158, 2021: angles up to 45 degrees, scales up to 1.5, half of every lead masked, views projected to the dipole
(`views.mode` project), temperature 0.1. Own pairs are the positives; patients are not compared.

Contract: as every objective, see beat_ssl.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from beatray.augment.two_views import ViewSettings, make_two_views
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.objectives.pairs import nt_xent_step, valid_in_crop


@dataclass(frozen=True, slots=True)
class ThreeKgSettings:
    """Settings of the 3KG baseline."""

    temperature: float = 0.1
    projector_hidden: int = 256
    projector_dim: int = 128
    views: ViewSettings = field(default_factory=lambda: ViewSettings(mode="project"))

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")


class ThreeKg(nn.Module):
    """The objective: see the module text."""

    def __init__(self, encoder: Encoder, settings: ThreeKgSettings) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings
        self.projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)
        peaks = ("r_peaks",) if settings.views.keep_beats else ()
        self.columns: tuple[str, ...] = ("signal_uv", "n_samples", "record_key", *peaks)

    def views(self, batch: dict[str, Tensor], seed: int, epoch: int) -> dict[str, Tensor]:
        """From a batch with `columns` to two views (B, 12, L)."""
        out = make_two_views(batch, self.settings.views, seed, epoch)
        out["n_valid"] = valid_in_crop(batch, out["crop_start"], out["view_1"].shape[-1])
        return out | ({"valid": batch["valid"]} if "valid" in batch else {})

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to backpropagate on this rank, and logs over the global batch."""
        return nt_xent_step(self.encoder, self.projector, views, self.settings.temperature)

    def after_step(self) -> None:
        """Nothing to do: there is no moving average and no queue."""
