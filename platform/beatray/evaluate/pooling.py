"""What a probe reads of a recording: the encoder's feature maps made into one vector.

`mean_std`: mean and SD over time of each channel of the last map. `encoder`: the pooling the encoder was built with.
`stages`: mean and SD of the maps of all stages, since a fine map still holds what the next one has averaged away.
`stages_beat`: beside them the median heartbeat, the last map read at 8 points around each R-peak (RoIAlign). A mean
over time cannot distinguish a deflection before the QRS from one after it; a heartbeat can.

R-peaks are found in the very signal that the encoder sees, so noise and missing leads have their effect on them too.

Contract: x_mv (n, 12, T) float32 millivolts at 500 Hz, n_samples (n,) valid samples of each; vectors (n, D) float32.
A beat counts if three quarters of its box lie inside, as in training; beyond the signal the map is read as it is there.
The part of the heartbeat is NaN where a recording has no such beat; probes put the training median there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.beats import BeatBox, all_beats
from beatray.dsp.peaks import find_r_peaks
from beatray.models.encoder import Encoder, Stage, pool_over_time
from beatray.models.roi_align import roi_align_1d
from beatray.record import RATE_HZ

BOX = BeatBox()
"""The box around an R-peak and the points read in it."""


@torch.no_grad()
def pooled(
    encoder: Encoder,
    x_mv: NDArray[np.float32],
    n_samples: NDArray[np.int64],
    how: str = "mean_std",
    r_peaks: Sequence[NDArray[np.int32]] | None = None,
) -> NDArray[np.float32]:
    """One vector per recording, computed where the encoder lies; `r_peaks` are those of x_mv, where they are known."""
    device = next(encoder.parameters()).device
    valid = torch.from_numpy(n_samples).to(device)
    maps = encoder.forward_stages(torch.from_numpy(x_mv).to(device), valid)
    if how == "encoder":
        return encoder.pool(maps[-1], valid).cpu().numpy()
    if how not in ("stages", "stages_beat"):
        return pool_over_time(maps[-1], how, encoder.stages[-1], valid).cpu().numpy()
    parts = [
        pool_over_time(fmap, "mean_std", stage, valid).cpu().numpy()
        for fmap, stage in zip(maps, encoder.stages, strict=True)
    ]
    if how == "stages_beat":
        peaks = find_r_peaks(x_mv, RATE_HZ, n_samples=n_samples) if r_peaks is None else r_peaks
        parts.append(median_heartbeats(maps[-1].float(), encoder.stages[-1], peaks, n_samples))
    return np.concatenate(parts, axis=1)


def median_heartbeats(
    fmap: Tensor, stage: Stage, r_peaks: Sequence[NDArray[np.int32]], n_samples: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The median over each recording's beats of its map (n, C, T') read around them: (n, 8 C), NaN without a beat."""
    most = max((len(peaks) for peaks in r_peaks), default=0)
    padded = np.full((len(r_peaks), max(most, 1)), -1, np.int64)
    for row, peaks in zip(padded, r_peaks, strict=True):
        row[: len(peaks)] = peaks
    valid = torch.from_numpy(n_samples)
    boxes, index = all_beats(torch.from_numpy(padded), valid, BOX.before_s * RATE_HZ, BOX.after_s * RATE_HZ)
    owner, slot = (index >= 0).nonzero(as_tuple=True)
    device = fmap.device
    regions = roi_align_1d(fmap, boxes[owner, slot].to(device), owner.to(device), stage, BOX.bins)
    beats, owners = regions.flatten(1).cpu().numpy(), owner.numpy()
    medians = np.full((len(r_peaks), BOX.bins * fmap.shape[1]), np.nan, np.float32)
    for row in np.unique(owners):
        medians[row] = np.median(beats[owners == row], axis=0)
    return medians
