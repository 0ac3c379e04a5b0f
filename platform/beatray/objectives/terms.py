"""From the rows of one rank to a step: terms are weighted, scaled for data parallel training, and logged.

A term is one contrastive loss (rhythm, beat) with what tells whether it can work: the entropy of its targets, the mass
on own pairs, quantiles of the similarities behind soft targets, and the spread of the embeddings. All logs are over the
global batch, under the name of the term: `<term>_loss`, `_target_entropy` (in units of that of a uniform target),
`_own_pair_mass`, `_raw_similarity_q05` to `_q95` and `_sharp_similarity_q05` to `_q95` (soft targets only, before
pos_mass), `_spread`, `_rows`, `_skipped`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.objectives.contrast import Form, RowLoss, contrast_rows, own_columns
from beatray.objectives.gather import sum_over_ranks, world_size
from beatray.objectives.similarity import BINS, QUANTILES, Similarity, others_histogram, quantiles

N_SUMS = 5
"""Numbers per term that are summed over ranks: those of `_sums`."""

MAX_TARGET_ENTROPY = 0.9
"""Above, targets are called nearly uniform. Measured on small real data (macro F1 of a frozen decoder): entropy 1.00
gave 0.863, which is random weights; 0.96 gave 0.883; 0.70 gave 0.903; 0.62 gave 0.917. Half of the mass on the own pair
keeps the entropy below 0.9 from 4 other columns on, whatever the rest is; a quarter does so from 38 on."""

MIN_SPREAD = 0.3

SHARPER = {"soft_1": "exponent", "soft_2": "tau_instance", "soft_z": "z_power"}
"""The setting that sharpens each kind of soft target."""


@dataclass(frozen=True, slots=True)
class Term:
    """One contrastive term of a step on this rank: its loss and what is logged about its targets and embeddings."""

    name: str
    weight: float
    loss: RowLoss
    entropy_sum: Tensor
    own_mass_sum: Tensor
    spread: Tensor
    histogram: Tensor | None = None  # of raw similarities, for soft targets
    similarity: Similarity | None = None


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
    similarity: Similarity | None = None,
) -> Term:
    """`contrast_rows` of unit rows (R, D) and columns (M, D), with its logs; own (R, M) bool marks own pairs.

    `similarity` is what soft targets were made of, for the logs alone.
    """
    loss = contrast_rows(z_rows, z_columns, self_index, targets, settings.temperature, settings.form, settings.bias)
    with torch.no_grad():
        weights = targets.masked_fill(own_columns(self_index, len(z_columns)), 0.0)
        mass = weights.sum(1, keepdim=True)
        share = weights / torch.where(mass > 0, mass, 1.0)
        entropy = torch.special.entr(share).sum() / math.log(max(len(z_columns) - 1, 2))
        counts = None if similarity is None else others_histogram(similarity.raw, own, self_index)
        own_mass = (share * own).sum()
        return Term(name, weight, loss, entropy, own_mass, embedding_spread(z_columns), counts, similarity)


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
    measured = [term.histogram for term in terms if term.histogram is not None]
    local = torch.cat([*(_sums(term) for term in terms), *measured])
    sums, counts = sum_over_ranks(local).split([N_SUMS * len(terms), BINS * len(measured)])
    sums, counts = sums.view(len(terms), N_SUMS), counts.view(len(measured), BINS)
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
        if term.similarity is not None:
            logs |= _similarity_logs(term.name, term.similarity, counts[0])
            counts = counts[1:]
        logs[f"{term.name}_spread"] = term.spread.float()
        logs[f"{term.name}_rows"] = sums[i, 4].float()
        logs[f"{term.name}_skipped"] = (sums[i, 4] - sums[i, 1]).float()
    return loss, {"loss": mean.float(), **logs}


def _similarity_logs(name: str, similarity: Similarity, histogram: Tensor) -> dict[str, Tensor]:
    raw = quantiles(histogram)
    both = (("raw", raw), ("sharp", similarity.sharpen(raw)))
    return {
        f"{name}_{kind}_similarity_q{level:02d}": value.float()
        for kind, values in both
        for level, value in zip(QUANTILES, values, strict=True)
    }


def _sums(term: Term) -> Tensor:
    rows = term.loss.kept.new_tensor(term.loss.rows)
    parts = (term.loss.total.detach(), term.loss.kept, term.entropy_sum, term.own_mass_sum, rows)
    return torch.stack([part.double() for part in parts])


def collapse_warnings(
    logs: Mapping[str, Tensor | float], objective: Mapping[str, object] | None = None
) -> dict[str, str]:
    """One sentence for each term whose targets carry hardly any signal or whose embeddings have gathered in a point.

    Targets: normalised entropy above `MAX_TARGET_ENTROPY`. Embeddings: standard deviation below `MIN_SPREAD` / sqrt(D).
    Keys are the logs that were looked at. With the settings of the `objective` a sentence names the one to change.
    """
    told = {}
    for key, value in logs.items():
        number = float(value)
        name = key.split("_")[0]
        if key.endswith("_target_entropy") and number > MAX_TARGET_ENTROPY:
            told[key] = (
                f"{name} targets are nearly uniform (normalised entropy {number:.2f} > {MAX_TARGET_ENTROPY}): "
                f"{_remedy(name, objective or {})}"
            )
        if key.endswith("_spread") and number < MIN_SPREAD and float(logs.get(f"{name}_rows", 2.0)) > 1.0:
            told[key] = (
                f"{name} embeddings have nearly collapsed (spread {number:.2f} < {MIN_SPREAD} of a sphere's): "
                "sharpen the targets, or lower the temperature or the learning rate"
            )
    return told


def _remedy(name: str, objective: Mapping[str, object]) -> str:
    """Which setting to change where the targets of a term are nearly uniform."""
    kind = objective.get(name)
    if kind == "hard" and name == "beat":
        return "nearly all beats count as alike; choose objective.hard_beat=same_record, or a larger batch"
    sharper = SHARPER.get(str(kind))
    if sharper is None:
        return "raise objective.exponent, or set objective.pos_mass"
    words = f"raise objective.{sharper} (now {objective.get(sharper)})"
    if not objective.get("pos_mass"):
        words += f", or set objective.pos_mass=0.5 (now {objective.get('pos_mass')})"
    return words
