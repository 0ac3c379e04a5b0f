"""Two views of every record of a batch, the same for any batch, worker or device that makes them.

`make_two_views` is the recipe of 3KG and Beat-SSL: prepare, one crop shared by both views (so that beat positions are
the same in both), then for each view its own position of the heart (`three_kg.py`) and its own time masks (`masks.py`).
`make_resized_views` is the recipe of SimCLR on ECGs (Mehari and Strodthoff, Comput. Biol. Med. 2022): one window, then
for each view a random part stretched back, and a time-out. `make_masked_views` is that of BYOL here: one window, time
masks of each lead and a time-out of all, no stretching, since that would change the intervals that diagnoses rest on.

Contract: batch holds signal_uv (B, 12, T), n_samples (B,), record_key (B,) int64; result view_1, view_2 (B, 12, L)
float32 mV, crop_start (B,) int64 and n_valid (B,) int64, samples of the crop that are signal, on the device of the
signal. Only drawn parameters are computed on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.crops import crop, draw_starts, resized_crop
from beatray.augment.draws import Draws
from beatray.augment.masks import draw_mask, time_mask, time_out
from beatray.augment.three_kg import Mode, draw_heart, three_kg
from beatray.augment.vcg import Transform
from beatray.fields import check, setting
from beatray.preprocess import prepare
from beatray.record import RATE_HZ

VIEWS = (1, 2)

_CPU_CHUNK = 8
_SHORTEST_CROP_S = 0.5


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How 3KG views are made."""

    crop_seconds: float | None = setting(5.0, "null: the whole record", at_least=_SHORTEST_CROP_S)
    angle_deg: float = setting(45.0, "each axis turns by up to so much", at_least=0.0, at_most=180.0, searchable=True)
    scale: float = setting(1.5, "each axis is stretched by up to so much", at_least=1.0, searchable=True)
    mask_fraction: float = setting(0.5, "of each lead, in one block", at_least=0.0, below=1.0, searchable=True)
    mode: Mode = setting("residual", "residual: the change of the leads; project: the leads of the dipole alone")
    transform: Transform = setting("dower", "from leads to the heart vector: dower or kors")
    keep_beats: bool = setting(False, "draw again where a mask hides a beat in nearly all leads")

    def __post_init__(self) -> None:
        check(self)
        if self.mode == "project" and self.transform == "kors":
            raise ValueError("mode=project needs transform=dower; with transform=kors set mode=residual")


@dataclass(frozen=True, slots=True)
class ResizedViewSettings:
    """How SimCLR views are made."""

    crop_seconds: float | None = setting(5.0, "null: the whole record", at_least=_SHORTEST_CROP_S)
    smallest_part: float = setting(0.5, "of the window that is stretched back", above=0.0, at_most=1.0)
    time_out_min: float = setting(0.2, "least part of the window that is zero", at_least=0.0, below=1.0)
    time_out_max: float = setting(0.4, "most", at_least=0.0, below=1.0)

    def __post_init__(self) -> None:
        check(self)
        check_time_out(self.time_out_min, self.time_out_max)


@dataclass(frozen=True, slots=True)
class MaskedViewSettings:
    """How BYOL views are made; `warp` is the stretching of SimCLR views."""

    crop_seconds: float | None = setting(5.0, "null: the whole record", at_least=_SHORTEST_CROP_S)
    mask_fraction: float = setting(0.5, "of each lead, in one block", at_least=0.0, below=1.0, searchable=True)
    time_out_min: float = setting(0.2, "least part of the window that is zero in all leads", at_least=0.0, below=1.0)
    time_out_max: float = setting(0.4, "most", at_least=0.0, below=1.0)
    warp: bool = setting(False, "stretch a random part of the window back, as the reference does")
    smallest_part: float = setting(0.5, "of the window, with warp", above=0.0, at_most=1.0)

    def __post_init__(self) -> None:
        check(self)
        check_time_out(self.time_out_min, self.time_out_max)


def check_time_out(least: float, most: float) -> None:
    """Raise ValueError where the shortest time-out is longer than the longest."""
    if least > most:
        raise ValueError(f"time_out_min must not be above time_out_max, not {least} and {most}")


