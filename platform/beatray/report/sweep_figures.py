"""Figures of a sweep: the effect of sharpening, of the number of labels and of noise, and how far trials scatter.

Contract: plain numbers in, a matplotlib `Figure` out (see `canvas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beatray.evaluate import results
from beatray.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, STYLE, new_figure, quiet_grid

COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#8c6d31", GREY)
MARKERS = "osD^vP*X"
PANELS_PER_ROW = 2
PANELS_ACROSS = 4
FAINT = "#d3d3d3"
CONTROL_LOOKS: tuple[dict[str, Any], ...] = ({"color": ORANGE, "linestyle": "--"}, {"color": GREEN, "linestyle": ":"})


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores (n trials,) at each x; `reference` are single values to draw beside, such as the paper's."""

    points: Mapping[float, NDArray[np.float64]]
    reference: Mapping[float, float] | None = None


def curves(
    panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    reference_label: str = "",
    percent: bool = False,
) -> Figure:
    """One panel per score, one line per method over x: means, bars one SD over trials, trials as dots.

    The scale of x is logarithmic unless it reaches 0.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = {name: (COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n, name in enumerate(names)}
    with rc_context(STYLE):
        figure = new_figure(4.4 * max(1, len(panels)), 4.0)
        found = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
        for axes, (title, lines) in zip(found, panels.items(), strict=False):
            for name, curve in lines.items():
                _curve(axes, name, curve, *looks[name])
            ticks = sorted({x for curve in lines.values() for x in curve.points})
            axes.set_xscale("log" if ticks and ticks[0] > 0 else "linear")
            axes.set_xticks(ticks, [results.percent(x) if percent else f"{x:g}" for x in ticks])
            axes.minorticks_off()
            axes.set_title(title)
            axes.set_xlabel(x_label)
            quiet_grid(axes)
        keys = _keys(found)
        if reference_label:
            keys[reference_label] = found[0].plot([], [], color=INK, linewidth=1.0, linestyle="--")[0]
        labels = list(keys)
        figure.legend(
            list(keys.values()), labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), fontsize=8
        )
    return figure


@dataclass(frozen=True, slots=True)
class Course:
    """Scores (trials, ticks) of one method over conditions in order, and the means (ticks,) of controls beside it."""

    values: NDArray[np.float64]
    controls: Mapping[str, NDArray[np.float64]]


def multiples(courses: Mapping[str, Course], ticks: Sequence[str], x_label: str, y_label: str) -> Figure:
    """A small panel per method over the same evenly spaced conditions: its mean with bars of one SD over trials, its
    controls dashed, and all other methods faint behind it. All panels share both axes, so twenty can be compared."""
    positions = np.arange(len(ticks))
    means = {name: _means(course.values) for name, course in courses.items()}
    across = min(PANELS_ACROSS, max(1, len(courses)))
    down = max(1, -(-len(courses) // across))
    with rc_context(STYLE):
        figure = new_figure(10.0 * max(across, 2) / PANELS_ACROSS, 1.75 * down + 0.6)
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(courses) :]:
            axes.set_axis_off()
        keys: dict[str, Artist] = {}
        for number, (axes, (name, course)) in enumerate(zip(panels, courses.items(), strict=False)):
            for other in means:
                axes.plot(positions, means[other], color=FAINT, linewidth=0.8, zorder=1)
            for look, (label, values) in zip(CONTROL_LOOKS, course.controls.items(), strict=False):
                (keys[label],) = axes.plot(positions, values, linewidth=1.3, zorder=2, **look)
            keys["the method"] = axes.errorbar(
                positions, means[name], yerr=_spreads(course.values), color=BLUE, marker="o", markersize=3.5,
                linewidth=1.6, capsize=2, zorder=3,
            )  # fmt: skip
            axes.set_title(name, fontsize=9)
            axes.set_xticks(positions, ticks)
            axes.tick_params(labelsize=8, labelbottom=number + across >= len(courses))
            quiet_grid(axes)
        keys["all other methods"] = panels[0].plot([], [], color=FAINT, linewidth=1.2)[0]
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(y_label, fontsize=9)
        figure.legend(list(keys.values()), list(keys), loc="outside upper left", ncols=max(2, across), fontsize=8)
    return figure


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the trials that are known; NaN where there is none."""
    return np.array(
        [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in values.T]
    )


