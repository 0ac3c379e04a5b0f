"""Figures of recordings: a 12-lead strip as clinicians read it, and wave masks over a lead.

The strip follows the paper standard of 25 mm/s and 10 mm/mV on a 1-mm grid with every fifth line stronger: three rows
of four leads for 2.5 s each, and ten seconds of lead II below (Kligfield et al., J Am Coll Cardiol 49:1109, 2007).

Contract: signals are millivolts (12, n) in canonical lead order at `rate_hz`; positions are samples. A mask has the
values of `evaluate.labels.wave_mask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from beatray.evaluate.labels import WAVE_CLASSES
from beatray.evaluate.metrics import IGNORE
from beatray.record import LEADS, RATE_HZ
from beatray.report.canvas import BLUE, INK, STYLE, WAVE_COLOURS, new_figure

MM_PER_S, MM_PER_MV = 25.0, 10.0
COLUMNS = (("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6"))
RHYTHM_LEAD = "II"
ROW_MM, MARGIN_MM, PAD_MM = 27.0, 12.0, 8.0
STRIP_S = 10.0
MM_PER_INCH = 25.4


@dataclass(frozen=True, slots=True)
class Overlay:
    """One recording with its truth and prediction masks (n,), for `segmentation`."""

    title: str
    lead_mv: NDArray[np.float32]
    truth: NDArray[np.int8]
    predicted: NDArray[np.int8]


def twelve_lead_strip(
    x_mv: NDArray[np.float32],
    r_peaks: ArrayLike = (),
    beat_boxes: ArrayLike = (),
    title: str = "",
    rate_hz: float = RATE_HZ,
) -> Figure:
    """A 12-lead strip at 25 mm/s and 10 mm/mV; R-peaks and beat windows (k, 2) are marked on the rhythm row."""
    rows = len(COLUMNS[0]) + 1
    width_mm, height_mm = STRIP_S * MM_PER_S + 2 * MARGIN_MM, rows * ROW_MM + 2 * PAD_MM
    with rc_context(STYLE):
        figure = new_figure(width_mm / MM_PER_INCH, height_mm / MM_PER_INCH)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-MARGIN_MM, width_mm - MARGIN_MM)
        axes.set_ylim(-height_mm, 0)
        axes.set_axis_off()
        paper(axes, -MARGIN_MM, width_mm, 0, height_mm)
        seconds = STRIP_S / len(COLUMNS)
        for row in range(rows - 1):
            middle = -PAD_MM - ROW_MM * (row + 0.5)
            _calibration(axes, middle)
            for column, names in enumerate(COLUMNS):
                start = column * seconds
                _trace(axes, x_mv[LEADS.index(names[row])], start, start + seconds, middle, rate_hz)
                _label(axes, names[row], start * MM_PER_S, middle)
                if column:
                    axes.plot([start * MM_PER_S] * 2, [middle - 3, middle + 3], color=INK, linewidth=0.8)
        middle = -PAD_MM - ROW_MM * (rows - 0.5)
        _calibration(axes, middle)
        _beats(axes, np.asarray(r_peaks, np.float64), np.asarray(beat_boxes, np.float64), middle, rate_hz)
        _trace(axes, x_mv[LEADS.index(RHYTHM_LEAD)], 0, STRIP_S, middle, rate_hz)
        _label(axes, RHYTHM_LEAD, 0, middle)
        note = f"{title}   25 mm/s, 10 mm/mV".strip()
        axes.text(0, -height_mm + 2.2, note, fontsize=8, va="bottom", bbox=_plate())
    return figure


def segmentation(overlays: Sequence[Overlay], lead_name: str = "II", rate_hz: float = RATE_HZ) -> Figure:
    """One panel per recording: the lead, the truth as a ribbon above it and the prediction as one below.

    Samples that are not scored are grey; there the truth is unknown.
    """
    with rc_context(STYLE):
        figure = new_figure(10.5, 2.1 * max(1, len(overlays)) + 0.5)
        panels = np.atleast_1d(figure.subplots(max(1, len(overlays)), 1, squeeze=False, sharex=True)).ravel()
        for axes, overlay in zip(panels, overlays, strict=False):
            _overlay(axes, overlay, lead_name, rate_hz)
        panels[-1].set_xlabel("seconds")
        keys = [Patch(color=colour, label=name) for name, colour in WAVE_COLOURS.items()]
        keys.append(Patch(color="#e6e6e6", label="not scored"))
        figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), fontsize=8)
    return figure


def best_median_worst(dice: NDArray[np.float64]) -> list[tuple[str, int]]:
    """Positions of the records with the best, the middle and the worst Dice, NaN left out, each with its name."""
    known = np.flatnonzero(~np.isnan(dice))
    order = known[np.argsort(dice[known], kind="stable")]
    if not order.size:
        return []
    picked = {"best": order[-1], "median": order[order.size // 2], "worst": order[0]}
    return [(name, int(position)) for name, position in picked.items()]


def paper(axes: Axes, left: float, right: float, top: float, bottom: float) -> None:
    """Millimetre paper behind a strip, `top` and `bottom` measured downwards."""
    for step, colour, width in ((1.0, "#f7dcdc", 0.35), (5.0, "#eeb0b0", 0.6)):
        across = np.arange(np.ceil(left / step) * step, right, step)
        down = np.arange(np.ceil(top / step) * step, bottom + step, step)
        lines = [[(x, -top), (x, -bottom)] for x in across]
        lines += [[(left, -y), (right, -y)] for y in down]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, zorder=0))


def _calibration(axes: Axes, middle: float) -> None:
    x = np.array([-9.0, -7.5, -7.5, -3.5, -3.5, -2.0])
    axes.plot(x, middle + np.array([0, 0, MM_PER_MV, MM_PER_MV, 0, 0]), color=INK, linewidth=0.9)


def _trace(
    axes: Axes, lead_mv: NDArray[np.float32], start_s: float, stop_s: float, middle: float, rate_hz: float
) -> None:
    first, stop = round(start_s * rate_hz), min(round(stop_s * rate_hz), len(lead_mv))
    time_mm = np.arange(first, stop) / rate_hz * MM_PER_S
    axes.plot(time_mm, middle + MM_PER_MV * lead_mv[first:stop], color=INK, linewidth=0.8, zorder=3)


def _label(axes: Axes, name: str, x_mm: float, middle: float) -> None:
    axes.text(x_mm + 1, middle + 8.5, name, fontsize=9, fontweight="bold", va="center", zorder=2, bbox=_plate())


def _plate() -> dict[str, object]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def _beats(axes: Axes, r_peaks: NDArray[np.float64], boxes: NDArray[np.float64], middle: float, rate_hz: float) -> None:
    low, high = middle - ROW_MM * 0.42, middle + ROW_MM * 0.42
    limit = STRIP_S * MM_PER_S
    for position, box in enumerate(boxes[np.isfinite(boxes).all(axis=1)] if boxes.size else []):
        left, right = np.clip(box / rate_hz * MM_PER_S, 0, limit)
        shade = 0.16 if position % 2 else 0.08
        axes.fill_between([left, right], low, high, color=BLUE, alpha=shade, linewidth=0, zorder=1)
    marks = r_peaks / rate_hz * MM_PER_S
    axes.plot(marks, np.full(marks.size, high), "v", color=BLUE, markersize=5, zorder=4)


def _overlay(axes: Axes, overlay: Overlay, lead_name: str, rate_hz: float) -> None:
    seconds = np.arange(len(overlay.lead_mv)) / rate_hz
    low, high = float(np.min(overlay.lead_mv)), float(np.max(overlay.lead_mv))
    band = max(0.1 * (high - low), 1e-3)
    axes.plot(seconds, overlay.lead_mv, color=INK, linewidth=0.8, zorder=3)
    bands = {"truth": (high + 0.6 * band, overlay.truth), "predicted": (low - 1.6 * band, overlay.predicted)}
    for bottom, mask in bands.values():
        for k, name in enumerate(WAVE_CLASSES[1:], start=1):
            spans = [(a / rate_hz, (b - a) / rate_hz) for a, b in _spans(mask == k)]
            axes.broken_barh(spans, (bottom, band), color=WAVE_COLOURS[name])
    for a, b in _spans(overlay.truth == IGNORE):
        axes.axvspan(a / rate_hz, b / rate_hz, color="#e6e6e6", zorder=0, linewidth=0)
    axes.set_yticks(
        [low - 1.1 * band, (low + high) / 2, high + 1.1 * band], ["predicted", f"lead {lead_name}", "truth"]
    )
    axes.tick_params(axis="y", length=0)
    axes.set_title(overlay.title)
    axes.margins(x=0)


def _spans(inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
