"""The vectorcardiogram of one recording in its three planes, with what the augmentation makes of it.

Planes as cardiologists draw them: frontal seen from the front (left of the patient on the right, feet down), horizontal
seen from above (front of the chest down), sagittal seen from the left (front on the left).

Contract: a loop is (3, n) millivolts: X to the patient's left, Y to the feet, Z to the back (the frame of the Frank
leads, Circulation 13:737, 1956, and of the Dower matrices).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beatray.report.canvas import BLUE, GREY, ORANGE, STYLE, new_figure

PLANES = (
    ("frontal", 0, 1, "left", "feet", True),
    ("horizontal", 0, 2, "left", "back", False),
    ("sagittal", 2, 1, "back", "feet", True),
)
"""Name, axis across, axis up the page, their positive ends, whether the second axis points down."""

_VIEW_COLOURS = (BLUE, ORANGE)


def vcg_loops(original: NDArray[np.float32], views: Sequence[tuple[str, NDArray[np.float32]]]) -> Figure:
    """One row per view (at least the original alone): three planes, the original in grey behind each view."""
    shown = list(views) or [("original", original)]
    reach = 1.05 * max(float(np.abs(loop).max(initial=1e-3)) for loop in (original, *(loop for _, loop in shown)))
    with rc_context(STYLE):
        figure = new_figure(9.6, 3.3 * len(shown))
        panels = figure.subplots(len(shown), len(PLANES), squeeze=False)
        for row, (name, loop) in enumerate(shown):
            colour = _VIEW_COLOURS[row % len(_VIEW_COLOURS)] if views else GREY
            for axes, plane in zip(panels[row], PLANES, strict=True):
                _plane(axes, plane, reach)
                if views:
                    axes.plot(original[plane[1]], original[plane[2]], color=GREY, linewidth=0.9, label="original")
                axes.plot(loop[plane[1]], loop[plane[2]], color=colour, linewidth=1.1, label=name)
                axes.set_title(f"{plane[0]} plane" if row == 0 else "")
            panels[row][0].legend(fontsize=8, loc="upper left")
    return figure


def _plane(axes: Axes, plane: tuple[str, int, int, str, str, bool], reach: float) -> None:
    _, _, _, right, end, down = plane
    axes.set_xlim(-reach, reach)
    axes.set_ylim((reach, -reach) if down else (-reach, reach))
    axes.set_aspect("equal")
    axes.axhline(0, color="#cccccc", linewidth=0.6, zorder=0)
    axes.axvline(0, color="#cccccc", linewidth=0.6, zorder=0)
    axes.set_xlabel(f"mV, to the {right} →", loc="right", fontsize=8)
    axes.set_ylabel(f"mV, {'← ' if down else ''}to the {end}{'' if down else ' →'}", fontsize=8)
    axes.tick_params(labelsize=7)
