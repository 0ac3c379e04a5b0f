"""A page of recordings with a model's predictions: its answers, its waves, and where it looks.

Each recording is twelve leads over ten seconds, one below the other, at 25 mm/s and 5 mm/mV. Behind the trace lie the
waves as bands, or the shares of the samples in one output, summed over 40 ms, orange for and blue against it; beside
each lead stands its part of all shares.

Contract: signals are millivolts (12, n) at 500 Hz, shares (12, n), waves as `record.WAVE_DTYPE` with lead -1 where the
leads share them. The page asks the network for nothing (html.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from beatray.record import LEADS, RATE_HZ, WAVE_KINDS
from beatray.report.canvas import BLUE, INK, RED, STYLE, WAVE_COLOURS, new_figure, to_png
from beatray.report.ecg import MM_PER_INCH, MM_PER_S, paper
from beatray.report.html import Picture, Section, page, plain_table

MM_PER_MV, ROW_MM, LABEL_MM, SHARE_MM, TOP_MM = 5.0, 14.0, 12.0, 14.0, 8.0
MOST_MV = 0.9 * ROW_MM / MM_PER_MV
"""Of a trace above and below its middle; what goes further is cut."""
BIN_SAMPLES = 20
DPI = 110
FOR_AND_AGAINST = LinearSegmentedColormap.from_list("shares", [BLUE, "#ffffff", RED])


@dataclass(frozen=True, slots=True)
class Shown:
    """One recording: answers (name, `value`, spread, decision), waves, and the shares of its samples in `output`."""

    title: str
    x_mv: NDArray[np.float32]
    answers: Sequence[tuple[str, ...]] = ()
    value: str = "probability"
    waves: NDArray[np.void] | None = None
    shares: NDArray[np.float64] | None = None
    output: str = ""


def prediction_page(title: str, lead: Sequence[str], shown: Sequence[Shown]) -> str:
    """The page as text."""
    return page(title, lead, [_section(each) for each in shown])


def picture(shown: Shown) -> Figure:
    """The twelve leads of a recording."""
    seconds = max(10.0, shown.x_mv.shape[1] / RATE_HZ)
    width, height = LABEL_MM + seconds * MM_PER_S + SHARE_MM, TOP_MM + len(LEADS) * ROW_MM + 2.0
    with rc_context(STYLE):
        figure = new_figure(width / MM_PER_INCH, height / MM_PER_INCH)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-LABEL_MM, width - LABEL_MM)
        axes.set_ylim(-height, 0)
        axes.set_axis_off()
        paper(axes, -LABEL_MM, seconds * MM_PER_S, TOP_MM, height)
        if shown.shares is not None:
            _shares(axes, shown.shares)
        for lead, name in enumerate(LEADS):
            middle = -TOP_MM - ROW_MM * (lead + 0.5)
            if shown.waves is not None:
                _bands(axes, shown.waves, lead, middle)
            trace = np.clip(shown.x_mv[lead], -MOST_MV, MOST_MV)
            axes.plot(np.arange(len(trace)) / RATE_HZ * MM_PER_S, middle + MM_PER_MV * trace, color=INK, linewidth=0.7)
            axes.text(1 - LABEL_MM, middle, name, fontsize=9, fontweight="bold", va="center")
        if shown.waves is not None:
            keys = [Patch(color=WAVE_COLOURS[kind], alpha=0.3, label=kind) for kind in WAVE_KINDS]
            figure.legend(handles=keys, loc="upper right", ncols=len(keys), fontsize=8)
        colour = f"   colour: {shown.output}" if shown.output else ""
        note = f"{shown.title}   {MM_PER_S:g} mm/s, {MM_PER_MV:g} mm/mV{colour}"
        axes.text(1 - LABEL_MM, -1.5, note, fontsize=8, va="top")
    return figure


def bins_of(shares_ln: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over 40 ms, (12, ceil(n / 20))."""
    padded = np.pad(shares_ln, ((0, 0), (0, -shares_ln.shape[1] % BIN_SAMPLES)))
    return np.asarray(padded.reshape(len(padded), -1, BIN_SAMPLES).sum(2))


def _section(shown: Shown) -> Section:
    table = ""
    if shown.answers:
        head = ["output", shown.value, "spread", "decision"]
        kept = [k for k in range(len(head)) if any(row[k] for row in shown.answers)]
        table = plain_table([head[k] for k in kept], [[row[k] for k in kept] for row in shown.answers])
    alt = f"twelve leads of {shown.title}" + (f", coloured by their shares in {shown.output}" if shown.output else "")
    return Section(shown.title, html=table, pictures=[Picture(to_png(picture(shown), DPI), alt)])


def _shares(axes: Axes, shares_ln: NDArray[np.float64]) -> None:
    bins, parts = bins_of(shares_ln), np.abs(shares_ln).sum(1)
    limit = float(np.quantile(np.abs(bins), 0.995)) or 1.0
    right = bins.shape[1] * BIN_SAMPLES / RATE_HZ * MM_PER_S
    extent = (0.0, right, -TOP_MM - ROW_MM * len(LEADS), -TOP_MM)
    scale = Normalize(-limit, limit)
    axes.imshow(
        bins, FOR_AND_AGAINST, scale, aspect="auto", interpolation="nearest", alpha=0.6, extent=extent, zorder=1
    )
    for lead, part in enumerate(parts / max(float(parts.sum()), 1e-12)):
        middle = -TOP_MM - ROW_MM * (lead + 0.5)
        axes.text(right + 2, middle, f"{100 * part:.0f} %", fontsize=8, va="center")


def _bands(axes: Axes, waves: NDArray[np.void], lead: int, middle: float) -> None:
    own = waves[(waves["lead"] == lead) | (waves["lead"] < 0)]
    bottom, height = middle - 0.45 * ROW_MM, 0.9 * ROW_MM
    for number, kind in enumerate(WAVE_KINDS):
        spans = own[own["kind"] == number]
        ends_mm = np.stack([spans["onset"], spans["offset"] + 1], axis=1) / RATE_HZ * MM_PER_S
        bands = [(left, right - left) for left, right in ends_mm.tolist()]
        axes.broken_barh(bands, (bottom, height), color=WAVE_COLOURS[kind], alpha=0.3, linewidth=0)
