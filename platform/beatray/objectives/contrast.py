"""The contrastive losses that objectives share: rows of this rank against the columns of all, hard or soft targets.

For unit embeddings z, temperature tau and p_ij = exp(z_i z_j / tau) / sum_{k != i} exp(z_i z_k / tau), the loss of row
i with targets T_ij (the diagonal never counts) is, by `form`:

- `soft_cross_entropy`: - sum_j (T_ij / sum_k T_ik) log p_ij, the cross-entropy with a target distribution. With a
  single 1 per row it is NT-Xent (Chen et al., SimCLR, ICML 2020, equation 1), with several 1 it is the SupCon loss
  L_out (Khosla et al., NeurIPS 2020, equation 2).
- `softclt`: - sum_j T_ij log p_ij, weights as they are (Lee, Park and Lee, SoftCLT, ICLR 2024, instance loss).
- `sigmoid`: the mean over j of the binary cross-entropy of sigmoid(z_i z_j / tau + bias) with T_ij (Zhai et al.,
  SigLIP, ICCV 2023, with soft labels).

The loss of a batch is the mean over rows whose targets have any mass; rows without are left out and counted.

Where some positions hold nothing (`there` (M,) bool, the same on every rank), they are neither rows nor columns.

Contract: computed in float32 (float64 stays), outside autocast. Only rows x global columns are ever materialised, and
of many rows not all at a time: row_chunks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from beatray.models.encoder import at_least_float32

Form = Literal["soft_cross_entropy", "softclt", "sigmoid"]
FORMS: tuple[str, ...] = get_args(Form)

_NEVER = -1e30  # a logit whose exponential is exactly 0, yet finite, so that 0 * logit is 0


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Loss of some rows: the sum over kept rows (with gradient), how many were kept, how many there were."""

    total: Tensor
    kept: Tensor
    rows: Tensor


def soft_contrastive_loss(
    z: Tensor, targets: Tensor, temperature: float = 0.1, form: Form = "soft_cross_entropy", bias: float = 0.0
) -> Tensor:
    """Loss of a whole batch in one process: z (M, D) any scale, targets (M, M) at least 0 -> scalar.

    For two views stack them as z = [view 1 of all, view 2 of all]. The diagonal of `targets` is ignored. The mean is
    over rows whose targets have any mass; 0 if none has. Raises ValueError for shapes that do not fit, a temperature
    that is not positive, or an unknown form.
    """
    if z.dim() != 2 or targets.shape != (len(z), len(z)):
        raise ValueError(f"z must be (M, D) and targets (M, M), not {tuple(z.shape)} and {tuple(targets.shape)}")
    unit = unit_rows(z)
    loss = contrast_rows(unit, unit, torch.arange(len(z), device=z.device), targets, temperature, form, bias)
    return loss.total / loss.kept.clamp_min(1)


def unit_rows(z: Tensor) -> Tensor:
    """Rows of length 1 in float32 (float64 stays): (M, D) -> (M, D). A zero row stays zero."""
    return functional.normalize(at_least_float32(z), dim=-1)


def contrast_rows(
    z_rows: Tensor,
    z_columns: Tensor,
    self_index: Tensor,
    targets: Tensor,
    temperature: float,
    form: Form = "soft_cross_entropy",
    bias: float = 0.0,
    there: Tensor | None = None,
) -> RowLoss:
    """Loss of some rows of the global batch: unit z_rows (R, D) against all unit z_columns (M, D).

    self_index (R,) is the column that each row is; targets (R, M) at least 0; there (M,) bool marks which columns, and
    so which rows, are there, None: all. R and M may be 0.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    with torch.autocast(z_rows.device.type, enabled=False):
        logits = z_rows @ z_columns.T / temperature
        hidden = unseen(self_index, len(z_columns), there)
        weights = targets.to(logits.dtype).masked_fill(hidden, 0.0)
        mass = weights.sum(1)
        keep = mass > 0
        if form == "sigmoid":
            pairs = functional.binary_cross_entropy_with_logits(logits + bias, weights, reduction="none")
            per_row = pairs.masked_fill(hidden, 0.0).sum(1) / n_others(len(z_columns), there)
        else:
            logits = logits.masked_fill(hidden, _NEVER)
            if form == "soft_cross_entropy":
                weights = weights / torch.where(keep, mass, 1.0)[:, None]
            per_row = weights.sum(1) * _logsumexp(logits) - (weights * logits).sum(1)
        return RowLoss(torch.where(keep, per_row, 0.0).sum(), keep.sum(), rows_there(self_index, there))


def own_columns(self_index: Tensor, columns: int) -> Tensor:
    """True where a column is the row itself: (R,) -> (R, M) bool."""
    return torch.arange(columns, device=self_index.device) == self_index[:, None]


def unseen(self_index: Tensor, columns: int, there: Tensor | None = None) -> Tensor:
    """True where a row has no column: itself, and all pairs with one not there: (R,), (M,) -> (R, M) bool."""
    is_self = own_columns(self_index, columns)
    return is_self if there is None else is_self | ~(there[self_index][:, None] & there)


def n_others(columns: int, there: Tensor | None, at_least: int = 1) -> Tensor | int:
    """How many columns a row has beside itself; a tensor where the host does not know."""
    return max(columns - 1, at_least) if there is None else (there.sum() - 1).clamp_min(at_least)


def rows_there(self_index: Tensor, there: Tensor | None) -> Tensor:
    """How many of some rows (R,) are there: () int64."""
    return self_index.new_full((), len(self_index)) if there is None else there[self_index].sum()


def _logsumexp(logits: Tensor) -> Tensor:
    if logits.shape[1] == 0:
        return logits.new_zeros(len(logits))  # no column anywhere: nothing to be contrasted with
    return logits.logsumexp(1)
