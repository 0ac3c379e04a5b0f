"""Time masks: stretches of a view set to zero, so that the encoder cannot lean on one lead or one moment.

`time_mask` is the mask of 3KG (Gopal et al. 2021): in every lead one block of `fraction` of the samples, with its own
start, running on from the end to the beginning. `time_out` is that of Mehari and Strodthoff (Comput. Biol. Med. 2022):
one block over all leads.

Blocks are written as slices on a CPU (about ten times faster there than a comparison at every sample) and as a product
with a comparison elsewhere; both give the same numbers.

Contract: x (B, 12, T); starts and lengths in samples; row b depends on row b alone. With `in_place` the input is
overwritten and returned.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.record import LEADS

MAX_HIDDEN_LEADS = 9
"""A beat hidden in more leads than this counts as lost (`draw_mask`)."""


def time_mask(x: Tensor, draws: NDArray[np.float64], fraction: float = 0.5, in_place: bool = False) -> Tensor:
    """Zero one circular block of round(`fraction` * T) samples in each lead.

    x (B, 12, T); draws (B, 12) in [0, 1), the start of the block as a part of T. Raises ValueError for a fraction
    outside 0..1.
    """
    length = mask_length(fraction, x.shape[-1])
    starts = (draws * x.shape[-1]).astype(np.int64)
    return _zero_blocks(x, starts, np.full_like(starts, length), in_place)


def time_out(
    x: Tensor, draws: NDArray[np.float64], shortest: float = 0.2, longest: float = 0.4, in_place: bool = False
) -> Tensor:
    """Zero one block of all leads, `shortest` to `longest` of T long, wholly inside: x (B, 12, T), draws (B, 2)."""
    if not 0.0 <= shortest <= longest <= 1.0:
        raise ValueError(f"time-out must have 0 <= shortest <= longest <= 1, not {shortest} and {longest}")
    n = x.shape[-1]
    lengths = np.rint((shortest + (longest - shortest) * draws[:, 0]) * n).astype(np.int64)
    starts = (draws[:, 1] * (n - lengths + 1)).astype(np.int64)
    every_lead = (len(draws), x.shape[1])
    return _zero_blocks(
        x, np.broadcast_to(starts[:, None], every_lead), np.broadcast_to(lengths[:, None], every_lead), in_place
    )


def mask_length(fraction: float, n_samples: int) -> int:
    """Samples of a block. Raises ValueError for a fraction outside 0..1."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"mask fraction must lie in 0..1, not {fraction}")
    return round(fraction * n_samples)


def draw_mask(
    draws: Draws,
    view: int,
    *,
    fraction: float = 0.5,
    n_samples: int = 0,
    peaks_smp: NDArray[np.int64] | None = None,
    max_hidden: int = MAX_HIDDEN_LEADS,
    tries: int = 8,
) -> NDArray[np.float64]:
    """Starts for `time_mask`: (B, 12) in [0, 1).

    With `peaks_smp` (B, P) (positions in the view, anything outside 0..n_samples-1 is no beat) a draw that hides the
    peak of some beat in more than `max_hidden` leads is drawn again with the next counters, at most `tries` draws; the
    last one stands whatever it hides, so the cost is bounded and the result stays a function of the record.
    """
    n_leads = len(LEADS)
    if peaks_smp is None:
        return draws.uniform("mask", n_leads, view)
    drawn = draws.uniform("mask", n_leads * tries, view).reshape(-1, tries, n_leads)
    starts = (drawn * n_samples).astype(np.int64)
    length = mask_length(fraction, n_samples)
    # peaks (B, 1, P, 1) against starts (B, tries, 1, 12): inside the block, counted around the circle
    behind_start = (peaks_smp[:, None, :, None] - starts[:, :, None, :]) % max(n_samples, 1)
    is_beat = (peaks_smp >= 0) & (peaks_smp < n_samples)
    hidden = (behind_start < length).sum(axis=-1) * is_beat[:, None, :]
    good = (hidden <= max_hidden).all(axis=-1)
    chosen = np.where(good.any(axis=1), good.argmax(axis=1), tries - 1)
    return drawn[np.arange(len(drawn)), chosen]


def _zero_blocks(x: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64], in_place: bool) -> Tensor:
    if x.device.type == "cpu" and not x.requires_grad:
        out = x if in_place else x.clone()
        _zero_slices(out.numpy(), starts, lengths)
        return out
    start = torch.as_tensor(np.ascontiguousarray(starts)).to(x.device, non_blocking=True)[..., None]
    length = torch.as_tensor(np.ascontiguousarray(lengths)).to(x.device, non_blocking=True)[..., None]
    time = torch.arange(x.shape[-1], device=x.device)
    hidden = (time - start) % x.shape[-1] < length
    return x.masked_fill_(hidden, 0.0) if in_place else x.masked_fill(hidden, 0.0)


def _zero_slices(x: NDArray[np.float32], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    n = x.shape[-1]
    stops = starts + lengths
    for record, record_starts, record_stops in zip(x, starts.tolist(), stops.tolist(), strict=True):
        for lead, start, stop in zip(record, record_starts, record_stops, strict=True):
            lead[start:stop] = 0.0
            if stop > n:
                lead[: stop - n] = 0.0
