"""Figures of a multilabel classification: the score of each class, and which classes are predicted together.

Contract: arrays in, a matplotlib `Figure` out (see `canvas`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beatray.report.canvas import BLUE, GREY, ORANGE, STYLE, new_figure, quiet_grid


def class_bars(
    classes: Sequence[str], scores: Mapping[str, NDArray[np.float64]], counts: Sequence[int], title: str
) -> Figure:
    """Bars (one per arm and class): `scores` by arm are (runs, classes), a bar is their mean, a whisker one SD."""
    colours = (BLUE, ORANGE, GREY)
    with rc_context(STYLE):
        figure = new_figure(max(6.0, 1.5 * len(classes)), 3.4)
        axes = figure.subplots()
        width = 0.8 / max(1, len(scores))
        for number, (arm, values) in enumerate(scores.items()):
            places = np.arange(len(classes)) + width * (number - (len(scores) - 1) / 2)
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(classes))
            axes.bar(
                places, np.nanmean(values, axis=0), width, yerr=spread, capsize=2, label=arm, color=colours[number % 3]
            )
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xticks(
            range(len(classes)), [f"{name}\n{count} tested" for name, count in zip(classes, counts, strict=True)]
        )
        axes.set_ylim(0.0, 1.0)
        axes.set_title(title)
        quiet_grid(axes)
        figure.legend(loc="outside upper right", ncols=len(scores), fontsize=8)
    return figure


def confusion(
    classes: Sequence[str], truth_nc: NDArray[np.bool_], predicted_nc: NDArray[np.bool_], title: str
) -> Figure:
    """Of the recordings that have the class of a row, the share for which the class of a column was predicted.

    Labels are not exclusive: a row need not sum to 1, and off-diagonal cells may be right.
    """
    counts = truth_nc.sum(axis=0)
    together = truth_nc.astype(np.float64).T @ predicted_nc.astype(np.float64)
    share = together / np.maximum(counts[:, None], 1)
    with rc_context(STYLE):
        figure = new_figure(1.6 + 0.75 * len(classes), 1.4 + 0.6 * len(classes))
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        for row in range(len(classes)):
            for column in range(len(classes)):
                value = share[row, column]
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
                )
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(classes)), [f"{name} ({count})" for name, count in zip(classes, counts, strict=True)])
        axes.set_xlabel("predicted")
        axes.set_ylabel("has the class")
        axes.set_title(title)
        axes.spines[:].set_visible(False)
    return figure
