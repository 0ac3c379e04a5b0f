"""From the rows of one rank to a step: terms are weighted, scaled for data parallel training, and logged.

A term is one contrastive loss (record, beat) with what shows whether it can work: the entropy of its targets, the mass
on positive pairs, quantiles of the similarities behind soft targets, and the spread of the embeddings. All of it is
over the global batch, under the name of the term: means `term/loss`, `/target_entropy` (in units of that of a uniform
target), `/positive_mass`, `/raw_similarity_q05` to `_q95` and `/sharp_similarity_q05` to `_q95` (soft targets only,
before positive_mass is fixed) and `/embedding_std`; counts `term/rows` and `/skipped`.

Rows are taken a chunk at a time (row_chunks.py): loss, logs and counts are sums over chunks. Where `there` (M,) bool is
given, columns that are not there, and rows among them, count in nothing, neither in `rows` nor in `skipped`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from beatray.objectives.contrast import Form, RowLoss, contrast_rows, n_others, unseen
from beatray.objectives.objective import Curve, StepResult, embedding_curves
from beatray.objectives.reduce import ddp_mean, sum_over_ranks
from beatray.objectives.row_chunks import by_chunks
from beatray.objectives.row_targets import TargetsOf
from beatray.objectives.soft_targets import BINS, QUANTILES, others_histogram, quantiles

N_SUMS = 5
"""Numbers per term that are summed over ranks: those of `_sums`."""

MAX_TARGET_ENTROPY = 0.9
"""Above, targets are called nearly uniform. Measured on small real data (macro F1 of a frozen decoder): entropy 1.00
gave 0.863, which is random weights; 0.96 gave 0.883; 0.70 gave 0.903; 0.62 gave 0.917. Half of the mass on the own pair
keeps the entropy below 0.9 from 4 other columns on, whatever the rest is; a quarter does so from 38 on."""


Sharpen = Callable[[Tensor], Tensor]
"""From raw similarities to soft targets."""


@dataclass(frozen=True, slots=True)
class Term:
    """One contrastive term of a step on this rank: its loss and what is logged about its targets and embeddings."""

    name: str
    weight: float
    loss: RowLoss
    entropy_sum: Tensor
    own_mass_sum: Tensor
    embedding_std: Tensor
    histogram: Tensor | None = None  # of raw similarities, for soft targets
    sharpen: Sharpen | None = None


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The settings of the loss itself: see contrast.py."""

    temperature: float
    form: Form = "soft_cross_entropy"
    bias: float = 0.0

    def of_rows(
        self, z_rows: Tensor, z_columns: Tensor, self_index: Tensor, targets: Tensor, there: Tensor | None
    ) -> RowLoss:
        """The loss of some rows, as `contrast_rows` has it."""
        return contrast_rows(z_rows, z_columns, self_index, targets, self.temperature, self.form, self.bias, there)


def contrast_term(
    name: str,
    weight: float,
    z_rows: Tensor,
    z_columns: Tensor,
    self_index: Tensor,
    targets_of: TargetsOf,
    settings: LossSettings,
    there: Tensor | None = None,
) -> Term:
    """The loss of unit rows (R, D), which are the columns self_index (R,), against unit columns (M, D), with its logs.

    targets_of makes the targets of some of the rows.
    """

    def of_chunk(z: Tensor, index: Tensor) -> tuple[list[Tensor], Sharpen | None]:
        of_rows = targets_of(index)
        loss = settings.of_rows(z, z_columns, index, of_rows.targets, there)
        # behind the loss, so that the backward pass need not compute it again
        with torch.no_grad():
            weights = of_rows.targets.masked_fill(unseen(index, len(z_columns), there), 0.0)
            mass = weights.sum(1, keepdim=True)
            share = weights / torch.where(mass > 0, mass, 1.0)
            sums = [loss.total, loss.kept, loss.rows, torch.special.entr(share).sum(), (share * of_rows.own).sum()]
            if of_rows.similarity is None:
                return sums, None
            histogram = others_histogram(of_rows.similarity.raw, of_rows.own, index, there)
            return [*sums, histogram], of_rows.similarity.sharpen

    chunks = by_chunks(of_chunk, z_rows, self_index, columns=len(z_columns))
    total, kept, rows, entropy, own_mass, *histogram = (
        reduce(add, parts) for parts in zip(*(sums for sums, _ in chunks), strict=True)
    )
    others = n_others(len(z_columns), there, at_least=2)
    uniform = others.double().log() if isinstance(others, Tensor) else math.log(others)
    return Term(
        name,
        weight,
        RowLoss(total, kept, rows),
        entropy / uniform,
        own_mass,
        columns_std(z_columns, there),
        histogram[0] if histogram else None,
        chunks[0][1],
    )


