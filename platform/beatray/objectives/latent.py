"""What methods of latent prediction share: the target is what a slow teacher makes of the whole signal, token by token.

A student sees a part of the tokens of a window and predicts the teacher's output h at those that were masked (Assran et
al., I-JEPA, CVPR 2023; Baevski et al., data2vec, ICML 2022). The teacher is a moving average of the student's encoder,
always in evaluation mode: no dropout, and batch norms that use their running statistics. The loss is the mean over the
masked tokens of the global batch, and over the coordinates, of

    |p - h|,  or with loss=smooth_l1  d^2 / 2 for d = |p - h| up to 1 and d - 1/2 beyond.

No gradient reaches h. Its momentum m goes from `momentum` to `momentum_end` along a line.

Nothing but the lag of the teacher keeps h from becoming a constant. Two means over coordinates show it: the SD of h
over all tokens of the global batch, `token/target_std`, and that over the recordings at one position,
`record/target_std`. The second is needed where tokens hold positions: h that knows its position and nothing of the
signal is spread over tokens all the same, and is as easy to predict as a constant. Behind a fresh norm an SD is at most
about 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.encoder import Encoder, at_least_float32
from beatray.objectives.ema import Teacher, linear_momentum
from beatray.objectives.objective import Curve, Objective, Progress, StepResult
from beatray.objectives.reduce import global_mean, sum_over_ranks
from beatray.objectives.statistics import FeatureStatistics

MIN_TARGET_STD = 0.05
"""Of targets that come out of a norm: below, they count as collapsed."""


@dataclass(frozen=True, slots=True)
class LatentSettings:
    """Settings of every method of latent prediction."""

    crop_seconds: float | None = setting(10.0, "null: the whole record", at_least=0.5)
    loss: Literal["l1", "smooth_l1"] = setting("l1", "of a coordinate of a masked token")
    normalise_targets: bool = setting(False, "each target to mean 0 and variance 1 over its coordinates")
    momentum: float = setting(
        0.998,
        "of the teacher at the first step; a run of few steps S needs about 1 - 4 / S, or the teacher never arrives",
        at_least=0.0,
        at_most=1.0,
        searchable=True,
    )
    momentum_end: float = setting(0.9995, "at the last step", at_least=0.0, at_most=1.0, searchable=True)
    exported: Literal["student", "teacher"] = setting("student", "whose encoder others get")

    def __post_init__(self) -> None:
        check(self)


class LatentPrediction(Objective):
    """The teacher, the loss and the watch for collapse; a method adds what is masked and how it is predicted."""

    remedy = "raise objective.momentum, or lower the learning rate"
    mean_over = "token/masked"

    def __init__(self, encoder: Encoder, settings: Any, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.teacher = Teacher(encoder)

    def after_step(self, at: Progress) -> None:
        """Move the teacher towards the new weights."""
        momentum = linear_momentum(at, self.settings.momentum, self.settings.momentum_end)
        self.teacher.update(self.encoder, momentum)

    def exported(self) -> Encoder:
        """The student's encoder, or the teacher's."""
        return self.teacher.module if self.settings.exported == "teacher" else self.encoder

    @classmethod
    def curves(cls, settings: Any) -> Sequence[Curve]:
        """The spread of the targets."""
        return [
            Curve(f"{over}/target_std", f"target SD over {over}s", level=MIN_TARGET_STD, level_name="collapsed below")
            for over in ("token", "record")
        ]

    @classmethod
    def warnings(cls, settings: Any, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Targets that are nearly the same everywhere, once a tenth of the run is over."""
        found: dict[str, str] = {}
        if at.part <= 0.1 or means.get("record/rows", 2.0) < 2.0:
            return found
        for over, what in (("token", "everywhere"), ("record", "in all recordings")):
            std = means.get(f"{over}/target_std", 1.0)
            if std < MIN_TARGET_STD:
                found[f"{over}/target_std"] = (
                    f"targets have collapsed: nearly the same {what} (SD {std:.3f} < {MIN_TARGET_STD}); {cls.remedy}"
                )
        return found

    def _targets(self, h: Tensor) -> Tensor:
        """The teacher's output as it is predicted, at least float32."""
        with torch.autocast(h.device.type, enabled=False):
            exact = at_least_float32(h)
            return layer_norm(exact) if self.settings.normalise_targets else exact

    def _result(self, predicted: Tensor, target: Tensor, counted: Tensor, h: Tensor, there: Tensor) -> StepResult:
        """The loss of predicted, target (B, M, D) where `counted` (B, M); targets are h (B, T', D) where `there`."""
        with torch.autocast(target.device.type, enabled=False):
            errors = token_errors(predicted.to(target.dtype), target, self.settings.loss) * counted
        tokens = counted.sum()
        loss, mean = global_mean(errors.sum(), tokens)
        over_tokens, over_records = target_stds(h, there)
        means = {"loss": mean, "token/target_std": over_tokens, "record/target_std": over_records}
        masked, rows = sum_over_ranks(torch.stack([tokens, tokens.new_full((), len(h))])).float()
        return StepResult(loss, means, {"token/masked": masked, "record/rows": rows})


def target_stds(h: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SD over the global batch of the coordinates of h (B, T', D) where `there` (B, T'), as two numbers.

    Over all tokens, and over the recordings at one position, as a mean over the positions that two recordings reach; 0
    where there is nothing to spread. One collective; any rank may have no row.
    """
    exact = h.detach().double() * there[..., None]
    sums, squares, count = exact.sum(0), exact.square().sum(0), there.sum(0).double()
    summed = sum_over_ranks(torch.cat([sums, squares, count[:, None]], dim=1))
    sums, squares, count = summed.split([h.shape[2], h.shape[2], 1], dim=1)

    def spread(sums: Tensor, squares: Tensor, count: Tensor) -> Tensor:
        count = count.clamp_min(1.0)
        return (squares / count - (sums / count).square()).clamp_min(0.0).sqrt().mean(-1)

    several = (count[:, 0] > 1).double()
    by_position = (spread(sums, squares, count) * several).sum() / several.sum().clamp_min(1.0)
    return spread(sums.sum(0), squares.sum(0), count.sum(0)).float(), by_position.float()


def token_errors(predicted: Tensor, target: Tensor, loss: str) -> Tensor:
    """The loss of each token, as the mean over its coordinates: (B, M, D) twice -> (B, M)."""
    if loss == "l1":
        return (predicted - target).abs().mean(-1)
    return functional.smooth_l1_loss(predicted, target, reduction="none", beta=1.0).mean(-1)


def layer_norm(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension, without weights; what does not vary becomes 0."""
    return functional.layer_norm(x, x.shape[-1:])
