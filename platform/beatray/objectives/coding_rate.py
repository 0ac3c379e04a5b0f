"""The coding rate of unit rows: how many directions they use, as a number that can be pushed up.

R = 1/2 logdet(I + d / (n eps) Z^T Z) for Z (n, d): Yu et al., NeurIPS 2020, with eps for the square of their epsilon;
Wu et al., arXiv 2502.10385. It is least, 1/2 ln(1 + d/eps), where all rows are equal, and greatest where the rows
spread evenly over r = min(n, d) directions: r/2 ln(1 + d / (r eps)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coding_rate(moments: Tensor, rows: Tensor | float, eps: float) -> Tensor:
    """1/2 logdet(I + d / (n eps) Z^T Z) from Z^T Z (..., d, d) of `rows` n unit rows: (...)."""
    d = moments.shape[-1]
    n = torch.as_tensor(rows, dtype=torch.float64, device=moments.device).clamp_min(1.0)
    scale = (d / (n * eps)).to(moments.dtype)
    one = torch.eye(d, dtype=moments.dtype, device=moments.device)
    rate: Tensor = torch.linalg.slogdet(one + scale * moments).logabsdet / 2.0
    return rate


def rate_share(rate: Tensor, rows: Tensor, d: int, eps: float) -> Tensor:
    """How far a coding rate lies on the way from that of equal rows, 0, to the greatest of so many rows, 1."""
    least = math.log1p(d / eps) / 2.0
    directions = rows.clamp(1.0, d)
    most = directions / 2.0 * torch.log1p(d / (directions * eps))
    return torch.where(directions > 1.0, (rate - least) / (most - least).clamp_min(1e-12), 1.0)