def columns_std(z: Tensor, there: Tensor | None = None) -> Tensor:
    """`reduce.embedding_std` of unit rows (M, D) that are those of all ranks already."""
    z = z.detach()
    if len(z) < 2:
        return z.new_zeros(())
    if there is None:
        sd = z.std(0, correction=0)
    else:
        weights = there[:, None].to(z.dtype)
        count = weights.sum().clamp_min(1.0)
        mean = (weights * z).sum(0) / count
        sd = ((weights * (z - mean).square()).sum(0) / count).sqrt()
    return sd.mean() * math.sqrt(z.shape[1])


def combine_terms(terms: Sequence[Term]) -> StepResult:
    """Weighted sum of the terms: the loss of this rank's rows, and what is to be known over the global batch.

    The loss differs from rank to rank; its mean over ranks, `means["loss"]`, is the loss of the global batch. One
    collective for all terms.
    """
    measured = [term.histogram for term in terms if term.histogram is not None]
    local = torch.cat([*(_sums(term) for term in terms), *measured])
    sums, histograms = sum_over_ranks(local).split([N_SUMS * len(terms), BINS * len(measured)])
    sums, histograms = sums.view(len(terms), N_SUMS), histograms.view(len(measured), BINS)
    kept = sums[:, 1].clamp_min(1.0)
    loss = terms[0].loss.total.new_zeros(())
    mean = sums.new_zeros(())
    means: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for i, term in enumerate(terms):
        loss = loss + ddp_mean(term.loss.total, kept[i], term.weight)
        mean = mean + term.weight * sums[i, 0] / kept[i]
        means[f"{term.name}/loss"] = (sums[i, 0] / kept[i]).float()
        means[f"{term.name}/target_entropy"] = (sums[i, 2] / kept[i]).float()
        means[f"{term.name}/positive_mass"] = (sums[i, 3] / kept[i]).float()
        if term.sharpen is not None:
            means |= _similarity_means(term.name, term.sharpen, histograms[0])
            histograms = histograms[1:]
        means[f"{term.name}/embedding_std"] = term.embedding_std.float()
        counts[f"{term.name}/rows"] = sums[i, 4].float()
        counts[f"{term.name}/skipped"] = (sums[i, 4] - sums[i, 1]).float()
    return StepResult(loss, {"loss": mean.float(), **means}, counts)


def _similarity_means(name: str, sharpen: Sharpen, histogram: Tensor) -> dict[str, Tensor]:
    raw = quantiles(histogram)
    both = (("raw", raw), ("sharp", sharpen(raw)))
    return {
        f"{name}/{kind}_similarity_q{level:02d}": value.float()
        for kind, values in both
        for level, value in zip(QUANTILES, values, strict=True)
    }


def _sums(term: Term) -> Tensor:
    parts = (term.loss.total.detach(), term.loss.kept, term.entropy_sum, term.own_mass_sum, term.loss.rows)
    return torch.stack([part.double() for part in parts])


def contrast_curves(term: str) -> list[Curve]:
    """What a report draws of a contrastive term."""
    loss, std = embedding_curves(term)
    return [
        loss,
        Curve(f"{term}/target_entropy", f"{term}: target entropy", True, MAX_TARGET_ENTROPY, "nearly uniform"),
        Curve(f"{term}/positive_mass", f"{term}: positive mass", True),
        std,
    ]


def uniform_targets(means: Mapping[str, float]) -> list[str]:
    """Terms whose targets carry hardly any signal: normalised entropy above `MAX_TARGET_ENTROPY`."""
    found = (key.partition("/") for key, value in means.items() if value > MAX_TARGET_ENTROPY)
    return [term for term, _, what in found if what == "target_entropy"]
