"""Which tokens of a recording are masked: spans, up to an exact number, and the negatives of each.

Spans as in wav2vec 2.0 (Baevski et al., NeurIPS 2020, section 3.1): starts are drawn evenly, spans may overlap and lie
inside the signal. Here they are drawn until at least the wanted number of tokens is covered, and tokens drawn evenly
among those are given back, so that every recording masks exactly what it should, whatever batch it lies in.

Contract: row b depends on its own draws, `cells` and `count` alone; tokens are counted from 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from beatray.augment.draws import Draws

_COVERS = 8  # spans that are drawn would cover a recording so often; what they leave open is filled up evenly


def masked_tokens(
    draws: Draws, view: int, tokens: int, cells: NDArray[np.int64], count: NDArray[np.int64], span: int
) -> NDArray[np.int64]:
    """Masked tokens in the order of time, `count` (B,) out of the first `cells` (B,): (B, tokens), others behind them.

    count is at most cells, and cells at most `tokens`.
    """
    spans = _COVERS * -(-tokens // span)
    length = np.minimum(span, cells)
    drawn = draws.uniform("token_spans", spans, view)
    starts = (drawn * (cells - length + 1)[:, None]).astype(np.int64)
    first = np.full((len(cells), tokens + span), spans, np.int64)  # number of the first span that covers a token
    rows, numbers = np.indices(starts.shape)
    for step in range(span):
        np.minimum.at(first, (rows, starts + step), numbers)
    first = first[:, :tokens]
    beyond = np.arange(tokens) >= cells[:, None]
    first[beyond] = spans
    last = np.take_along_axis(np.sort(first, axis=1), np.maximum(count - 1, 0)[:, None], axis=1)
    open_ = (first > last) | (first == spans)
    order = np.argsort(draws.uniform("given_back", tokens, view) + open_ + 2.0 * beyond, axis=1, kind="stable")
    rank = np.argsort(order, axis=1)  # of each token in that order
    masked = rank < count[:, None]
    return np.argsort(~masked, axis=1, kind="stable")


def negative_positions(
    draws: Draws, view: int, masked: int, count: NDArray[np.int64], number: int
) -> NDArray[np.int64]:
    """For each of `masked` masked tokens `number` others of the `count` (B,) of its recording, with replacement.

    (B, masked, number) of 0 .. count - 1. A recording that masks one token gets that one: it has no other.
    """
    drawn = draws.uniform("negatives", masked * number, view).reshape(-1, masked, number)
    chosen = (drawn * np.maximum(count - 1, 0)[:, None, None]).astype(np.int64)
    chosen += chosen >= np.arange(masked)[:, None]
    return np.minimum(chosen, np.maximum(count - 1, 0)[:, None, None])
