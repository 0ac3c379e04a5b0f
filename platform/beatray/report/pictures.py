"""Figures of a training run and of an evaluation: curves, histograms, and dots with bars.

Contract: each function takes plain numbers and returns a matplotlib `Figure` (see `canvas`); numbers that are not
finite leave a gap. Nothing here reads a file or knows a run folder.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from beatray.evaluate.notes import TASK_TITLES
from beatray.evaluate.results import percent
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES, Row
from beatray.report.canvas import BLUE, GREY, ORANGE, STYLE, new_figure, quiet_grid

SMOOTHING_SHARE = 0.03  # of the steps, on each side
TITLE_LETTERS = 24
"""More of a title would run into that of the next panel."""
PANELS_PER_ROW = 5


def training_curves(
    step: ArrayLike,
    curves: Mapping[str, ArrayLike],
    marks: Mapping[str, tuple[float, str]] | None = None,
    shares: Collection[str] = (),
    others: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]] | None = None,
) -> Figure:
    """Small multiples, one panel per curve over `step` (n,): the raw values faint, a running median on top.

    `others[name]` are (step, values) of further runs, whose medians are drawn thin in grey.
    `marks[name] = (level, text)` draws a level that means something, such as the entropy of a uniform target; the
    curves named in `shares` are drawn from 0 to 1.
    """
    steps = np.asarray(step, np.float64)
    marks = marks or {}
    columns = min(PANELS_PER_ROW, max(1, len(curves)))
    lines = -(-len(curves) // columns)
    with rc_context(STYLE):
        figure = new_figure(2.5 * columns, 2.2 * lines)
        panels = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
        keys: dict[str, Artist] = {}
        for axes, (name, values) in zip(panels, curves.items(), strict=False):
            raw = np.asarray(values, np.float64)
            for at, beside in (others or {}).get(name, ()):
                smooth = running_median(np.asarray(beside, np.float64))
                (keys["other trials"],) = axes.plot(np.asarray(at, np.float64), smooth, color=GREY, linewidth=0.9)
            (keys["as measured"],) = axes.plot(steps, raw, color=BLUE, alpha=0.3, linewidth=0.8)
            (keys["running median"],) = axes.plot(steps, running_median(raw), color=BLUE, linewidth=1.6)
            if name in marks:
                level, text = marks[name]
                axes.axhline(level, color=ORANGE, linewidth=1.2, linestyle="--", label=text)
                axes.legend(fontsize=7, loc="best")
            axes.set_title(textwrap.fill(name, TITLE_LETTERS))
            axes.set_xlabel("step")
            axes.margins(x=0.01)
            if name in shares:
                axes.set_ylim(0.0, 1.05)
            quiet_grid(axes)
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        if keys:
            figure.legend(list(keys.values()), list(keys), loc="outside lower left", ncols=len(keys), fontsize=7)
    return figure


def target_course(
    step: ArrayLike, terms: Mapping[str, Mapping[str, ArrayLike]], nearly_uniform: float | None = None
) -> Figure:
    """How soft targets changed over training, one line of three panels per term (rhythm, beat) over `step` (n,).

    Each term holds `raw` and `sharp`, similarities (n, k) at k ascending quantiles, k odd, drawn as bands around the
    median; and `entropy` and `own_mass` (n,), drawn from 0 to 1 with the level above which targets are nearly uniform.
    """
    steps = np.asarray(step, np.float64)
    with rc_context(STYLE):
        figure = new_figure(12.0, 2.4 * max(1, len(terms)))
        panels = figure.subplots(max(1, len(terms)), 3, squeeze=False)
        for line, (name, values) in zip(panels, terms.items(), strict=False):
            for axes, kind, title in zip(line, ("raw", "sharp"), ("raw similarity", "sharpened"), strict=False):
                bands = np.asarray(values[kind], np.float64)
                middle = bands.shape[1] // 2
                for edge in range(middle):
                    axes.fill_between(steps, bands[:, edge], bands[:, -1 - edge], color=BLUE, alpha=0.2, linewidth=0)
                axes.plot(steps, bands[:, middle], color=BLUE, linewidth=1.4, label="median")
                axes.set_title(f"{name}: {title}")
                axes.legend(fontsize=7, loc="best")
            axes = line[2]
            axes.plot(steps, np.asarray(values["entropy"], np.float64), color=BLUE, label="target entropy")
            axes.plot(steps, np.asarray(values["own_mass"], np.float64), color=GREY, label="mass on the positive pair")
            if nearly_uniform is not None:
                axes.axhline(nearly_uniform, color=ORANGE, linewidth=1.2, linestyle="--", label="nearly uniform above")
            axes.set_ylim(0.0, 1.05)
            axes.legend(fontsize=7, loc="best")
            axes.set_title(f"{name}: the targets")
            for axes in line:
                axes.set_xlabel("step")
                axes.margins(x=0.01)
                quiet_grid(axes)
    return figure


def histograms(values: Mapping[str, ArrayLike], label: str, bins: int = 40) -> Figure:
    """One panel per named set of numbers, e.g. raw similarities and the targets made of them; medians marked."""
    with rc_context(STYLE):
        figure = new_figure(5.5 * max(1, len(values)), 2.6)
        panels = np.atleast_1d(figure.subplots(1, max(1, len(values)), squeeze=False)).ravel()
        for axes, (name, given) in zip(panels, values.items(), strict=False):
            known = _finite(given)
            axes.set_title(f"{name} (n = {known.size:,})")
            axes.set_xlabel(label)
            axes.set_ylabel("pairs")
            if known.size:
                axes.hist(known, bins=bins, color=BLUE, edgecolor="white", linewidth=0.4)
                median = float(np.median(known))
                axes.axvline(median, color=ORANGE, linewidth=1.5, label=f"median {median:.3f}")
                axes.legend(fontsize=8)
            quiet_grid(axes)
    return figure


def comparison(rows: Sequence[Row]) -> Figure:
    """The table's main scores as dots: pretrained against random weights, bars one SD over seeds; a panel per score."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        main = row.metric == ("f1" if row.task == "segment" else "auroc")
        if row.condition == "clean" and main:
            groups.setdefault((row.task, row.metric), []).append(row)
    variants = (("pretrained", BLUE, "o"), ("random", ORANGE, "s"), ("features", GREY, "D"))
    names = {"pretrained": "pretrained", "random": "random weights", "features": "measured features"}
    with rc_context(STYLE):
        tallest = max((len(group) for group in groups.values()), default=1)
        figure = new_figure(5.0 * max(1, len(groups)), 1.2 + 0.42 * tallest)
        keys: dict[str, Artist] = {}
        panels = np.atleast_1d(figure.subplots(1, max(1, len(groups)), squeeze=False)).ravel()
        for axes, ((task, metric), group) in zip(panels, groups.items(), strict=False):
            for position, row in enumerate(group):
                for offset, (variant, colour, marker) in enumerate(variants):
                    cell = getattr(row, variant)
                    if cell is not None:
                        sd = cell[1] if np.isfinite(cell[1]) else 0.0
                        axes.errorbar(
                            cell[0], position + 0.17 * (offset - 1), xerr=sd, fmt=marker, color=colour, markersize=5,
                            capsize=2, label=names[variant],
                        )  # fmt: skip
            prefix = len({row.encoder for row in group}) > 1
            axes.set_yticks(
                range(len(group)),
                [
                    (f"{r.encoder}: " if prefix else "") + f"{PROTOCOL_NAMES[task, r.protocol]}, {percent(r.fraction)}"
                    for r in group
                ],
            )
            axes.set_ylim(len(group) - 0.5, -0.5)
            axes.set_title(f"{group[0].title or TASK_TITLES[task]}: {METRIC_NAMES[metric]}")
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                keys.setdefault(label, handle)
        figure.legend(keys.values(), keys.keys(), loc="outside upper right", ncols=max(1, len(keys)), fontsize=8)
    return figure


def running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over a centred window of a few per cent of the values; NaN are passed over."""
    reach = max(1, round(SMOOTHING_SHARE * values.size))
    padded = np.pad(values, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    known = ~np.isnan(windows).all(axis=1)
    smooth = np.full(values.size, np.nan)
    smooth[known] = np.nanmedian(windows[known], axis=1)
    return smooth


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    flat = np.asarray(values, np.float64).ravel()
    return flat[np.isfinite(flat)]
