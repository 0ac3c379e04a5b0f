"""Sections of a sweep's report about its scores: over a setting, over the labels, and how far trials scatter.

Contract: as `sweep_page`. A difference is called significant only where `evaluate.statistics` does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from beatray.errors import SettingsError
from beatray.evaluate.names import parts_of
from beatray.evaluate.paired import MetricComparison, RunScore, as_rows, compare_runs
from beatray.evaluate.results import METRICS
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.evaluate.statistics import ALPHA
from beatray.evaluate.table import METRIC_NAMES
from beatray.report import sweep_figures
from beatray.report.canvas import to_svg
from beatray.report.html import Picture, Section, plain_table
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_table import CONTROL_NAMES, Line, SweepTable, data_name, full_name
from beatray.sweep.results import Method

MOST_TESTED = 4
"""Scores whose tests a table has room for."""
MOST_LINES = 4
"""Methods in the picture of the label fractions: more could not be told apart."""


def compared(table: SweepTable, against: str | None = None) -> tuple[list[MetricComparison], list[str]]:
    """Every method against one: that named, or the paper's baseline, or the first line; paired tests per score.

    Trials are paired by what repeats them. Also returns the methods that lack a trial of the baseline: they are not
    compared.
    """
    named = next((line for line in table.lines if line.name == against), None)
    if against is not None and named is None:
        raise SettingsError(f"there is no method {against}; there are {', '.join(line.name for line in table.lines)}")
    first = named or table.baseline or table.lines[0]
    repeats = [
        repeat
        for position, repeat in enumerate(first.repeats)
        if all(np.isfinite(first.scores[column.title][position]) for column in table.tests)
    ]
    runs, left_out = [], []
    for line in table.lines:
        of_line = [
            RunScore(line.name, repeat, column.title, float(line.scores[column.title][line.repeats.index(repeat)]))
            for column in table.tests
            for repeat in repeats
            if repeat in line.repeats
        ]
        if len(of_line) == len(repeats) * len(table.tests) and all(np.isfinite(run.value) for run in of_line):
            runs += of_line
        else:
            left_out.append(line.name)
    if len(table.lines) - len(left_out) < 2 or not runs:
        return [], left_out
    return compare_runs(runs, ALPHA, against=first.name), left_out


def number_sections(material: SweepMaterial) -> list[Section]:
    """A section for each setting in which alone methods differ by a number, as lines over it."""
    pairs = list(zip(material.results.methods, material.table.lines, strict=True))
    keys = dict.fromkeys(key for method, _ in pairs for key, value in method.changes.items() if _is_number(value))
    return [section for key in keys if (section := _number_section(key, pairs, material.table)) is not None]


def _number_section(key: str, pairs: Sequence[tuple[Method, Line]], table: SweepTable) -> Section | None:
    groups: dict[str, list[tuple[float, Method, Line]]] = {}
    for method, line in pairs:
        if _is_number(method.changes.get(key)):
            others = json.dumps({k: v for k, v in method.changes.items() if k != key}, sort_keys=True)
            groups.setdefault(others, []).append((float(method.changes[key]), method, line))
    families = [sorted(group, key=lambda each: each[0]) for group in groups.values() if len(group) > 1]
    if not families:
        return None
    panels: dict[str, dict[str, sweep_figures.Curve]] = {}
    for column in table.columns[:3]:
        for family in families:
            reference = {
                x: line.paper.scores[column.paper] for x, _, line in family if column.paper and line.paper is not None
            }
            curve = sweep_figures.Curve({x: line.scores[column.title] for x, _, line in family}, reference or None)
            panels.setdefault(column.title, {})[_without(key, family[0][1])] = curve
    with_paper = any(line.paper is not None for family in families for _, _, line in family)
    return Section(
        title=f"What {key} does",
        pictures=[
            Picture(
                to_svg(sweep_figures.curves(panels, key, "the paper's figures" if with_paper else "")),
                alt=f"Scores over {key}: " + ", ".join(panels),
                caption="Means over trials, bars one SD, dots single trials. A line joins methods that differ in "
                "nothing else.",
                share=len(panels) / 3,
            )
        ],
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without(key: str, method: Method) -> str:
    """What a method is called but for this setting."""
    changes = {other: value for other, value in method.changes.items() if other != key}
    settings = {**method.trials[0].settings.get("objective", {}), key.removeprefix("objective."): None}
    variant = method.objective.variant(changes, settings)
    if variant is not None:
        return full_name(*variant)
    return ", ".join(f"{other}={value}" for other, value in changes.items()) or "all"


def _tests_table(comparisons: Sequence[MetricComparison]) -> str:
    """The paired tests of the main scores: the shift of each method, and p as corrected by Holm."""
    main = [each for each in comparisons if " at " not in each.metric][:MOST_TESTED]
    if not main:
        return ""
    against = main[0].statistics.comparisons[0].second
    header = [f"method less {against}"]
    rows: dict[str, list[str]] = {}
    for each in main:
        header += [each.metric, "p (Holm)"]
        for pair in each.statistics.comparisons:
            mark = f" {pair.verdict}" if pair.verdict in ("better", "worse") else ""
            rows.setdefault(pair.first, [pair.first])
            rows[pair.first] += [f"{pair.hodges_lehmann:+.3f}{mark}", f"{pair.p_holm:.3g}"]
    return plain_table(header, list(rows.values()))


def labels_section(material: SweepMaterial) -> Section | None:
    """Scores over the fraction of labels: the best methods, the paper's baseline, and the controls."""
    chosen = _leading(material)
    panels: dict[str, dict[str, sweep_figures.Curve]] = {}
    for task in material.results.tasks:
        metric = METRICS[task][0]
        title = f"{data_name(material.results, task)} {METRIC_NAMES[metric].removeprefix('macro ')}"
        selected = (task, MAIN_PROTOCOL[task], metric)
        names = [name for name in material.results.score_names() if parts_of(name)[:3] == selected]
        if len(names) < 2:
            continue
        fractions = {name: parts_of(name)[3] for name in names}
        lines = {
            label: sweep_figures.Curve({fractions[name]: method.scores(name) for name in names})
            for label, method in chosen.items()
        }
        for variant, label in (("random", "random weights"), ("features", "measured features")):
            points = {fractions[name]: material.best.control_scores(name, variant) for name in names}
            if all(np.isfinite(values).all() for values in points.values()):
                lines[label] = sweep_figures.Curve(points)
        panels[title] = lines
    if not panels:
        return None
    return Section(
        title="Scores by number of labels",
        pictures=[
            Picture(
                to_svg(sweep_figures.curves(panels, "labels used", percent=True)),
                alt="Scores over the share of training labels: " + ", ".join(panels),
                caption="Frozen encoders; subsets of the labels are nested and the same for all. Means over trials, "
                "bars one SD. Controls: the mean over their seeds.",
                share=len(panels) / 3,
            )
        ],
    )


