"""Test recordings that a probe gets most wrong, each beside the training recordings that the encoder finds most alike.

Where a hard recording and its neighbours look alike and bear other labels, the labels (or the signal) are in the way;
where they look different, the encoder is. Hardest is the largest mean binary cross-entropy over the classes. Alike is
the cosine of features standardised on the training part, those that the probe reads.

Contract: `Hard` holds positions in the same rows as the features; a strip is eight leads of the first 2.5 seconds, at
25 mm/s and half the usual gain (5 mm/mV), so that tall complexes leave their neighbours alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beatray.evaluate.metrics import IGNORE, Truth
from beatray.evaluate.probes import standardised
from beatray.record import LEADS, RATE_HZ
from beatray.report.canvas import BLUE, INK, STYLE, new_figure, to_png
from beatray.report.ecg import MM_PER_INCH, MM_PER_S, paper
from beatray.report.html import Picture, Section

SHOWN_LEADS = ("I", "II", "aVF", "V1", "V2", "V3", "V5", "V6")
SHOWN_S = 2.5
ROW_MM, LABEL_MM, TITLE_MM, MM_PER_MV = 13.0, 9.0, 15.0, 5.0
MOST_MV = 0.75 * ROW_MM / MM_PER_MV
"""Of a trace above and below its middle; what goes further is cut."""
HOW_MANY, NEIGHBOURS = 10, 2
SURELY = 1e-6


@dataclass(frozen=True, slots=True)
class Strip:
    """One recording (12, n) in millivolts with the lines that stand above it."""

    title: str
    below: str
    x_mv: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hard:
    """A hard test recording and its neighbours among the training recordings, nearest first."""

    recording: Strip
    neighbours: Sequence[Strip]


def hardest(truth: Truth, scores: NDArray[np.float64], how_many: int = HOW_MANY) -> NDArray[np.int64]:
    """Positions of the recordings (of n) with the largest mean cross-entropy over known classes, the largest first."""
    known = truth != IGNORE
    sure = np.clip(np.where(truth == 1, scores, 1.0 - scores), SURELY, 1.0)
    loss = np.where(known, -np.log(sure), 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.argsort(-loss, kind="stable")[:how_many].astype(np.int64)


def nearest(
    features: NDArray[np.float32], train: NDArray[np.int64], rows: NDArray[np.int64], how_many: int = NEIGHBOURS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The training recordings most alike to each chosen one, as positions (w, k), and their cosines (w, k).

    Features are filled and scaled as the probe reads them: a recording without a beat has no median heartbeat.
    """
    _, as_read = standardised(features[train])
    scaled = as_read(features)
    unit = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    cosine = unit[rows] @ unit[train].T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :how_many]
    return train[order], np.take_along_axis(cosine, order, axis=1)


def hard_section(found: Sequence[Hard], of: str) -> Section | None:
    """A row of strips for each hard recording; `of` names the encoder. None without any."""
    if not found:
        return None
    pictures = [
        Picture(
            to_png(strips([hard.recording, *hard.neighbours]), dpi=110),
            alt=f"{hard.recording.title} and the training recordings nearest to it: "
            + "; ".join(each.title for each in hard.neighbours),
        )
        for hard in found
    ]
    return Section(
        title="What it gets most wrong",
        paragraphs=[
            f"The {len(found)} test recordings with the largest cross-entropy of the linear probe on {of}, the worst "
            "first, each beside the training recordings nearest to it (cosine of the features that the probe reads). "
            "Left: what it is called, and the classes that the probe finds, with their probabilities. Eight leads of "
            f"the first {SHOWN_S:g} s, {MM_PER_S:g} mm/s, {MM_PER_MV:g} mm/mV."
        ],
        pictures=pictures,
    )


def strips(shown: Sequence[Strip]) -> Figure:
    """Recordings side by side, eight leads each."""
    width = LABEL_MM + SHOWN_S * MM_PER_S
    height = TITLE_MM + len(SHOWN_LEADS) * ROW_MM
    with rc_context(STYLE):
        figure = new_figure(len(shown) * width / MM_PER_INCH, height / MM_PER_INCH)
        figure.set_layout_engine("none")
        for number, strip in enumerate(shown):
            axes = figure.add_axes((number / len(shown), 0, 1 / len(shown), 1))
            axes.set_xlim(-LABEL_MM, width - LABEL_MM)
            axes.set_ylim(-height, 0)
            axes.set_axis_off()
            paper(axes, -LABEL_MM, width - LABEL_MM - 1.0, TITLE_MM, height)
            _strip(axes, strip)
            axes.text(
                -LABEL_MM + 1, -1, strip.title, fontsize=8, fontweight="bold", va="top",
                color=INK if number else BLUE,
            )  # fmt: skip
            axes.text(-LABEL_MM + 1, -6.2, strip.below, fontsize=7.5, va="top")
    return figure


def _strip(axes: Axes, strip: Strip) -> None:
    samples = min(round(SHOWN_S * RATE_HZ), strip.x_mv.shape[1])
    time_mm = np.arange(samples) / RATE_HZ * MM_PER_S
    for row, name in enumerate(SHOWN_LEADS):
        middle = -TITLE_MM - ROW_MM * (row + 0.5)
        trace = np.clip(strip.x_mv[LEADS.index(name), :samples], -MOST_MV, MOST_MV)
        axes.plot(time_mm, middle + MM_PER_MV * trace, color=INK, linewidth=0.7, zorder=3)
        axes.text(-LABEL_MM + 1, middle, name, fontsize=7.5, fontweight="bold", va="center", zorder=4)
