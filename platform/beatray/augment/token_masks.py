"""Which tokens of a recording are hidden: blocks of consecutive tokens, up to an exact number.

The rule is that of Weimann and Conrad (arXiv:2410.13867). Until the number is reached: take an interval that is not yet
hidden, with probability in proportion to its length, and hide a block in it, of a length drawn from `shortest` to
`longest` or what is left to hide, at a place drawn evenly. An interval that is no longer than the block is hidden
whole. What is left to hide in the end, if less than `shortest`, is laid against an edge of the interval where hidden
tokens border, so that no run of hidden tokens is shorter than `shortest` unless all that is to be hidden is.

Contract: row b depends on its own numbers, tokens and quota alone. Every round hides `shortest` tokens or a whole
interval, and only the former make intervals, so that `rounds` bounds the work.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from beatray.augment.draws import Draws


def block_mask(
    draws: Draws,
    purpose: str,
    tokens: int,
    valid: NDArray[np.int64],
    quota: NDArray[np.int64],
    shortest: int,
    longest: int | None = None,
) -> NDArray[np.bool_]:
    """Hide `quota` (B,) of the first `valid` (B,) of `tokens` tokens of each record: (B, tokens), true where hidden.

    Blocks have `shortest` to `longest` tokens, without `longest` up to what is left of the quota.
    """
    left = np.minimum(quota, valid)
    most = rounds(int(left.max(initial=0)), shortest)
    # a longer draw begins with the shorter one: how many rounds the batch needs does not matter to a row
    numbers = draws.uniform(purpose, 3 * most).reshape(len(valid), most, 3)
    index = np.arange(tokens)
    closed = np.broadcast_to(index >= valid[:, None], (len(valid), tokens)).copy()  # hidden, or no signal
    for chosen, length_drawn, start_drawn in numbers.transpose(1, 2, 0):
        if not left.any():
            break
        # an even choice among the open tokens is one among intervals in proportion to their length
        nth = (chosen * (~closed).sum(1)).astype(np.int64)
        token = ((~closed).cumsum(1) <= nth[:, None]).sum(1)[:, None]
        begin = np.where(closed & (index < token), index + 1, 0).max(1)
        end = np.where(closed & (index > token), index, tokens).min(1)
        limit = left if longest is None else np.minimum(left, longest)
        length = shortest + (length_drawn * np.maximum(limit - shortest + 1, 1)).astype(np.int64)
        rest = left < shortest
        length = np.minimum(np.where(rest, left, length), end - begin)
        start = begin + (start_drawn * (end - begin - length + 1)).astype(np.int64)
        at_begin, at_end = rest & (begin > 0), rest & (end < valid)
        glued = np.where(at_begin & (~at_end | (start_drawn < 0.5)), begin, end - length)
        start = np.where(at_begin | at_end, glued, start)[:, None]
        closed |= (index >= start) & (index < start + length[:, None])
        left = left - length
    return closed & (index < valid[:, None])


def rounds(quota: int, shortest: int) -> int:
    """How many rounds hide `quota` tokens at the most."""
    return 2 * (quota // shortest) + 2 if quota else 0
