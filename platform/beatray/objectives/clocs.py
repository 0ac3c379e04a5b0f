"""CLOCS: parts of one recording, or recordings of one patient, are alike; those of different patients are not.

Kiyasseh, Zhu and Clifton, "CLOCS: Contrastive Learning of Cardiac Signals Across Space, Time, and Patients" (ICML
2021). By `mode` the views of a recording are

- `cmsc`: two segments, one right after the other (contrastive multi-segment coding);
- `cmlc`: the leads of one segment, each a sequence of its own (contrastive multi-lead coding);
- `cmsmlc`: the leads of two such segments.

The loss is the patient-aware contrast of all pairs of views (patient_contrast.py). Nothing is augmented. Differences
from the published code: `cmsc` takes all twelve leads at once, by any encoder, as ECG-FM does, not a lead at a time;
every pair of views counts, where that code keeps the last; both directions of same-patient pairs count (`symmetric`).
Leads that a recording does not have are in no pair.

`cmlc` and `cmsmlc` need a network that reads each lead alone (`temporal_net`). Patients meet in a batch with
train.keep_patients_together; without, or without patient ids, a recording is its own only partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from beatray.augment.draws import Draws
from beatray.augment.segments import adjacent_segments
from beatray.augment.two_views import VIEWS, crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, lead_rows
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_leads
from beatray.objectives.patient_contrast import by_record, patient_contrast
from beatray.objectives.statistics import FeatureStatistics


@dataclass(frozen=True, slots=True)
class ClocsSettings:
    """Settings of CLOCS."""

    mode: Literal["cmsc", "cmlc", "cmsmlc"] = setting("cmsc", "cmsc: segments; cmlc: leads; cmsmlc: leads of segments")
    crop_seconds: float | None = setting(5.0, "of a segment; null: of two half of the record, of one all", at_least=0.5)
    temperature: float = setting(0.1, above=0.0, searchable=True)
    embedding_dim: int = setting(128, "of the linear layer before the contrast; 32 to 320 in the paper", at_least=1)
    symmetric: bool = setting(True, "false: of same-patient pairs one direction only, as published")

    def __post_init__(self) -> None:
        check(self)


class Clocs(Objective):
    """The method: see the module text. ValueError for a network that does not read each lead alone where leads are
    the views."""

    name = "clocs"
    title = "CLOCS"
    paper = (
        "Kiyasseh, Zhu and Clifton, CLOCS: Contrastive Learning of Cardiac Signals Across Space, Time, and "
        "Patients, ICML 2021, arXiv 2005.13249"
    )
    views_text = "The views are stretches of the recording as they are, one after the other, or its leads."
    Settings = ClocsSettings

    def __init__(self, encoder: Encoder, settings: ClocsSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.reads = (*Objective.reads, "patient_key")
        self.segments = VIEWS if settings.mode != "cmlc" else VIEWS[:1]
        width = encoder.embed_dim if settings.mode == "cmsc" else needs_leads(encoder, self._kind(settings)).lead_dim
        self.head = nn.Linear(width, settings.embedding_dim)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """One segment or two, `view_1` and `view_2` (B, 12, L), with n_valid and patient_key (B,)."""
        seconds = self.settings.crop_seconds
        if len(self.segments) == 1:
            out = crop_window(batch, seconds, draws)
            out["view_1"] = out.pop("plain")
        else:
            out = adjacent_segments(batch, seconds, draws)
            for number in self.segments:
                out[f"view_{number}"] = out.pop(f"segment_{number}")
        return {**out, "patient_key": batch["patient_key"].to(out["view_1"].device)}

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """Patient-aware contrast over the global batch."""
        s, segments = self.settings, len(self.segments)
        x_mv = torch.cat([views[f"view_{number}"] for number in self.segments])  # one batch for the batch norms
        valid = views["n_valid"].repeat(segments)
        present = None
        if s.mode == "cmsc":
            z = self.head(self.encoder(x_mv, valid))[:, None]
        else:
            network = needs_leads(self.encoder, self.title)
            z = self.head(network.forward_leads(x_mv, valid))
            present = by_record(lead_rows((x_mv != 0).any(-1), network.leads), segments)
        rows = by_record(unit_rows(z), segments)  # (n, views, E)
        found = patient_contrast(
            rows.unbind(1), views["patient_key"], s.temperature, symmetric=s.symmetric, present=present
        )
        return StepResult(found.loss, {"loss": found.mean, **found.means("record")})

    @classmethod
    def described(cls, settings: ClocsSettings) -> str:
        """The method and what its views are."""
        return cls._kind(settings)

    @classmethod
    def curves(cls, settings: ClocsSettings) -> Sequence[Curve]:
        """Loss and spread, and how many recordings have another of their patient beside them."""
        return [*embedding_curves("record"), Curve("record/partners", "other recordings of the patient in the batch")]

    @classmethod
    def _kind(cls, settings: ClocsSettings) -> str:
        return f"{cls.title} {settings.mode.upper()}"
