"""CPC: identify what comes next in the signal among other moments.

Van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding" (arXiv 1807.03748), as set up
for ECGs by Mehari and Strodthoff (Comput. Biol. Med. 2022) and, on state-space networks, by ECG-CPC (arXiv 2509.25095).
A network makes local tokens and a causal context for each; from the context of a token the one `horizon_s` ahead is
identified among other moments. token_prediction.py has the loss, its negatives and its contract; the reference takes
the sum over moments instead of the mean.

A network of two causal directions (`encoder.direction=both`) predicts back in time too, and the two losses are
averaged: then each moment knows its past and its future, which segmentation needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from beatray.augment.draws import Draws
from beatray.augment.two_views import crop_window
from beatray.fields import setting
from beatray.models.encoder import Encoder, valid_cells
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, needs_tokens
from beatray.objectives.published import FOR_ECGS
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.token_prediction import PredictionSettings, TokenPrediction, prediction_curves


@dataclass(frozen=True, slots=True)
class CpcSettings(PredictionSettings):
    """Settings of CPC."""

    crop_seconds: float | None = setting(10.0, "null: the whole record", at_least=0.5)


class Cpc(Objective):
    """The method: see the module text. ValueError for a network without a causal context, or too short a crop."""

    name = "cpc"
    title = "CPC"
    paper = (
        "van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018, "
        f"arXiv 1807.03748; {FOR_ECGS}; on state-space networks ECG-CPC, 2025, arXiv 2509.25095"
    )
    remedy = "lower the learning rate, or take more negatives"
    mean_over = "records"
    Settings = CpcSettings

    def __init__(self, encoder: Encoder, settings: CpcSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        network = needs_tokens(encoder, self.title, causal=True)
        self.prediction = TokenPrediction(settings, network.token_stage, network.directions)
        self.prediction.check_crop(settings.crop_seconds, "objective.crop_seconds", "objective.horizon_s")
        self.predictors = self.prediction.predictors(encoder.channels // len(self.directions))

    @property
    def directions(self) -> tuple[str, ...]:
        """In which time is predicted."""
        return self.prediction.directions

    @property
    def steps_ahead(self) -> int:
        """How many tokens ahead is predicted."""
        return self.prediction.steps_ahead

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """One window `view_1` (B, 12, L); distances of negatives (B, 1 or T', N) for each direction; lent moments."""
        out = crop_window(batch, self.settings.crop_seconds, draws)
        out["view_1"] = out.pop("plain")
        return {**out, **self.prediction.drawn(out["n_valid"], out["view_1"].shape[-1], draws)}

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        network = needs_tokens(self.encoder, self.title, causal=True)
        z: Tensor = network.tokens(views["view_1"], views["n_valid"])
        there = valid_cells(views["n_valid"], network.token_stage, z.shape[1])
        contexts = network.encode(z, valid=there).chunk(len(self.directions), dim=-1)
        found = self.prediction.loss(self.predictors, z, contexts, views["n_valid"], views, self.chosen)
        return StepResult(found.loss, {"loss": found.mean, **found.means}, {"records": found.rows})

    @classmethod
    def curves(cls, settings: CpcSettings) -> Sequence[Curve]:
        """The accuracy of the next token, and the spread of tokens."""
        return prediction_curves()
