"""From stored microvolts to the millivolts that views and encoders see.

A zero-phase Butterworth high-pass takes the wander of breathing and electrodes away without moving a wave; amplitudes
beyond any heart's are clipped. The gain is that of a second-order Butterworth filter run forwards and backwards,
1 / (1 + (fc/f)^4), applied as a product in the frequency domain.

What is taken away holds nothing above a few hertz. So the wander itself is computed, at about 50 Hz, and subtracted:
means of 20-ms blocks (which null 50 Hz and its multiples, the only frequencies that would fold onto the wander), the
low-pass gain 1 / (1 + (f/fc)^4), linear interpolation back. That is ten times less Fourier transform, and within one
part in a hundred of the filter on all samples.

Each record is continued at both ends by its mirror image. The usual point reflection hangs on the first sample: on
clinical records cut in the middle, its error within 0.5 s of the cut is 0.10 mV rms (up to 1.1 mV in the worst
hundredth of leads, where the cut falls into a QRS complex), that of the mirror image 0.02 mV (0.14 mV).

Contract: signal (B, 12, T) in microvolts, any real type; n_samples (B,) valid lengths, all T where absent; result
float32 millivolts, exactly zero after n_samples. Row b depends on row b alone. Never raises on values; a NaN spoils
its own lead only. Runs where the signal lies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CLIP_MV = 5.0
CUTOFF_HZ = 0.5

_COARSE_RATE_HZ = 50.0
_REACH_CYCLES = 1.2  # the filter's memory in periods of the cut-off: 2.4 s at 0.5 Hz, below 1e-3 beyond


def prepare(
    signal_uv: Tensor,
    rate_hz: float = 500.0,
    n_samples: Tensor | None = None,
    cutoff_hz: float = CUTOFF_HZ,
    clip_mv: float = CLIP_MV,
) -> Tensor:
    """High-pass, clip and zero the padding: (B, 12, T) microvolts -> (B, 12, T) float32 millivolts."""
    x_mv = signal_uv.to(torch.float32).mul_(1e-3) if signal_uv.dtype != torch.float32 else signal_uv * 1e-3
    batch, _, n = x_mv.shape
    if n == 0 or batch == 0:
        return x_mv
    step = max(1, round(rate_hz / _COARSE_RATE_HZ))
    blocks = _block_means(x_mv, step)
    if n_samples is None:
        n_samples = torch.full((batch,), n, device=x_mv.device)
    valid = n_samples.to(x_mv.device, torch.int64)
    reach = round(_REACH_CYCLES * rate_hz / step / cutoff_hz)
    length = _fast_length(blocks.shape[-1] + 2 * reach)
    spectrum = torch.fft.rfft(_mirror(blocks, (valid // step).clamp(1, blocks.shape[-1]), reach, length))
    spectrum *= _low_pass_gain(length, rate_hz / step, cutoff_hz, x_mv.device)
    coarse = torch.fft.irfft(spectrum, n=length)[..., reach - 1 : reach + blocks.shape[-1] + 1]
    # half-pixel interpolation puts coarse value k at the middle of its block, where its mean belongs
    wander = functional.interpolate(coarse, scale_factor=float(step), mode="linear", align_corners=False)
    x_mv -= wander[..., step : step + n]
    x_mv.clamp_(-clip_mv, clip_mv)
    if x_mv.device.type == "cpu" and bool((valid >= n).all()):
        return x_mv  # nothing to zero; elsewhere asking would cost more than zeroing
    return x_mv.masked_fill_((torch.arange(n, device=x_mv.device) >= valid[:, None])[:, None, :], 0.0)


def _block_means(x: Tensor, step: int) -> Tensor:
    """Means of blocks of `step` samples, (B, L, T) -> (B, L, ceil(T / step)); the last may be a part of a block."""
    whole = x.shape[-1] // step
    means = x[..., : whole * step].reshape(*x.shape[:-1], whole, step).mean(-1)
    if whole * step == x.shape[-1]:
        return means
    return torch.cat([means, x[..., whole * step :].mean(-1, keepdim=True)], dim=-1)


def _mirror(blocks: Tensor, n_blocks: Tensor, reach: int, length: int) -> Tensor:
    """Mirror images before the first and after the last of `n_blocks` (B,) values: (B, L, K) -> (B, L, length)."""
    last = (n_blocks - 1)[:, None]
    position = torch.arange(-reach, length - reach, device=blocks.device)[None, :]
    before = torch.minimum(-position, last)
    after = (2 * last - position).clamp_min(0)
    source = torch.where(position < 0, before, torch.where(position > last, after, position))
    return blocks.gather(2, source[:, None, :].expand(-1, blocks.shape[1], -1))


def _low_pass_gain(length: int, rate_hz: float, cutoff_hz: float, device: torch.device) -> Tensor:
    ratio = torch.fft.rfftfreq(length, 1.0 / rate_hz, dtype=torch.float64, device=device) / cutoff_hz
    return torch.reciprocal(1.0 + ratio**4).to(torch.float32)


def _fast_length(minimum: int) -> int:
    """Smallest 2^a or 3 * 2^a that is at least `minimum`: lengths on which every FFT library is fast."""
    power = 1 << (minimum - 1).bit_length()
    return 3 * power // 4 if 3 * power // 4 >= minimum else power