def _leading(material: SweepMaterial) -> dict[str, Method]:
    """The baseline and the best method of each column, by the names of their lines, as many as can be told apart."""
    pairs = list(zip(material.table.lines, material.results.methods, strict=True))
    selected = [line for line, _ in pairs if line is material.table.baseline]
    for column in material.table.tests:
        selected.append(max((line for line, _ in pairs), key=lambda line: float(np.nanmean(line.scores[column.title]))))
    names = list(dict.fromkeys(line.name for line in selected))[:MOST_LINES]
    return {line.name: method for line, method in pairs if line.name in names}


def scatter_section(material: SweepMaterial) -> Section:
    """Every trial as a dot, and the paired tests."""
    table = material.table
    comparisons, left_out = compared(table, material.against)
    panels = {
        column.title: {line.name: line.scores[column.title] for line in table.lines} for column in table.tests[:4]
    }
    random = [line for line in table.controls if line.name.startswith(CONTROL_NAMES["random"])]
    alone = random[0].scores if len(random) == 1 else {}  # of several architectures none is the level of all
    levels = {
        title: {random[0].name: float(np.nanmean(alone[title]))}
        for title in panels
        if title in alone and np.isfinite(alone[title]).any()
    }
    brackets = {
        each.metric: [
            (pair.first, pair.second, f"p = {pair.p_holm:.3g}")
            for pair in each.statistics.comparisons
            if pair.verdict in ("better", "worse")
        ]
        for each in comparisons
    }
    refusals = {each.statistics.refusal for each in comparisons if each.statistics.refusal}
    paragraphs = [f"Against {comparisons[0].statistics.comparisons[0].second}: {text}" for text in sorted(refusals)]
    if left_out:
        paragraphs.append(f"Not compared, since a trial that the others have is missing: {', '.join(left_out)}.")
    return Section(
        title="How far the trials scatter",
        paragraphs=paragraphs,
        html=_tests_table(comparisons),
        pictures=[
            Picture(
                to_svg(sweep_figures.boxes(panels, brackets, levels)),
                alt="Scores of every trial by method: " + ", ".join(panels),
                caption="A dot is a trial (its mean over the seeds of the evaluation). Boxes from five trials on, "
                "violins from ten. Brackets join methods that the paired tests tell apart after correction; no "
                "bracket, no such pair.",
            )
        ],
        folded={"All paired tests": "\n\n".join("\n".join(as_rows(each)) for each in comparisons)}
        if comparisons
        else None,
    )
