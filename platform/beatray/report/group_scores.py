"""For whom and for which codes an encoder is worse: a table and a picture from `evaluate.groups`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from beatray.evaluate.groups import (
    CODE_HEADER,
    COMPARED,
    EVERYBODY,
    SCORED,
    CodeRow,
    GroupRow,
    code_cells,
    group_cells,
    group_header,
)
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
                    "The frozen encoder with all labels on groups of the test recordings. Groups are small and differ "
                    "in their diagnoses: the intervals (over patients and seeds) say how little a difference may mean."
                ],
                html="".join(_group_table(main, task) for task in dict.fromkeys(row.task for row in main)),
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
                html=plain_table(CODE_HEADER[1:], [code_cells(row)[1:] for row in of_encoder]),
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
            places = {name: place for place, name in enumerate(names)}
            for row in of_task:
                colour, marker = looks[row.variant]
                low, high = row.macro.value - row.macro.low, row.macro.high - row.macro.value
                keys[row.variant] = axes.errorbar(
                    row.macro.value, places[row.group] + 0.2 * (COMPARED.index(row.variant) - 1),
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


def _group_table(rows: Sequence[GroupRow], task: str) -> str:
    of_task = [row for row in rows if row.task == task]
    columns = 4 + (len(of_task[0].parts) if len(of_task[0].parts) <= MOST_PARTS else 0)
    header = [*group_header(of_task)[1:4], f"{SCORED[task].split()[0]}, macro [95 %]", *group_header(of_task)[5:]]
    return plain_table(header[:columns], [group_cells(row)[1 : columns + 1] for row in of_task])
