"""Repairs, filters and thins out batches of signals; what every other step of this package starts with.

`highpass` removes baseline wander without moving a wave: a zero-phase filter whose gain is the squared magnitude of a
2nd-order Butterworth high-pass, |H(f)|^2 = (f/fc)^4 / (1 + (f/fc)^4), which is what filtering forwards and backwards
gives, applied in one Fourier transform. 0.5 Hz is the zero-phase cut-off the AHA/ACC/HRS recommendation allows without
distorting the ST segment (Kligfield et al., Circulation 2007, 115:1306; up to 0.67 Hz for zero-phase filters).

Contract: arrays are (B, L, T) with time last, in millivolts, at `rate_hz`. Nothing here raises on array content:
invalid samples (NaN, infinite, or beyond `ABSURD_MV`) are bridged by a straight line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

ABSURD_MV = 1e6
"""Beyond this a sample is invalid whatever the unit was; its square would overflow float32 sums."""

WORKING_RATE_HZ = 125.0
"""The rate to which R-peaks and quality thin a recording out."""

PAD_TIME_CONSTANTS = 7.0
NOTCH_HALF_WIDTH_HZ = 1.0


def highpass(
    x_mv_blt: NDArray[np.generic], rate_hz: float, cutoff_hz: float = 0.5, *, notch_hz: float | None = None
) -> NDArray[np.float32]:
    """The signal without its slow drift, and without mains hum if `notch_hz` (50 or 60) is given; float32, same shape.

    Both ends are extended by mirror images for seven time constants, so that the transform's wrap-around stays outside.
    Raises ValueError if the rate is not positive or a frequency is not between 0 and half the rate.
    """
    if not rate_hz > 0:
        raise ValueError(f"rate_hz must be positive, got {rate_hz}")
    for name, value in (("cutoff_hz", cutoff_hz), ("notch_hz", notch_hz)):
        if value is not None and not 0 < value < rate_hz / 2:
            raise ValueError(f"{name} must lie between 0 and {rate_hz / 2}, got {value}")
    x = np.asarray(x_mv_blt).astype(np.float32)
    n_time = x.shape[-1]
    if n_time < 2 or x.size == 0:
        return np.zeros_like(x)
    repair(x.reshape(1, -1, n_time))
    time_constant = rate_hz / (2 * np.pi * cutoff_hz * np.sqrt(0.5))
    pad = min(n_time - 1, round(PAD_TIME_CONSTANTS * time_constant))
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(pad, pad)], mode="reflect")
    length = fft.next_fast_len(padded.shape[-1], real=True)
    spectrum = fft.rfft(padded, length, axis=-1)
    frequency = fft.rfftfreq(length, 1 / rate_hz)
    ratio = (frequency / cutoff_hz) ** 4
    gain = ratio / (1 + ratio)
    if notch_hz is not None:
        gain *= 1 - 1 / (1 + ((frequency - notch_hz) / NOTCH_HALF_WIDTH_HZ) ** 4)
    spectrum *= gain.astype(np.float32)
    filtered: NDArray[np.float32] = fft.irfft(spectrum, length, axis=-1)[..., pad : pad + n_time]
    return np.ascontiguousarray(filtered)


def decimate(
    x_blt: NDArray[np.generic], step: int, leads: tuple[int, ...], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Means of `step` samples of the given leads, float32 (B, len(leads), T // step); added up in their order."""
    n_low = x_blt.shape[-1] // step
    if out is None:
        out = np.empty((len(x_blt), len(leads), n_low), np.float32)
    runs = runs_of(leads)
    with np.errstate(over="ignore", invalid="ignore"):
        for record, thin in zip(x_blt, out, strict=True):  # one stays in the cache from the first sample to the last
            for first, last, into in runs:
                source = record[first:last, : n_low * step].astype(np.float32, copy=False)
                target = thin[into : into + last - first]
                if step == 1:
                    target[...] = source
                    continue
                np.add(source[:, 0::step], source[:, 1::step], out=target)
                for k in range(2, step):
                    np.add(target, source[:, k::step], out=target)
                np.multiply(target, np.float32(1.0 / step), out=target)
    return out


def runs_of(leads: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Neighbouring leads as (first, last + 1, position): slices copy several times faster than lists of positions."""
    runs: list[tuple[int, int, int]] = []
    for position, lead in enumerate(leads):
        if runs and runs[-1][1] == lead:
            runs[-1] = (runs[-1][0], lead + 1, runs[-1][2])
        else:
            runs.append((lead, lead + 1, position))
    return runs


def repair(x_blt: NDArray[np.float32], lengths: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Bridges invalid samples of (B, L, n) in place; True (B, L) where more than half of the first `lengths` was."""
    bad = np.zeros(x_blt.shape[:2], np.bool_)
    if x_blt.shape[-1] == 0:
        return bad
    with np.errstate(over="ignore", invalid="ignore"):
        energy = np.einsum("blt,blt->bl", x_blt, x_blt)  # three times as fast as a maximum; NaN if any sample is
    for k, lead in np.argwhere(~(energy < ABSURD_MV**2 / 2)):
        row = x_blt[k, lead]
        if np.abs(row).max() < ABSURD_MV:
            continue
        good = np.flatnonzero(np.abs(row) < ABSURD_MV)
        length = row.size if lengths is None else int(lengths[k])
        row[:] = np.interp(np.arange(row.size), good, row[good]) if good.size else 0.0
        bad[k, lead] = 2 * np.count_nonzero(good < length) < length
    return bad


def hold_after(x_blt: NDArray[np.float32], lengths: NDArray[np.int64]) -> None:
    """Replaces the padding after each record's end by its last sample, in place: no step for a slope to find."""
    for k in np.flatnonzero(lengths < x_blt.shape[-1]):
        last = max(int(lengths[k]), 1)
        x_blt[k, :, last:] = x_blt[k, :, last - 1 : last]


def moving_sum(x: NDArray[np.float32], half: int, axis: int = -1) -> NDArray[np.float32]:
    """Centred sums over 2 * half + 1 samples along `axis`, zeros outside, by doubling (a few passes, float32)."""
    axis %= x.ndim
    n = x.shape[axis]
    width = 2 * half + 1

    def run(first: int, last: int) -> tuple[slice, ...]:  # memory stays in its order, so that the long axis is inside
        return (slice(None),) * axis + (slice(first, last),)

    block = np.zeros((*x.shape[:axis], n + 2 * half, *x.shape[axis + 1 :]), np.float32)
    block[run(half, half + n)] = x
    total = block[run(0, n)].copy()  # the width is odd
    done, size = 1, 1
    while True:
        if size > 1 and width & size:
            total += block[run(done, done + n)]
            done += size
        if 2 * size > width:
            return total
        long = block.shape[axis]
        block = block[run(0, long - size)] + block[run(size, long)]
        size *= 2
