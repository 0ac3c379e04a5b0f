"""Sections of a sweep's report over conditions: few labels, noise, missing leads. A small panel for each method.

Contract: as `sweep_page`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.names import score_name
from beatray.evaluate.results import METRICS, percent
from beatray.evaluate.robustness import CLEAN
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES
from beatray.report import sweep_figures
from beatray.report.canvas import to_svg
from beatray.report.html import Picture, Section, plain_table
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_table import CONTROL_NAMES, data_name, shown

NOISE, LEADS = "noise", "leads"
ALL_LEADS = 12
NOTHING = np.array([np.nan])


def few_labels_section(material: SweepMaterial) -> Section | None:
    """Scores over the share of the training labels, for each task and way to read the encoder."""
    pictures: list[Picture] = []
    rows: dict[str, list[str]] = {}
    header = ["method"]
    for task, protocol, fractions in _readings(material):
        if len(fractions) < 2:
            continue
        names = [score_name(task, protocol, fraction, METRICS[task][0]) for fraction in fractions]
        title, ticks = _title(material, task, protocol), [percent(fraction) for fraction in fractions]
        pictures.append(_picture(material, names, ticks, "labels used", title, protocol))
        if protocol == MAIN_PROTOCOL[task]:
            header += [f"{_score(material, task)} at {tick}" for tick in ticks]
            titles = {column.score: column.title for column in material.table.columns if column.variant == "pretrained"}
            for line in (*material.table.lines, *material.table.controls):
                cells = [line.scores.get(titles.get(name, ""), NOTHING) for name in names]
                rows.setdefault(line.name, [line.name]).extend(map(shown, cells))
    if not pictures:
        return None
    paragraphs = ["Subsets of the labels are nested and the same for all methods."]
    if any(protocol == "finetune" for _, protocol, _ in _readings(material)):
        paragraphs.append(
            "Fine-tuned, the same network from random weights is training from scratch, at a learning rate of its own."
        )
    return Section(
        title="Scores by number of labels",
        paragraphs=paragraphs,
        html=plain_table(header, list(rows.values())),
        pictures=pictures,
    )


def robustness_sections(material: SweepMaterial) -> list[Section]:
    """Scores over the level of noise and over the leads that are left, where test recordings were tried so."""
    sections = []
    for kind, title, label, sentence in (
        (
            NOISE,
            "What noise costs",
            "level of noise",
            "Baseline wander, muscle noise, power line and baseline shifts together, added to the test recordings "
            "alone; level 0 is the recording as it is.",
        ),
        (
            LEADS,
            "What missing leads cost",
            "leads left",
            "The other leads of the test recordings are set to zero. Eight leads hold all that twelve do; six are the "
            "limb leads; three I, II and V2; two I and II; one lead I.",
        ),
    ):
        pictures: list[Picture] = []
        rows: dict[str, list[str]] = {}
        header = ["method"]
        for task, protocol, fractions in _readings(material):
            found = _conditions(material, task, protocol, kind)
            if protocol != MAIN_PROTOCOL[task] or not found:
                continue
            names = [score_name(task, protocol, max(fractions), METRICS[task][0], each) for each in found.values()]
            pictures.append(_picture(material, names, list(found), label, _title(material, task, protocol), protocol))
            header += [f"{_score(material, task)}, {_tick_text(kind, tick)}" for tick in found]
            for line, method in zip(material.table.lines, material.results.methods, strict=True):
                means = [_mean(method.scores(name)) for name in names]
                rows.setdefault(line.name, [line.name]).extend(map(_number, means))
        if pictures:
            table = plain_table(header, list(rows.values()))
            taught = "What reads the encoders was trained on clean recordings."
            sections.append(Section(title=title, paragraphs=[f"{sentence} {taught}"], html=table, pictures=pictures))
    return sections


def _readings(material: SweepMaterial) -> list[tuple[str, str, list[float]]]:
    """(task, protocol, label fractions) of all trials, the main protocol of each task first."""
    found: dict[tuple[str, str], set[float]] = {}
    for method in material.results.methods:
        for trial in method.trials:
            for run in trial.results["runs"]:
                if run["condition"] == CLEAN and run["variant"] == "pretrained":
                    found.setdefault((run["task"], run["protocol"]), set()).add(run["fraction"])
    order = sorted(found, key=lambda each: (each[1] != MAIN_PROTOCOL[each[0]], each))
    return [(task, protocol, sorted(found[task, protocol])) for task, protocol in order]


def _conditions(material: SweepMaterial, task: str, protocol: str, kind: str) -> dict[str, str]:
    """What stands on the axis, in order, and the condition behind it; the clean recordings first."""
    seen = {
        run["condition"]
        for method in material.results.methods
        for trial in method.trials
        for run in trial.results["runs"]
        if (run["task"], run["protocol"]) == (task, protocol)
    }
    levels: dict[int, str] = {}
    for condition in seen:
        first, _, second = condition.partition(" ")
        if kind == NOISE and first == NOISE:
            levels[int(second)] = condition
        elif kind == LEADS and second.startswith("lead"):
            levels[-int(first)] = condition
    if not levels:
        return {}
    clean = {"0" if kind == NOISE else str(ALL_LEADS): CLEAN}
    return clean | {str(abs(level)): levels[level] for level in sorted(levels) if abs(level) != ALL_LEADS}


def _picture(
    material: SweepMaterial, names: Sequence[str], ticks: Sequence[str], x_label: str, title: str, protocol: str
) -> Picture:
    scratch = "from scratch" if protocol == "finetune" else CONTROL_NAMES["random"]
    courses = {}
    for line, method in zip(material.table.lines, material.results.methods, strict=True):
        controls = {}
        for variant, label in (("random", f"the same network, {scratch}"), ("features", CONTROL_NAMES["features"])):
            values = np.array([_mean(method.control_scores(name, variant)) for name in names])
            if np.isfinite(values).all():
                controls[label] = values
        values = np.stack([method.scores(name) for name in names], axis=1)
        courses[line.name] = sweep_figures.Course(values, controls)
    return Picture(
        to_svg(sweep_figures.multiples(courses, ticks, x_label, title)),
        alt=f"{title} over {x_label}, a panel for each of {', '.join(courses)}",
        caption=f"{title}. Means over trials, bars one SD. Random weights: the mean over the evaluation's seeds.",
        share=min(1.0, max(2, len(courses)) / sweep_figures.PANELS_ACROSS),
    )


def _tick_text(kind: str, tick: str) -> str:
    if kind == NOISE:
        return f"level {tick}"
    return f"{tick} leads" if tick != "1" else "1 lead"


def _title(material: SweepMaterial, task: str, protocol: str) -> str:
    return f"{_score(material, task)}, {PROTOCOL_NAMES[task, protocol]}"


def _score(material: SweepMaterial, task: str) -> str:
    return f"{data_name(material.results, task)} {METRIC_NAMES[METRICS[task][0]].removeprefix('macro ')}"


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"
