"""How far each lead of a recording can be relied on, by its own consistency beside that of the other leads.

For finding beats (`lead_weights`): a lead that shows heartbeats is quiet most of the time and steep for a tenth of a
second; muscle, electrodes and wander are equally busy all the time. Sparseness separates the two without a scale:
n sum(d^2) / (sum |d|)^2 of a slope d is pi / 2 = 1.6 for Gaussian noise, 1.5 to 2.5 for most of the recorded noise of
the MIT-BIH Noise Stress Test, and above 2.5 in 99 of 100 stretches of 1.6 s of LUDB and PTB-XL.

A lead's trust in a stretch is a ramp of its sparseness there, times the square of the least such value within 8 s on
both sides: electrodes that move now and then draw steps which are as sparse as beats, but not for long. The weight of a
lead is its trust in proportion to the best lead's, with a constant added to both: where all leads are noisy alike, all
count alike.

For finding waves (`noise_shares`): noise beside that of the usual lead, as `delineate` and `p_and_t` measure it.

Contract: `slope_bln` is the (B, L, n) size of the slope of the leads, any unit, zero where a lead is not to be used or
the recording is over; float32 out. Each recording's weights depend on it alone. Ramp, reach and constant were chosen on
half of the records of MIT-BIH (by a hash of their names) and on LUDB under noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

BLOCK_S = 10 / 6
REACH = 5
"""Blocks on both sides whose least trust counts: 8 s, so all of a 10-s recording."""
NOISE_SPARSENESS, BEATS_SPARSENESS = 1.5, 2.7
ALL_ALIKE = 0.03


def block_width(n_time: int, rate_hz: float) -> int:
    """Samples of a block: a recording has the same blocks whatever stands behind it, short of one that is all of it."""
    return max(1, min(n_time, round(BLOCK_S * rate_hz)))


def lead_weights(slope_bln: NDArray[np.float32], width: int, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """Weights (B, L, blocks), at most 1, of slopes that are not negative.

    `lengths` (B,) are samples of each recording. A part of a block at its end has the weights of the block before it;
    a recording shorter than a block is one.
    """
    n_records, n_leads, n_time = slope_bln.shape
    n_blocks = max(1, n_time // width)
    blocks = slope_bln[..., : n_blocks * width].reshape(n_records, n_leads, n_blocks, -1)
    last = np.clip(lengths // width, 1, n_blocks) - 1
    short = np.flatnonzero(lengths < width)
    total = np.einsum("blnw->bln", blocks)
    rests = total <= 0  # where a lead rests there is nothing to distrust, and nothing to rely on
    some_rest = bool(rests.any())
    if some_rest:
        total += rests
    trust: NDArray[np.float32] = np.einsum("blnw,blnw->bln", blocks, blocks)
    trust /= total * total
    scale = 1 / (BEATS_SPARSENESS - NOISE_SPARSENESS)
    trust *= np.float32(width * scale)
    trust[short] *= (lengths[short] / width).astype(np.float32)[:, None, None]
    trust -= np.float32(NOISE_SPARSENESS * scale)
    np.maximum(trust, 0, out=trust)
    np.minimum(trust, 1, out=trust)
    if some_rest:
        trust[rests] = 1
    cut = np.flatnonzero(last < n_blocks - 1)
    if cut.size:  # what is over, or not whole, is as the last whole block
        held = np.minimum(np.arange(n_blocks), last[cut, None])[:, None]
        trust[cut] = np.take_along_axis(trust[cut], held, axis=-1)
        rests[cut] = np.take_along_axis(rests[cut], held, axis=-1)
        some_rest = bool(rests.any())
    if n_blocks > REACH + 1:
        around = minimum_filter1d(trust, 2 * REACH + 1, axis=-1, mode="nearest")
    else:
        around = trust.min(axis=-1, keepdims=True)
    trust *= around * around
    if some_rest:
        trust[rests] = 0
    trust += np.float32(ALL_ALIKE)
    trust /= trust.max(axis=1, keepdims=True)
    return trust


def weigh(energy_bln: NDArray[np.float32], weights: NDArray[np.float32], width: int) -> None:
    """Multiplies the energy of each lead by its weights, in place."""
    less = weights != 1
    if not less.any():
        return
    for record, lead in np.argwhere(less.any(axis=-1)):
        row, n_blocks = energy_bln[record, lead], weights.shape[-1]
        row[: n_blocks * width] *= np.repeat(weights[record, lead], width)
        row[n_blocks * width :] *= weights[record, lead, -1]


def noise_shares(noise_bl: NDArray[np.float32], allowance: float) -> NDArray[np.float32] | None:
    """What each lead (B, L) counts, at most 1, by its noise energy beside the lower median of the leads that move.

    A lead whose noise is more than `allowance` times the number of these leads above it counts in inverse proportion,
    as in a mean of measurements of unlike precision: with two leads the bad one soon, with eight a very bad one only.
    None if every lead counts in full, which is the rule.
    """
    n_leads = noise_bl.shape[1]
    ranked = np.sort(noise_bl, axis=1)
    most = ranked[:, (n_leads - 1) // 2] * np.float32(allowance * n_leads)
    if ranked[:, 0].all() and (ranked[:, -1] <= most).all():
        return None
    n_moving = np.count_nonzero(ranked, axis=1)
    middle = n_leads - n_moving + np.maximum(n_moving - 1, 0) // 2
    usual = ranked[np.arange(len(ranked)), np.minimum(middle, n_leads - 1)]
    most = usual * (allowance * n_moving).astype(np.float32)
    shares: NDArray[np.float32] = most[:, None] / np.maximum(noise_bl, np.float32(1e-20))
    return np.minimum(np.where(noise_bl > 0, shares, 1), np.float32(1))
