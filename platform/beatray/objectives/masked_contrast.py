"""The contrast of wav2vec 2.0: which of some quantised tokens is the one that was masked here.

Baevski et al. (NeurIPS 2020, equation 3). With the context c of a masked token, its quantised features q and those q_n
of negatives,

    - log( exp(cos(c, q) / t) / (exp(cos(c, q) / t) + sum_n exp(cos(c, q_n) / t)) ),

where a negative that has the same codes as the token counts in nothing. Contract: float32 (float64 stays); no loop over
negatives, (B, M, M) cosines at most; a token without any negative that counts costs 0, with a finite gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beatray.objectives.contrast import unit_rows


def masked_contrast(
    context: Tensor, quantised: Tensor, codes: Tensor, negatives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The loss of the module text for every masked token, and whether its own scored best: (B, M) each.

    context, quantised (B, M, D); codes (B, M, G) int64; negatives (B, M, N) int64, positions among the M of the same
    row.
    """
    scores = unit_rows(context) @ unit_rows(quantised).transpose(1, 2) / temperature  # (B, M, M)
    alike = (codes[:, :, None] == codes[:, None]).all(-1)
    positive = scores.diagonal(dim1=1, dim2=2)
    others = scores.masked_fill(alike, float("-inf")).gather(2, negatives)
    # with the positive among them a logsumexp is never of -inf alone, which has no gradient
    loss = torch.cat([positive[..., None], others], 2).logsumexp(2) - positive
    return loss, (positive > others.amax(2)).to(loss.dtype)
