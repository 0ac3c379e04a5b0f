"""A product quantiser with Gumbel noise: vectors to a few codes, with a gradient for the choice.

Baevski et al., wav2vec 2.0 (NeurIPS 2020, section 2 and equation 1), after Jang et al. (ICLR 2017). A linear map gives
G groups of V logits l; in training the code of a group is argmax_v (l_v + n_v) with Gumbel noise n, in evaluation
argmax_v l_v. Forwards the choice is one-hot, backwards it is softmax((l + n) / temperature): straight through. The
chosen rows of a codebook of each group, one after the other, are the quantised vector.

The noise of a token is a hash of a number that its record drew and of its position, computed where the tokens lie: it
depends on no batch, rank or device, and only that one number travels.

Contract: float32 (float64 stays), outside autocast. Any leading shape, zero rows included.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.objectives.objective import Progress

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))  # "lowbias32" of C. Wellons; the second as a negative number, so
# that a product with a 32-bit word never leaves 64 bits
_EPS = 1e-7  # in the logarithm of `perplexity`, as in the reference

Stop = Callable[[Tensor], Tensor]


class ProductQuantiser(nn.Module):
    """(..., D) -> (..., dim) in `groups` codes out of `codes` each; see the module text."""

    def __init__(self, width: int, groups: int, codes: int, dim: int) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"objective.code_dim must be a multiple of objective.code_groups, not {dim} and {groups}")
        self.groups, self.codes = groups, codes
        self.choose = nn.Linear(width, groups * codes)
        nn.init.normal_(self.choose.weight)
        nn.init.zeros_(self.choose.bias)
        self.codebook = nn.Parameter(torch.rand(groups, codes, dim // groups))
        self.codebook.no_decay = True  # type: ignore[attr-defined]

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., G, V)."""
        scores: Tensor = self.choose(x).unflatten(-1, (self.groups, self.codes))
        return scores

    def look_up(self, chosen: Tensor) -> Tensor:
        """One-hot (..., G, V) -> (..., dim)."""
        rows: Tensor = torch.einsum("...gv,gvd->...gd", chosen, self.codebook)
        return rows.flatten(-2)


def straight_through(
    logits: Tensor, temperature: float, noise: Tensor | None = None, stop: Stop = Tensor.detach
) -> Tensor:
    """One-hot choice over the last axis, whose gradient is that of softmax((logits + noise) / temperature).

    Without noise it is the plain argmax, with the gradient of softmax(logits / temperature).
    """
    noisy = logits if noise is None else logits + noise
    hard = functional.one_hot(noisy.argmax(-1), logits.shape[-1]).to(logits.dtype)
    soft = (noisy / temperature).softmax(-1)
    return hard + (soft - stop(soft))  # the bracket is exactly 0, so what comes out is exactly one-hot


def code_temperature(at: Progress, start: float, end: float) -> float:
    """From `start` at step 0 towards `end` at the end of the run: start (end / start)^(k / K) for step k of K."""
    part = at.step / max(at.steps, 1)
    return start * math.exp(part * math.log(end / start))


def gumbel_noise(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """-log(-log u) of uniform numbers u that are a function of a row's seed (B,) int64 in 0..2^32-1: (B, *shape)."""
    count = int(torch.Size(shape).numel())
    hashed = _mixed(torch.arange(count, device=seed.device))
    bits = _mixed(hashed ^ seed[:, None]) >> 9  # 23 bits: the largest number below 1 is still below it in float32
    u = (bits.to(dtype) + 0.5) * 2.0**-23
    return -(-u.log()).log().view(len(seed), *shape)


def perplexity(shares: Tensor) -> Tensor:
    """exp of the entropy of shares over the last axis: how many codes are used as if all alike, (..., V) -> (...)."""
    return (-(shares * (shares + _EPS).log()).sum(-1)).exp()


def diversity(shares: Tensor) -> Tensor:
    """(G V - sum over groups of the perplexity) / (G V), near 0 where all codes are used alike: (G, V) -> ()."""
    return 1.0 - perplexity(shares).sum() / shares.numel()


def _mixed(word: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, that leaves no bit where it was."""
    first, second = _MULTIPLIERS
    word = word ^ (word >> 16)
    word = (word * first) & _MASK32
    word = word ^ (word >> 15)
    word = (word * second) & _MASK32
    return word ^ (word >> 16)
