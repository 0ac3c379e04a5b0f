"""From corpus rows to vectors: the embeddings of a whole recording and of each of its heartbeats.

Recording: the encoder's own pooling over the valid samples, as the rhythm term of training sees it, of the whole
window instead of a crop. Beat: the feature map read under a box around the R-peak (RoIAlign, models/roi_align.py);
`bins` keeps the points one after another, which is exactly what the beat head of training takes in (channel by channel,
each with its bins in time order), `mean` averages them. Every beat with at least three quarters of its box inside the
signal has a vector (augment/beats.py).

Contract: signal_uv (n, 12, 5000) int16 as a corpus holds it, n_samples (n,), r_peaks (n, P) with -1 for none; vectors
are float32 numpy. Row i depends on row i alone, up to the rounding of sums in another batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.beats import all_beats
from beatray.models.encoder import Encoder
from beatray.models.roi_align import roi_align_1d
from beatray.preprocess import prepare
from beatray.record import RATE_HZ

BEAT_POOLINGS = ("bins", "mean")


@dataclass(frozen=True, slots=True)
class BeatBoxes:
    """Where a beat's box lies around its R-peak, at how many points it is read, and what becomes of them."""

    before_s: float
    after_s: float
    bins: int
    pooling: str = "bins"

    def width(self, channels: int) -> int:
        """Length of a beat's vector."""
        return channels * (self.bins if self.pooling == "bins" else 1)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of n recordings and of their K beats, in the order of the rows and of time."""

    recording: NDArray[np.float32]  # (n, embed_dim)
    beat: NDArray[np.float32]  # (K, width)
    row: NDArray[np.int64]  # (K,) the recording of each beat
    number: NDArray[np.int32]  # (K,) its position among the R-peaks of the recording
    r_peak: NDArray[np.int32]  # (K,) sample of the window


@torch.inference_mode()
def embed_rows(
    encoder: Encoder,
    signal_uv: NDArray[np.int16],
    n_samples: NDArray[np.int64],
    r_peaks: NDArray[np.int64] | None = None,
    boxes: BeatBoxes | None = None,
    *,
    batch_size: int = 64,
    bf16: bool = False,
) -> Vectors:
    """Vectors of the rows, computed where the encoder lies; beats only with `r_peaks` and `boxes`."""
    device = next(encoder.parameters()).device
    recording: list[Tensor] = [torch.empty(0, encoder.embed_dim)]
    beats: list[Tensor] = [torch.empty(0, boxes.width(encoder.channels) if boxes else 0)]
    rows, numbers, peaks_smp = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for first in range(0, len(signal_uv), batch_size):
        part = slice(first, first + batch_size)
        uv = torch.from_numpy(np.array(signal_uv[part])).to(device)  # a copy: Arrow's memory is read-only
        valid = torch.from_numpy(np.asarray(n_samples[part], np.int64)).to(device)
        x_mv = prepare(uv, rate_hz=RATE_HZ, n_samples=valid)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            fmap = encoder.forward_features(x_mv, valid).float()
        recording.append(encoder.pool(fmap, valid).cpu())
        if boxes is None or r_peaks is None:
            continue
        before_smp, after_smp = boxes.before_s * RATE_HZ, boxes.after_s * RATE_HZ
        position, index = all_beats(torch.from_numpy(r_peaks[part]), valid.cpu(), before_smp, after_smp)
        owner, slot = (index >= 0).nonzero(as_tuple=True)
        regions = roi_align_1d(fmap, position[owner, slot].to(device), owner.to(device), encoder.stages[-1], boxes.bins)
        beats.append((regions.flatten(1) if boxes.pooling == "bins" else regions.mean(2)).cpu())
        number = index[owner, slot].numpy()
        rows.append(owner.numpy() + first)
        numbers.append(number.astype(np.int32))
        peaks_smp.append(r_peaks[part][owner.numpy(), number].astype(np.int32))
    return Vectors(
        torch.cat(recording).numpy(),
        torch.cat(beats).numpy(),
        np.concatenate(rows),
        np.concatenate(numbers),
        np.concatenate(peaks_smp),
    )