def _spreads(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """SD over the trials that are known; 0 for one alone."""
    known = [column[np.isfinite(column)] for column in values.T]
    return np.array([column.std(ddof=1) if column.size > 1 else 0.0 for column in known])


def boxes(
    panels: Mapping[str, Mapping[str, NDArray[np.float64]]],
    brackets: Mapping[str, Sequence[tuple[str, str, str]]] | None = None,
    levels: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """One panel per score, one line per method: every trial as a dot, a box from five trials on, a violin from ten.

    `brackets[panel]` are (method, method, text) of pairs to join, such as the significant ones.
    """
    rows = max((len(methods) for methods in panels.values()), default=1)
    with rc_context(STYLE):
        across = min(PANELS_PER_ROW, max(1, len(panels)))
        down = -(-len(panels) // across)
        figure = new_figure(4.2 * across + 1.5, down * (0.9 + 0.26 * rows) + 0.4)
        found = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for axes in found[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, methods) in zip(found, panels.items(), strict=False):
            for height, values in enumerate(methods.values()):
                _scatter(axes, values[np.isfinite(values)], height)
            for name, level in (levels or {}).get(title, {}).items():
                axes.axvline(level, color=ORANGE, linewidth=1.2, linestyle="--", label=name)
            _brackets(axes, list(methods), methods, (brackets or {}).get(title, ()))
            axes.set_title(title)
            axes.set_yticks(range(len(methods)), list(methods))
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        keys = _keys(found)
        if keys:
            figure.legend(list(keys.values()), list(keys), loc="outside lower center", ncols=len(keys), fontsize=8)
    return figure


def _keys(panels: Iterable[Axes]) -> dict[str, Any]:
    """What all panels draw, by its name, once: a panel may have a line that the first has not."""
    return {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}


def _curve(axes: Axes, name: str, curve: Curve, colour: str, marker: str) -> None:
    xs = sorted(curve.points)
    means = [float(np.nanmean(curve.points[x])) for x in xs]
    spreads = [float(np.nanstd(curve.points[x], ddof=1)) if len(curve.points[x]) > 1 else 0.0 for x in xs]
    axes.errorbar(xs, means, yerr=spreads, color=colour, marker=marker, markersize=5, capsize=2, label=name)
    for x in xs:
        axes.plot(np.full(len(curve.points[x]), x), curve.points[x], ".", color=colour, alpha=0.4, markersize=4)
    if curve.reference:
        known = sorted(curve.reference)
        axes.plot(known, [curve.reference[x] for x in known], color=colour, linewidth=1.0, linestyle="--", alpha=0.8)


def _scatter(axes: Axes, values: NDArray[np.float64], height: int) -> None:
    if len(values) >= 10:
        body = axes.violinplot([values], [height], orientation="horizontal", widths=0.8, showextrema=False)
        for part in body["bodies"]:  # type: ignore[attr-defined]
            part.set(facecolor=BLUE, alpha=0.2)
    if len(values) >= 5:
        axes.boxplot(
            [values], positions=[height], orientation="horizontal", widths=0.35, showfliers=False, manage_ticks=False,
            medianprops={"color": INK}, boxprops={"color": GREY},
            whiskerprops={"color": GREY}, capprops={"color": GREY},
        )  # fmt: skip
    axes.plot(values, np.full(len(values), height), "o", color=BLUE, alpha=0.7, markersize=4)
    if 0 < len(values) < 5:
        axes.plot([values.mean()], [height], "|", color=INK, markersize=11, markeredgewidth=1.6)


def _brackets(
    axes: Axes,
    names: Sequence[str],
    methods: Mapping[str, NDArray[np.float64]],
    pairs: Sequence[tuple[str, str, str]],
) -> None:
    if not pairs:
        return
    known = np.concatenate([values[np.isfinite(values)] for values in methods.values()])
    low, high = float(known.min()), float(known.max())
    step = 0.07 * max(high - low, 1e-3)
    for number, (one, other, text) in enumerate(pairs, start=1):
        x, a, b = high + number * step, names.index(one), names.index(other)
        axes.plot([x - step / 3, x, x, x - step / 3], [a, a, b, b], color=INK, linewidth=0.9)
        axes.text(x, (a + b) / 2, f" {text}", fontsize=8, va="center")
    axes.set_xlim(right=high + (len(pairs) + 1.5) * step)
