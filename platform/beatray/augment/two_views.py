"""Two views of every record of a batch, the same for any batch, worker or device that makes them.

`make_two_views` is the recipe of 3KG and Beat-SSL: prepare, one crop shared by both views (so that beat positions are
the same in both), then for each view its own place of the heart (`three_kg.py`) and its own time masks (`masks.py`).
`make_resized_views` is the recipe of SimCLR on ECGs (Mehari and Strodthoff, Comput. Biol. Med. 2022): one window, then
for each view a random part stretched back, and a time-out.

Contract: batch holds signal_uv (B, 12, T), n_samples (B,), record_key (B,) int64; result view_1, view_2 (B, 12, L)
float32 mV and crop_start (B,) int64 on the device of the signal. Only drawn parameters are computed on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.crops import crop, draw_starts, resized_crop
from beatray.augment.draws import Stream, uniform, view_stream
from beatray.augment.masks import draw_mask, time_mask, time_out
from beatray.augment.three_kg import Mode, draw_heart, three_kg
from beatray.augment.vcg import Transform
from beatray.preprocess import prepare
from beatray.record import RATE_HZ

VIEWS = (1, 2)

_CPU_CHUNK = 8


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How 3KG views are made. `crop_seconds` null keeps the whole record; `keep_beats` draws hiding masks again."""

    crop_seconds: float | None = 5.0
    angle_deg: float = 45.0
    scale: float = 1.5
    mask_fraction: float = 0.5
    mode: Mode = "residual"
    transform: Transform = "dower"
    keep_beats: bool = False

    def __post_init__(self) -> None:
        check_crop_seconds(self.crop_seconds)
        if not 0.0 <= self.angle_deg <= 180.0:
            raise ValueError(f"angle_deg must lie in 0..180, not {self.angle_deg}")
        if self.scale < 1.0:
            raise ValueError(f"scale must be at least 1, not {self.scale}")
        if not 0.0 <= self.mask_fraction < 1.0:
            raise ValueError(f"mask_fraction must lie in 0..1, 1 excluded, not {self.mask_fraction}")
        if self.mode not in ("residual", "project"):
            raise ValueError(f"mode must be residual or project, not {self.mode!r}")
        if self.transform not in ("dower", "kors"):
            raise ValueError(f"transform must be dower or kors, not {self.transform!r}")
        if self.mode == "project" and self.transform == "kors":
            raise ValueError("mode=project needs transform=dower; with transform=kors set mode=residual")


@dataclass(frozen=True, slots=True)
class ResizedViewSettings:
    """How SimCLR views are made: parts of at least `smallest_part`, time-outs of the given parts of the window."""

    crop_seconds: float | None = 5.0
    smallest_part: float = 0.5
    time_out_min: float = 0.2
    time_out_max: float = 0.4

    def __post_init__(self) -> None:
        check_crop_seconds(self.crop_seconds)
        if not 0.0 < self.smallest_part <= 1.0:
            raise ValueError(f"smallest_part must lie in 0..1, 0 excluded, not {self.smallest_part}")
        if not 0.0 <= self.time_out_min <= self.time_out_max < 1.0:
            raise ValueError(
                f"0 <= time_out_min <= time_out_max < 1 must hold, not {self.time_out_min} and {self.time_out_max}"
            )


def check_crop_seconds(crop_seconds: float | None) -> None:
    """Raise ValueError for a crop that is neither null nor at least half a second."""
    if crop_seconds is not None and crop_seconds < 0.5:
        raise ValueError(f"crop_seconds must be null (the whole record) or at least 0.5, not {crop_seconds}")


def host_keys(batch: dict[str, Tensor]) -> NDArray[np.int64]:
    """Record keys of a batch as numpy (B,) int64: draws are computed on the host."""
    return batch["record_key"].cpu().numpy().astype(np.int64, copy=False)


def crop_window(batch: dict[str, Tensor], crop_seconds: float | None, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Prepared signal (B, 12, L) in mV and the start of each crop (B,) int64, one per record and epoch."""
    signal_uv, n_samples = batch["signal_uv"], batch["n_samples"]
    n, length = signal_uv.shape[-1], signal_uv.shape[-1]
    starts = torch.zeros(len(signal_uv), dtype=torch.int64)
    if crop_seconds is not None:
        length = min(round(crop_seconds * RATE_HZ), n)
        draws = uniform(host_keys(batch), seed, epoch, Stream.CROP, 1)[:, 0]
        starts = torch.as_tensor(draw_starts(draws, n_samples.cpu().numpy().astype(np.int64), length))
    # a few records at a time stay in the cache of a CPU core, and in memory that it has already been given
    step = _CPU_CHUNK if signal_uv.device.type == "cpu" else max(len(signal_uv), 1)
    pieces = [
        crop(prepare(signal_uv[i : i + step], RATE_HZ, n_samples[i : i + step]), starts[i : i + step], length)
        for i in range(0, max(len(signal_uv), 1), step)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces), starts.to(signal_uv.device)


def make_two_views(
    batch: dict[str, Tensor], settings: ViewSettings, seed: int, epoch: int, *, with_plain: bool = False
) -> dict[str, Tensor]:
    """3KG views: view_1, view_2 (B, 12, L) and crop_start (B,); `with_plain` the crop itself, too, as `plain`.

    Needs r_peaks (B, P) with `settings.keep_beats`.
    """
    x_mv, crop_start = crop_window(batch, settings.crop_seconds, seed, epoch)
    keys = host_keys(batch)
    peaks = _peaks_in_crop(batch, crop_start, x_mv.shape[-1]) if settings.keep_beats else None
    out = {"crop_start": crop_start}
    if with_plain:
        out["plain"] = x_mv.clone()  # masks may be drawn in place
    for view in VIEWS:
        x_view = three_kg(
            x_mv,
            draw_heart(keys, seed, epoch, view),
            settings.angle_deg,
            settings.scale,
            settings.mode,
            settings.transform,
        )
        if settings.mask_fraction > 0.0:
            starts = draw_mask(
                keys,
                seed,
                epoch,
                view,
                fraction=settings.mask_fraction,
                n_samples=x_mv.shape[-1],
                peaks_smp=peaks,
            )
            x_view = time_mask(x_view, starts, settings.mask_fraction, in_place=True)
        out[f"view_{view}"] = x_view
    return out


def make_resized_views(
    batch: dict[str, Tensor], settings: ResizedViewSettings, seed: int, epoch: int
) -> dict[str, Tensor]:
    """SimCLR views of one window: view_1, view_2 (B, 12, L) and crop_start (B,)."""
    x_mv, crop_start = crop_window(batch, settings.crop_seconds, seed, epoch)
    keys = host_keys(batch)
    out = {"crop_start": crop_start}
    for view in VIEWS:
        part = uniform(keys, seed, epoch, view_stream(Stream.RESIZED_CROP, view), 2)
        gap = uniform(keys, seed, epoch, view_stream(Stream.TIME_OUT, view), 2)
        x_view = resized_crop(x_mv, part, settings.smallest_part)
        out[f"view_{view}"] = time_out(x_view, gap, settings.time_out_min, settings.time_out_max, in_place=True)
    return out


def _peaks_in_crop(batch: dict[str, Tensor], crop_start: Tensor, length: int) -> NDArray[np.int64]:
    """Peak positions in the crop (B, P), -1 where there is no beat or it lies outside."""
    peaks = batch["r_peaks"].to(crop_start.device)
    inside = peaks - crop_start[:, None]
    outside = (peaks < 0) | (inside < 0) | (inside >= length)
    return inside.masked_fill(outside, -1).cpu().numpy()
