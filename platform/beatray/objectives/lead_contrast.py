"""Lead contrast: the leads of a recording are alike, in two views of the heart, and so are recordings of one patient.

Dade et al., "Robust ECG-based cardiac classification" (Heart Rhythm O2 2026); where its settings are not given this
follows the research code of the group. Two views of a window, as if the heart lay elsewhere in the chest (3KG,
three_kg.py), with each lead zeroed with probability 1/2; each lead goes through the network alone. The embeddings of a
recording, 8 leads in 2 views, are 16 views of it, and the loss is the patient-aware contrast of all 120 pairs
(patient_contrast.py). Of a network with two groups of leads each group has one embedding, the mean over its leads: 4
views, 6 pairs.

`segments` halves: two windows, one right after the other, enter as two recordings of the same patient, with views of
their own (inter-segment contrast). Differences from the code: a lead that is zero, by chance or because the recording
does not have it, is in no pair and no mean, and never are all leads of a view zeroed by chance.

Needs a network that reads each lead alone (`temporal_net`). Patients meet in a batch with train.keep_patients_together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.segments import adjacent_segments
from beatray.augment.three_kg import Mode, draw_heart, three_kg
from beatray.augment.two_views import VIEWS, crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, lead_rows
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_leads
from beatray.objectives.patient_contrast import by_record, patient_contrast
from beatray.objectives.statistics import FeatureStatistics


@dataclass(frozen=True, slots=True)
class LeadViewSettings:
    """How the views of Lead contrast are made."""

    crop_seconds: float | None = setting(
        5.0, "of a window; null: the whole record, or half of it with segments=halves", at_least=0.5
    )
    angle_deg: float = setting(45.0, "each axis turns by up to so much", at_least=0.0, at_most=180.0, searchable=True)
    scale: float = setting(1.5, "each axis is stretched by up to so much", at_least=1.0, searchable=True)
    mode: Mode = setting("residual", "residual: the change of the leads; project: the leads of the dipole alone")
    zero_lead: float = setting(0.5, "the probability that a lead is zeroed", at_least=0.0, below=1.0, searchable=True)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class LeadContrastSettings:
    """Settings of Lead contrast."""

    segments: Literal["crop", "halves"] = setting("crop", "halves: two adjacent windows, as records of one patient")
    temperature: float = setting(0.1, above=0.0, searchable=True)
    symmetric: bool = setting(True, "false: of same-patient pairs one direction only, as published")
    projector_hidden: int = setting(256, "of a head of two linear layers, with nothing between", at_least=1)
    projector_dim: int = setting(128, at_least=1)
    augment: LeadViewSettings = setting(LeadViewSettings, "how views are made")

    def __post_init__(self) -> None:
        check(self)


class LeadContrast(Objective):
    """The method: see the module text. ValueError for a network that does not read each lead alone."""

    name = "lead_contrast"
    title = "Lead contrast"
    paper = "Dade et al., Robust ECG-based cardiac classification, Heart Rhythm O2 2026"
    views_text = "A view turns and stretches the heart, goes back to 12 leads, and leads are zeroed by chance."
    Settings = LeadContrastSettings

    def __init__(
        self, encoder: Encoder, settings: LeadContrastSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        super().__init__(encoder, settings, statistics)
        network = needs_leads(encoder, self.title)
        self.reads = (*Objective.reads, "patient_key")
        self.windows = 1 if settings.segments == "crop" else 2
        # a network of its own for each group of leads means an embedding and a head of its own
        self.groups = network.lead_groups if len(network.lead_groups) > 1 else ()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(network.lead_dim, settings.projector_hidden),
                nn.Linear(settings.projector_hidden, settings.projector_dim),
            )
            for _ in network.lead_groups
        )

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """`view_1` and `view_2` (B, 12, L) of the window, `view_3` and `view_4` of a second; n_valid, patient_key."""
        s = self.settings.augment
        if self.windows == 1:
            out = crop_window(batch, s.crop_seconds, draws)
            windows = [out.pop("plain")]
        else:
            out = adjacent_segments(batch, s.crop_seconds, draws)
            windows = [out.pop("segment_1"), out.pop("segment_2")]
        for number, x_mv in enumerate((window for window in windows for _ in VIEWS), 1):
            turned = three_kg(x_mv, draw_heart(draws, number), s.angle_deg, s.scale, s.mode)
            out[f"view_{number}"] = turned.mul_(self._kept(draws, number, (x_mv != 0).any(-1))[..., None])
        return {**out, "patient_key": batch["patient_key"].to(windows[0].device)}

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """Patient-aware contrast of leads, or of groups of leads, over the global batch."""
        s, network = self.settings, needs_leads(self.encoder, self.title)
        count = len(VIEWS) * self.windows
        x_mv = torch.cat([views[f"view_{number}"] for number in range(1, count + 1)])  # one batch for the batch norms
        leads = network.forward_leads(x_mv, views["n_valid"].repeat(count))
        present = lead_rows((x_mv != 0).any(-1), network.leads)
        if self.groups:
            leads, present = self._group_means(leads, present)
            z = torch.stack([head(group) for head, group in zip(self.heads, leads.unbind(1), strict=True)], 1)
        else:
            z = self.heads[0](leads)
        # the windows of a record stand beside each other, so that the order of all rows is that of the records
        rows, there = (
            by_record(each, count).unflatten(1, (self.windows, -1)).flatten(0, 1) for each in (unit_rows(z), present)
        )
        patients = views["patient_key"].repeat_interleave(self.windows)
        found = patient_contrast(rows.unbind(1), patients, s.temperature, symmetric=s.symmetric, present=there)
        return StepResult(found.loss, {"loss": found.mean, **found.means("lead")})

    @classmethod
    def described(cls, settings: LeadContrastSettings) -> str:
        """The method and whether segments are contrasted too."""
        return cls.title if settings.segments == "crop" else f"{cls.title} between leads and segments"

    @classmethod
    def curves(cls, settings: LeadContrastSettings) -> Sequence[Curve]:
        """Loss and spread, and how many recordings have another of their patient beside them."""
        return [*embedding_curves("lead"), Curve("lead/partners", "other recordings of the patient in the batch")]

    def _kept(self, draws: Draws, view: int, there: Tensor) -> Tensor:
        """Leads that are there and not zeroed (B, 12) bool: one at least of those that are read, where any is there."""
        drawn = torch.from_numpy(draws.uniform("zero_lead", there.shape[1], view)).to(there.device)
        read = list(needs_leads(self.encoder, self.title).leads)
        # whatever the probability, the lead with the largest number stays
        candidates = torch.full_like(drawn, -1.0)
        candidates[:, read] = drawn[:, read].masked_fill(~there[:, read], -1.0)
        largest = candidates == candidates.amax(1, keepdim=True)
        stays: Tensor = drawn >= self.settings.augment.zero_lead
        return there & (stays | largest)

    def _group_means(self, leads: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Means over the leads of each group that are there, and whether any is: (N, groups, D), (N, groups) bool."""
        means, known = [], []
        for group in self.groups:
            there = lead_rows(present, group)
            weight = there[..., None].to(leads.dtype)
            means.append((lead_rows(leads, group) * weight).sum(1) / weight.sum(1).clamp_min(1.0))
            known.append(there.any(1))
        return torch.stack(means, 1), torch.stack(known, 1)