def crop_window(batch: dict[str, Tensor], crop_seconds: float | None, draws: Draws) -> dict[str, Tensor]:
    """The prepared signal of one random window a record and epoch: `plain` (B, 12, L) mV, crop_start and n_valid."""
    signal_uv, n_samples = batch["signal_uv"], batch["n_samples"]
    n, length = signal_uv.shape[-1], signal_uv.shape[-1]
    starts = torch.zeros(len(signal_uv), dtype=torch.int64)
    if crop_seconds is not None:
        length = min(round(crop_seconds * RATE_HZ), n)
        drawn = draws.uniform("crop", 1)[:, 0]
        starts = torch.as_tensor(draw_starts(drawn, n_samples.cpu().numpy().astype(np.int64), length))
    # a few records at a time stay in the cache of a CPU core, and in memory that it has already been given
    step = _CPU_CHUNK if signal_uv.device.type == "cpu" else max(len(signal_uv), 1)
    pieces = [
        crop(prepare(signal_uv[i : i + step], RATE_HZ, n_samples[i : i + step]), starts[i : i + step], length)
        for i in range(0, max(len(signal_uv), 1), step)
    ]
    start = starts.to(signal_uv.device)
    return {
        "plain": pieces[0] if len(pieces) == 1 else torch.cat(pieces),
        "crop_start": start,
        "n_valid": (n_samples.to(start.device) - start).clamp(0, length),
    }


def make_two_views(
    batch: dict[str, Tensor], settings: ViewSettings, draws: Draws, *, with_plain: bool = False
) -> dict[str, Tensor]:
    """3KG views: view_1, view_2 (B, 12, L), crop_start and n_valid (B,); `with_plain` the crop itself, too, as `plain`.

    Needs r_peaks (B, P) with `settings.keep_beats`.
    """
    out = crop_window(batch, settings.crop_seconds, draws)
    x_mv = out.pop("plain")
    peaks = _peaks_in_crop(batch, out["crop_start"], x_mv.shape[-1]) if settings.keep_beats else None
    if with_plain:
        out["plain"] = x_mv.clone()  # masks may be drawn in place
    for view in VIEWS:
        x_view = three_kg(
            x_mv,
            draw_heart(draws, view),
            settings.angle_deg,
            settings.scale,
            settings.mode,
            settings.transform,
        )
        if settings.mask_fraction > 0.0:
            starts = draw_mask(draws, view, fraction=settings.mask_fraction, n_samples=x_mv.shape[-1], peaks_smp=peaks)
            x_view = time_mask(x_view, starts, settings.mask_fraction, in_place=True)
        out[f"view_{view}"] = x_view
    return out


def make_resized_views(batch: dict[str, Tensor], settings: ResizedViewSettings, draws: Draws) -> dict[str, Tensor]:
    """SimCLR views of one window: view_1, view_2 (B, 12, L) and crop_start (B,)."""
    out = crop_window(batch, settings.crop_seconds, draws)
    x_mv = out.pop("plain")
    del out["n_valid"]  # a part that was stretched back ends elsewhere: its padding is left in, as published
    for view in VIEWS:
        x_view = resized_crop(x_mv, draws.uniform("resized_crop", 2, view), settings.smallest_part)
        gap = draws.uniform("time_out", 2, view)
        out[f"view_{view}"] = time_out(x_view, gap, settings.time_out_min, settings.time_out_max, in_place=True)
    return out


def make_masked_views(batch: dict[str, Tensor], settings: MaskedViewSettings, draws: Draws) -> dict[str, Tensor]:
    """Masked views of one window: view_1, view_2 (B, 12, L), crop_start and, unless warped, n_valid (B,)."""
    out = crop_window(batch, settings.crop_seconds, draws)
    x_mv = out.pop("plain")
    if settings.warp:
        del out["n_valid"]
    for view in VIEWS:
        out[f"view_{view}"] = masked_view(x_mv, settings, draws, view)
    return out


def masked_view(x_mv: Tensor, settings: MaskedViewSettings, draws: Draws, view: int) -> Tensor:
    """What `make_masked_views` makes of a window (B, 12, L) for one view, as a new tensor of the same shape."""
    x_view = x_mv.clone()
    if settings.warp:
        x_view = resized_crop(x_mv, draws.uniform("resized_crop", 2, view), settings.smallest_part)
    if settings.mask_fraction > 0.0:
        x_view = time_mask(x_view, draw_mask(draws, view), settings.mask_fraction, in_place=True)
    gap = draws.uniform("time_out", 2, view)
    return time_out(x_view, gap, settings.time_out_min, settings.time_out_max, in_place=True)


def _peaks_in_crop(batch: dict[str, Tensor], crop_start: Tensor, length: int) -> NDArray[np.int64]:
    """Peak positions in the crop (B, P), -1 where there is no beat or it lies outside."""
    peaks = batch["r_peaks"].to(crop_start.device)
    inside = peaks - crop_start[:, None]
    outside = (peaks < 0) | (inside < 0) | (inside >= length)
    return inside.masked_fill(outside, -1).cpu().numpy()
