"""Learning from labels of whole recordings: several yes-or-no targets, one of several classes, or numbers.

With logits z of encoder, pooling and head, targets y and k = 1 where a target is known, the mean over all known targets
of the global batch of

    multilabel   w_c(y) * [-y log s(z) - (1 - y) log(1 - s(z))],  s the logistic function
    classes      w_y * [-log softmax(z)_y]
    numbers      (z - (y - mean_c) / sd_c)^2

An unknown target counts in nothing. Balanced weights are n / (2 n_y) for each value of a target, or n / (K n_y) for
each of K classes, with the counts of the training part: the average weight over that part is 1.

Contract: `target` is (B, C) int8 with -1 for unknown (multilabel), (B,) int16 with -1 (classes) or (B, C) float32 with
NaN (numbers, in their own units). Outputs are logits, of numbers in their own units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from beatray.corpus.label_settings import LabelSettings, file_name
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.metrics import auroc, f1_per_class, mean_of_known
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, at_least_float32
from beatray.objectives.objective import Progress, StepResult, Tensors
from beatray.objectives.reduce import counted_mean
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.trained_part import LabelledObjective, LabelledSettings, trained_text

Kind = Literal["multilabel", "classes", "numbers"]
Select = Literal["auto", "auroc", "f1", "accuracy", "mae", "loss"]
SCORES: dict[Kind, tuple[str, ...]] = {
    "multilabel": ("auroc", "f1"),
    "classes": ("auroc", "f1", "accuracy"),
    "numbers": ("mae",),
}
"""The validation scores of each kind, beside the loss."""


@dataclass(frozen=True, slots=True)
class SupervisedSettings(LabelledSettings):
    """Settings of learning from labels of recordings."""

    table: LabelSettings = setting(LabelSettings, "with labels=table: which, and how it is read; set as labels.KEY=")
    task: Literal["classify", "regress"] = setting("classify", "regress: the labels are numbers")
    one_class: bool = setting(False, "recordings that show just one class of the space, told apart by a softmax")
    min_positives: int = setting(20, "training recordings that a SNOMED class needs", at_least=1)
    class_weights: Literal["none", "balanced"] = setting("none", "balanced: rare values count more")
    standardise: bool = setting(True, "what the head reads is brought to one scale by a batch norm")
    hidden: int = setting(0, "width of a hidden layer of the head; 0: a linear head", at_least=0)
    dropout: float = setting(0.5, "of the hidden layer", at_least=0.0, below=1.0)
    select: Select = setting(
        "auto", "the score of the best checkpoint; auto: AUROC, of numbers the mean absolute error"
    )
    kind: Kind = setting("multilabel", "filled in: what the labels are")
    mean: tuple[float, ...] = setting((), "filled in: of each number in the training part")
    sd: tuple[float, ...] = setting((), "filled in: of each number in the training part")
    weights: tuple[float, ...] = setting((), "filled in: of classes, or of no and yes of each target", at_least=0.0)

    def __post_init__(self) -> None:
        check(self)
        if self.labels == TABLE and not self.table.table:
            raise ValueError("labels=table needs a table: set labels=PATH (objective.table.table=PATH in a sweep)")
        if self.table.table and self.labels != TABLE:
            raise ValueError(f"labels={self.labels} reads no table: set labels=table, or leave {self.table.table} out")
        if self.names and self.select not in ("auto", "loss", *SCORES[self.kind]):
            raise ValueError(f"select={self.select} is no score of {self.kind}: {', '.join(SCORES[self.kind])}, loss")


class Supervised(LabelledObjective):
    """The objective: see the module text. ValueError without names of outputs."""

    name = "supervised"
    title = "Supervised"
    Settings = SupervisedSettings
    views_text = "A view is the stretch that the label is learned from."
    mean_over = "known_targets"
    weights: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(
        self, encoder: Encoder, settings: SupervisedSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        s, count = settings, len(settings.names)
        if not count:
            raise ValueError("objective.names is empty: what is learned is filled in by `beatray finetune labels=...`")
        head: dict[str, Any] = {"name": "linear", "outputs": count, "standardise": s.standardise}
        if s.hidden:
            head |= {"name": "mlp", "hidden": s.hidden, "dropout": s.dropout}
        super().__init__(encoder, settings, head, statistics)
        values = 2 * count if s.kind == "multilabel" else count
        self.register_buffer("weights", torch.tensor(s.weights or [1.0] * values), persistent=False)
        self.register_buffer("mean", torch.tensor(s.mean or [0.0] * count), persistent=False)
        self.register_buffer("sd", torch.tensor(s.sd or [1.0] * count), persistent=False)

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        logits = self.head(self.encoder(views["view_1"], views["n_valid"]))
        target = views["target"]
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits)
            errors, known = self._errors(logits, target)
            loss, mean, count = counted_mean((errors * known).sum(), known.sum())
        outputs = {}
        if not self.training:
            scale, shift = (self.sd, self.mean) if self.settings.kind == "numbers" else (1.0, 0.0)
            outputs = {"output": logits.detach() * scale + shift, "target": target}
        return StepResult(loss, {"loss": mean}, {"known_targets": count}, outputs)

    def _errors(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted error of each target, whatever it is where it is not known, and 1 where it is."""
        kind = self.settings.kind
        if kind == "numbers":
            known = torch.isfinite(target)
            filled = (target.to(logits.dtype) - self.mean) / self.sd
            return (logits - torch.where(known, filled, logits.detach())).square(), known.to(logits.dtype)
        known = target >= 0
        if kind == "classes":
            filled = target.clamp_min(0).long()
            errors = functional.cross_entropy(logits, filled, reduction="none")
            return errors * self.weights.to(logits.dtype)[filled], known.to(logits.dtype)
        truth = target.clamp_min(0).to(logits.dtype)
        no, yes = self.weights.to(logits.dtype).unflatten(0, (-1, 2)).unbind(1)
        errors = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return errors * torch.where(truth > 0, yes, no), known.to(logits.dtype)

    def validated(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """AUROC, F1 at the threshold of equal chances, accuracy or the mean absolute error, over known targets.

        The error of several numbers is that in standard deviations of the training part.
        """
        sd = np.array(self.settings.sd) if len(self.settings.sd) > 1 else None
        return scores_of(self.settings.kind, outputs["output"].astype(np.float64), outputs["target"], sd)

    @classmethod
    def described(cls, settings: SupervisedSettings) -> str:
        """What is learned, and by what."""
        table = file_name(settings.table.table)
        learned = f"{table or settings.labels or 'labels'} ({settings.kind})"
        return f"{cls.title}, {learned}, {trained_text(settings, 'head')}"

    @classmethod
    def validation_scores(cls, settings: SupervisedSettings) -> Sequence[str]:
        """By the kind of the labels, which is known once they have been read."""
        return SCORES["numbers" if settings.task == "regress" else settings.kind]


def scores_of(
    kind: Kind, output_nc: NDArray[np.float64], target: NDArray[Any], sd: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """The scores of logits, or of numbers in their own units, over the targets that are known; macro means.

    Errors of several numbers are given in units of `sd` (C,), or the one in the smallest unit would decide.
    """
    if kind == "numbers":
        known = np.isfinite(target)
        errors = np.where(known, np.abs(output_nc - np.where(known, target, 0.0)), 0.0).sum(0)
        with np.errstate(invalid="ignore"):
            return {"mae": mean_of_known(errors / known.sum(0) / (1.0 if sd is None else sd))}
    if kind == "classes":
        known = target >= 0
        truth = target[known][:, None] == np.arange(output_nc.shape[1])
        output_nc = output_nc[known]
        decided = output_nc.argmax(1)[:, None] == np.arange(output_nc.shape[1])
        odds = output_nc - output_nc.max(1, keepdims=True, initial=-np.inf)
        chances = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
        area = [auroc(truth[:, k], chances[:, k]) for k in range(truth.shape[1])]
        hits = (truth & decided).any(1)
        f1 = np.where(truth.any(0), f1_per_class(truth, decided), np.nan)
        accuracy = float(hits.mean()) if len(hits) else float("nan")
        return {"auroc": mean_of_known(np.array(area)), "f1": mean_of_known(f1), "accuracy": accuracy}
    area, f1_each = [], []
    for k in range(output_nc.shape[1]):
        known = target[:, k] >= 0
        truth_k, decided_k = target[known, k] > 0, output_nc[known, k] > 0
        area.append(auroc(truth_k, output_nc[known, k]))
        f1_each.append(float(f1_per_class(truth_k[:, None], decided_k[:, None])[0]) if truth_k.any() else np.nan)
    return {"auroc": mean_of_known(np.array(area)), "f1": mean_of_known(np.array(f1_each))}
