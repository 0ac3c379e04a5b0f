"""For whom and for which codes an encoder is worse: a table and a picture from `evaluate.groups`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from beatray.evaluate.detail_tables import interval_text
from beatray.evaluate.groups import COMPARED, EVERYBODY, SCORED, CodeRow, GroupRow
from beatray.evaluate.results import percent
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.report.canvas import BLUE, GREY, ORANGE, STYLE, new_figure, to_svg
from beatray.report.html import Picture, Section, plain_table

MOST_PARTS = 8
"""Classes that have columns of their own."""


def group_sections(groups: Sequence[GroupRow], codes: Sequence[CodeRow], titles: Mapping[str, str]) -> list[Section]:
    """By age, sex and flag; and by code. Sections without rows are left out; `titles` name the tasks."""
    sections = []
    main = [row for row in groups if row.protocol == MAIN_PROTOCOL[row.task]]
    if main:
        sections.append(
            Section(
                title="For whom it is worse",
                paragraphs=[
                    f"The frozen encoder ({_shares(main, titles)} of the labels) on groups of the test "
                    "recordings. Groups are small and differ in their diagnoses: the intervals (over patients and "
                    "seeds) show how little a difference may mean. "
                    f"Classes and waves by themselves: {main[0].encoder}."
                ],
                html="".join(
                    f"<h3>{escape(titles[task])}</h3>{_group_table(main, task)}"
                    for task in dict.fromkeys(row.task for row in main)
                ),
                pictures=[
                    Picture(
                        to_svg(group_dots(main, titles)),
                        alt="Scores by age, sex and quality flag, for each variant",
                        caption="Whiskers are 95 % intervals; the line is the score of the pretrained encoder on all.",
                    )
                ],
            )
        )
    of_encoder = [row for row in codes if row.variant in COMPARED and row.protocol == MAIN_PROTOCOL["classify"]]
    if of_encoder:
        sections.append(
            Section(
                title="What a class hides",
                paragraphs=[
                    "Each code of a class by itself: its recordings against those without the class, and the share of "
                    "them that is found at the class's threshold."
                ],
                html=_code_table(of_encoder),
            )
        )
    return sections


def group_dots(rows: Sequence[GroupRow], titles: Mapping[str, str]) -> Figure:
    """Macro scores with intervals, a panel per task and a line per group."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    looks = dict(zip(COMPARED, ((BLUE, "o"), (ORANGE, "s"), (GREY, "D")), strict=True))
    tallest = max(len({row.group for row in rows if row.task == task}) for task in tasks)
    with rc_context(STYLE):
        figure = new_figure(5.0 * len(tasks), 1.0 + 0.38 * tallest)
        panels = figure.subplots(1, len(tasks), squeeze=False).ravel()
        keys = {}
        for axes, task in zip(panels, tasks, strict=True):
            of_task = [row for row in rows if row.task == task]
            names = {row.group: row.recordings for row in of_task}
            heights = {name: height for height, name in enumerate(names)}
            for row in of_task:
                colour, marker = looks[row.variant]
                low, high = row.macro.value - row.macro.low, row.macro.high - row.macro.value
                keys[row.variant] = axes.errorbar(
                    row.macro.value, heights[row.group] + 0.2 * (COMPARED.index(row.variant) - 1),
                    xerr=np.array([[max(low, 0.0)], [max(high, 0.0)]]) if np.isfinite(low + high) else None,
                    fmt=marker, color=colour, markersize=4, capsize=2,
                )  # fmt: skip
                if row.group == EVERYBODY and row.variant == "pretrained":
                    axes.axvline(row.macro.value, color=BLUE, linewidth=0.8, linestyle=":")
            axes.set_yticks(range(len(names)), [f"{name} ({count})" for name, count in names.items()])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_title(f"{titles[task]}: {'macro F1' if task == 'segment' else 'AUROC'}")
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        figure.legend(keys.values(), keys.keys(), loc="outside upper right", ncols=len(keys), fontsize=8)
    return figure


def _shares(rows: Sequence[GroupRow], titles: Mapping[str, str]) -> str:
    """The share of the labels that each task was trained with; once where it is the same."""
    found = {row.task: percent(row.fraction) for row in rows}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{titles[task]}: {share}" for task, share in found.items())


def _group_table(rows: Sequence[GroupRow], task: str) -> str:
    """A line for each group: the macro score of each variant, and the classes or waves of the first."""
    by_group: dict[str, dict[str, GroupRow]] = {}
    for row in rows:
        if row.task == task:
            by_group.setdefault(row.group, {})[row.encoder] = row
    everybody = next(iter(by_group.values()))
    names = list(everybody)
    parts = list(everybody[names[0]].parts) if len(everybody[names[0]].parts) <= MOST_PARTS else []
    header = ["group", "recordings", *(f"{name}, {SCORED[task].split()[0]} [95 %]" for name in names), *parts]
    lines = []
    for group, found in by_group.items():
        macros = [interval_text(found[name].macro) for name in names]
        first = found[names[0]]
        lines.append([group, str(first.recordings), *macros, *(_score(first.parts[part]) for part in parts)])
    return plain_table(header, lines)


def _code_table(rows: Sequence[CodeRow]) -> str:
    """A line for each code: the AUROC of each variant, and the share that the first one finds."""
    by_code: dict[tuple[str, str], dict[str, CodeRow]] = {}
    for row in rows:
        by_code.setdefault((row.name, row.code), {})[row.encoder] = row
    names = list(next(iter(by_code.values())))
    header = ["class", "code", "recordings", *(f"{name}, AUROC [95 %]" for name in names), f"found ({names[0]})"]
    lines = []
    for (name, code), found in by_code.items():
        areas = [interval_text(found[each].auroc) for each in names]
        first = found[names[0]]
        lines.append([name, code, str(first.recordings), *areas, f"{first.found:.0%}"])
    return plain_table(header, lines)


def _score(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
