"""From the rows of one rank to a step: terms are weighted, scaled for data parallel training, and logged.

A term is one contrastive loss (rhythm, beat) with what tells whether it can work: the entropy of its targets, the mass
on own pairs, and the spread of the embeddings. All logs are over the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.objectives.contrast import Form, RowLoss, contrast_rows, own_columns
from beatray.objectives.gather import sum_over_ranks, world_size

MAX_TARGET_ENTROPY = 0.9
MIN_SPREAD = 0.3


@dataclass(frozen=True, slots=True)
class Term:
    """One contrastive term of a step on this rank: its loss and what is logged about its targets and embeddings."""

    name: str
    weight: float
    loss: RowLoss
    entropy_sum: Tensor
    own_mass_sum: Tensor
    spread: Tensor


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The settings of the loss itself: see contrast.py."""

    temperature: float
    form: Form = "rownorm"
    bias: float = 0.0


def contrast_term(
    name: str,
    weight: float,
    z_rows: Tensor,
    z_columns: Tensor,
    self_index: Tensor,
    targets: Tensor,
    own: Tensor,
    settings: LossSettings,
) -> Term:
    """`contrast_rows` of unit rows (R, D) and columns (M, D), with its logs; own (R, M) bool marks own pairs."""
    loss = contrast_rows(z_rows, z_columns, self_index, targets, settings.temperature, settings.form, settings.bias)
    with torch.no_grad():
        weights = targets.masked_fill(own_columns(self_index, len(z_columns)), 0.0)
        mass = weights.sum(1, keepdim=True)
        share = weights / torch.where(mass > 0, mass, 1.0)
        entropy = torch.special.entr(share).sum() / math.log(max(len(z_columns) - 1, 2))
        return Term(name, weight, loss, entropy, (share * own).sum(), embedding_spread(z_columns))


def embedding_spread(z: Tensor) -> Tensor:
    """Mean standard deviation of the coordinates times sqrt(D): 1 for unit rows all over the sphere, 0 when equal."""
    if len(z) < 2:
        return z.new_zeros(())
    return z.detach().std(0, correction=0).mean() * math.sqrt(z.shape[1])


def combine_terms(terms: Sequence[Term]) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms, to be backpropagated on this rank, and logs over the global batch.

    Data parallel training averages gradients over ranks, so the sum over own rows is multiplied by the number of ranks
    and divided by the number of rows kept on all of them. The returned loss differs from rank to rank; its mean over
    ranks, `logs["loss"]`, is the loss of the global batch. One collective for all terms.
    """
    sums = sum_over_ranks(torch.stack([_sums(term) for term in terms]))
    kept = sums[:, 1].clamp_min(1.0)
    loss = terms[0].loss.total.new_zeros(())
    mean = sums.new_zeros(())
    logs: dict[str, Tensor] = {}
    for i, term in enumerate(terms):
        loss = loss + term.loss.total * (term.weight * world_size() / kept[i]).to(term.loss.total.dtype)
        mean = mean + term.weight * sums[i, 0] / kept[i]
        logs[f"{term.name}_loss"] = (sums[i, 0] / kept[i]).float()
        logs[f"{term.name}_target_entropy"] = (sums[i, 2] / kept[i]).float()
        logs[f"{term.name}_own_pair_mass"] = (sums[i, 3] / kept[i]).float()
        logs[f"{term.name}_spread"] = term.spread.float()
        logs[f"{term.name}_rows"] = sums[i, 4].float()
        logs[f"{term.name}_skipped"] = (sums[i, 4] - sums[i, 1]).float()
    return loss, {"loss": mean.float(), **logs}


def _sums(term: Term) -> Tensor:
    rows = term.loss.kept.new_tensor(term.loss.rows)
    parts = (term.loss.total.detach(), term.loss.kept, term.entropy_sum, term.own_mass_sum, rows)
    return torch.stack([part.double() for part in parts])


def collapse_warning(logs: Mapping[str, Tensor | float]) -> str | None:
    """One sentence when targets carry hardly any signal or embeddings have gathered in a point, else None.

    Targets: normalised entropy above 0.9. Embeddings: standard deviation below 0.3 / sqrt(D).
    """
    for key, value in logs.items():
        number = float(value)
        name = key.split("_")[0]
        if key.endswith("_target_entropy") and number > MAX_TARGET_ENTROPY:
            return (
                f"{name} targets are nearly uniform (normalised entropy {number:.2f} > {MAX_TARGET_ENTROPY}): "
                "raise exponent, or set pos_mass"
            )
        if key.endswith("_spread") and number < MIN_SPREAD and float(logs.get(f"{name}_rows", 2.0)) > 1.0:
            return (
                f"{name} embeddings have nearly collapsed (spread {number:.2f} < {MIN_SPREAD} of a sphere's): "
                "sharpen the targets, or lower the temperature or the learning rate"
            )
    return None
