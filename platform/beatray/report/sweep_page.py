"""The report of a sweep, section by section: the table beside the paper's, what holds of it, and what stands behind it.

Contract: everything comes in the `SweepMaterial`; a part that is absent leaves its section out. Nothing is read from
disk. A difference is called significant only where `evaluate.statistics` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.metrics import auroc
from beatray.evaluate.paired import MetricComparison, RunScore, as_rows, compare_runs
from beatray.evaluate.statistics import ALPHA
from beatray.report import class_figures, ecg, embedding_figures, sweep_figures
from beatray.report.build import Example, segmentation_section, vcg_section
from beatray.report.canvas import to_png, to_svg
from beatray.report.html import Picture, Section, write_report
from beatray.report.sweep_table import Line, SweepTable, Verdict, as_html, name_of, shown, verdicts
from beatray.sweep.paper import BASELINE, described
from beatray.sweep.results import Method, SweepResults

EXPONENT = "objective.exponent"
MOST_LINES = 4
"""Methods in the picture of the label fractions: more could not be told apart."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Recordings (n, D) as one encoder sees them, and texts (n,) to colour them by."""

    vectors: NDArray[np.float32]
    groups: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class SweepMaterial:
    """Everything the report of a sweep may hold; `best` is the method whose encoder the pictures show."""

    title: str
    table: SweepTable
    results: SweepResults
    best: Method
    facts: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    ranking: str = ""
    overlays: Sequence[ecg.Overlay] = ()
    min_leads: int = 3
    embeddings: Embeddings | None = None
    example: Example | None = None
    tracking: Sequence[str] = ()


def build_sweep_report(path: Path, material: SweepMaterial) -> Path:
    """Draw, lay out and write the report; returns its path."""
    comparisons, left_out = compared(material.table)
    candidates = [
        _table_section(material),
        _claims_section(material.table),
        _exponent_section(material),
        _labels_section(material),
        _scatter_section(material.table, comparisons, left_out),
        _classes_section(material.best),
        segmentation_section(material.overlays, material.min_leads),
        _embedding_section(material),
        _vcg_section(material),
        _run_section(material),
    ]
    lead = [
        f"{len(material.results.methods)} ways to pretrain an encoder for 12-lead ECGs without labels, each tried on "
        "recordings it never saw, beside the same encoder with random weights and beside hand-made features."
    ]
    return write_report(path, material.title, lead, [section for section in candidates if section is not None])


def compared(table: SweepTable) -> tuple[list[MetricComparison], list[str]]:
    """Every method against the paper's baseline, or the first line where that was not run: paired tests per score.

    Trials are paired by what repeats them. Also returns the methods that lack a trial of the baseline: they are not
    compared.
    """
    first = next((line for line in table.lines if line.paper == BASELINE), table.lines[0])
    repeats = [
        repeat
        for place, repeat in enumerate(first.repeats)
        if all(np.isfinite(values[place]) for values in first.scores.values())
    ]
    runs, left_out = [], []
    for line in table.lines:
        of_line = [
            RunScore(line.name, repeat, column.title, float(line.scores[column.title][line.repeats.index(repeat)]))
            for column in table.columns
            for repeat in repeats
            if repeat in line.repeats
        ]
        if len(of_line) == len(repeats) * len(table.columns) and all(np.isfinite(run.value) for run in of_line):
            runs += of_line
        else:
            left_out.append(line.name)
    if len(table.lines) - len(left_out) < 2 or not runs:
        return [], left_out
    return compare_runs(runs, ALPHA, against=first.name), left_out


def _table_section(material: SweepMaterial) -> Section:
    table = material.table
    counts = {len(method.trials) for method in material.results.methods}
    trials, uneven = max(counts), len(counts) > 1
    trials_said = f"{'up to ' if uneven else ''}{trials} trial{'s' if trials > 1 else ''}"
    paragraphs = [
        f"Mean ± SD over {trials_said} of each method, the encoder frozen unless a column says otherwise. PTB-XL: a "
        "logistic probe for the classes; LUDB: a light decoder for P, QRS and T, macro F1 of samples 500 to 4499."
    ]
    if table.of_paper:
        paragraphs.append(
            "Beside the paper's rows stand its own figures (other data, encoder and labels: only directions can be "
            "compared) and whether our difference from row 1 has the paper's sign: in every trial (same), in none "
            "(opposite), or in some (mixed). No mark is a test."
        )
    missing = [f"Not in the table, since not finished or not evaluated: {', '.join(material.results.missing)}."]
    return Section(
        title="What each method is worth",
        paragraphs=[*paragraphs, *(missing if material.results.missing else [])],
        html=as_html(table),
    )


def _claims_section(table: SweepTable) -> Section | None:
    found = verdicts(table)
    if not found:
        return None
    head = ("what the paper's table says", "rows", "score", "paper", "here", "direction")
    rows = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _claim_cells(verdict))}</tr>" for verdict in found]
    html = (
        f"<table class='results'><thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    counts = {mark: sum(verdict.mark == mark for verdict in found) for mark in ("same", "mixed", "opposite")}
    said = ", ".join(f"{count} {mark}" for mark, count in counts.items())
    return Section(
        title="What the paper says, and what happened here", paragraphs=[f"Of {len(found)}: {said}."], html=html
    )


def _claim_cells(verdict: Verdict) -> tuple[str, ...]:
    ours = f"{'+' if verdict.ours.mean() >= 0 else ''}{shown(verdict.ours)}"
    rows = f"{verdict.rows[0]} over {verdict.rows[1]}"
    return verdict.text, rows, verdict.score, f"{verdict.paper:+.3f}", ours, verdict.mark


def _exponent_section(material: SweepMaterial) -> Section | None:
    """Methods that differ in the exponent alone, as lines over it."""
    groups: dict[str, list[tuple[float, Method, Line]]] = {}
    for method, line in zip(material.results.methods, material.table.lines, strict=True):
        if EXPONENT in method.changes:
            others = json.dumps({k: v for k, v in method.changes.items() if k != EXPONENT}, sort_keys=True)
            groups.setdefault(others, []).append((float(method.changes[EXPONENT]), method, line))
    families = [sorted(group, key=lambda each: each[0]) for group in groups.values() if len(group) > 1]
    if not families:
        return None
    panels: dict[str, dict[str, sweep_figures.Curve]] = {}
    for column in material.table.columns[:3]:
        for family in families:
            reference = {
                x: line.paper.scores[column.paper] for x, _, line in family if column.paper and line.paper is not None
            }
            curve = sweep_figures.Curve({x: line.scores[column.title] for x, _, line in family}, reference or None)
            panels.setdefault(column.title, {})[_without_exponent(family[0][1])] = curve
    with_paper = any(line.paper is not None for family in families for _, _, line in family)
    return Section(
        title="What sharpening the soft targets does",
        pictures=[
            Picture(
                to_svg(sweep_figures.curves(panels, "exponent of soft_1", "the paper's figures" if with_paper else "")),
                alt="Scores over the exponent of the soft target: " + ", ".join(panels),
                caption="Means over trials, bars one SD, dots single trials. Rhythm / beat targets.",
                share=len(panels) / 3,
            )
        ],
    )


def _without_exponent(method: Method) -> str:
    changes = method.changes
    if "objective.rhythm" not in changes:
        return "all" if len(changes) == 1 else ", ".join(f"{k}={v}" for k, v in changes.items() if k != EXPONENT)
    return described(str(changes["objective.rhythm"]), str(changes.get("objective.beat", "none")))


def _labels_section(material: SweepMaterial) -> Section | None:
    """Scores over the fraction of labels: the best methods, the paper's baseline, and the controls."""
    chosen = _leading(material)
    panels: dict[str, dict[str, sweep_figures.Curve]] = {}
    for task, metric, title in (("classify", "auroc", "PTB-XL AUROC"), ("segment", "f1", "LUDB F1")):
        names = [name for name in material.results.score_names() if _parts(name)[:3] == (task, "frozen", metric)]
        if len(names) < 2:
            continue
        fractions = {name: _parts(name)[3] for name in names}
        lines = {
            label: sweep_figures.Curve({fractions[name]: method.scores(name) for name in names})
            for label, method in chosen.items()
        }
        for arm, label in (("random", "random weights"), ("features", "measured features")):
            points = {fractions[name]: material.best.control_scores(name, arm) for name in names}
            if all(np.isfinite(values).all() for values in points.values()):
                lines[label] = sweep_figures.Curve(points)
        panels[title] = lines
    if not panels:
        return None
    return Section(
        title="What labels are worth",
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
    wanted = [line for line, _ in pairs if line.paper == BASELINE]
    for column in material.table.columns:
        wanted.append(max((line for line, _ in pairs), key=lambda line: float(np.nanmean(line.scores[column.title]))))
    names = list(dict.fromkeys(line.name for line in wanted))[:MOST_LINES]
    return {line.name: method for line, method in pairs if line.name in names}


def _parts(name: str) -> tuple[str, str, str, float]:
    """(task, protocol, metric, fraction) of a clean score's name; the metric of others is what follows."""
    task, protocol, rest = name.split(".", 2)
    fraction, metric = rest.split("pct.", 1)
    return task, protocol, metric, float(fraction) / 100


def _scatter_section(table: SweepTable, comparisons: Sequence[MetricComparison], left_out: Sequence[str]) -> Section:
    panels = {
        column.title: {line.name: line.scores[column.title] for line in table.lines} for column in table.columns[:4]
    }
    levels = {
        column.title: {line.name: float(np.nanmean(line.scores[column.title])) for line in table.controls[:1]}
        for column in table.columns[:4]
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
    told = [f"Against {comparisons[0].statistics.comparisons[0].second}: {text}" for text in sorted(refusals)]
    if left_out:
        told.append(f"Not compared, since a trial that the others have is missing: {', '.join(left_out)}.")
    return Section(
        title="How far the trials scatter",
        paragraphs=told,
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


def _classes_section(best: Method) -> Section | None:
    trial = best.trials[0]
    part = trial.results["tasks"].get("classify")
    runs = [run for run in trial.results["runs"] if run["task"] == "classify" and run["condition"] == "clean"]
    if part is None or not part.get("truth") or not runs:
        return None
    fraction = max(run["fraction"] for run in runs)
    truth = np.array(part["truth"], bool)
    classes = part["classes"] or [f"class {k}" for k in range(truth.shape[1])]

    def of(results: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
        return [
            run
            for run in results.get("runs", ())
            if (run["task"], run["protocol"], run["arm"], run["fraction"], run["condition"])
            == ("classify", "frozen", arm, fraction, "clean")
        ]

    scores = {}
    arms = (("pretrained", name_of(best), trial.results), ("random", "random weights", trial.controls))
    for arm, label, results in (*arms, ("features", "measured features", trial.controls)):
        found = of(results, arm)
        if found:
            tables = [np.array(run["test"]["scores"], np.float64) for run in found]
            scores[label] = np.array([[auroc(truth[:, k], t[:, k]) for k in range(len(classes))] for t in tables])
    if not scores:
        return None
    first = of(trial.results, "pretrained")[0]["test"]
    decided = np.array(first["scores"], np.float64) >= np.array(first["thresholds"], np.float64)
    counts = truth.sum(axis=0).tolist()
    return Section(
        title="Class by class",
        pictures=[
            Picture(
                to_svg(class_figures.class_bars(classes, scores, counts, "AUROC of each class")),
                alt="AUROC of each class for " + ", ".join(scores),
                caption=f"The encoder of trial {trial.trial}; whiskers are one SD over the seeds of the evaluation.",
                share=0.7,
            ),
            Picture(
                to_png(class_figures.confusion(classes, truth, decided, "Predicted together")),
                alt="Share of the recordings of each class for which each class was predicted",
                caption="First seed, thresholds chosen without the test recordings. A recording may have several "
                "classes, so a row need not sum to 1.",
                share=0.45,
            ),
        ],
    )


def _embedding_section(material: SweepMaterial) -> Section | None:
    if material.embeddings is None or len(material.embeddings.vectors) < 3:
        return None
    places = embedding_figures.projections(material.embeddings.vectors)
    return Section(
        title="Where recordings lie",
        pictures=[
            Picture(
                to_png(embedding_figures.embedding_map(places, material.embeddings.groups)),
                alt="Embeddings in two dimensions, coloured by " + ", ".join(material.embeddings.groups),
                caption=f"{name_of(material.best)}: {len(material.embeddings.vectors)} recordings held out. In "
                "t-SNE only nearness means something, not distance or size.",
            )
        ],
    )


def _vcg_section(material: SweepMaterial) -> Section | None:
    if material.example is None:
        return None
    return vcg_section(
        material.example, f"A heart vector ({material.example.record_id}), and what augmentation does to it"
    )


def _run_section(material: SweepMaterial) -> Section:
    folded = {"Ranking of all trials": material.ranking, "All settings that the trials share": material.settings}
    return Section(
        title="What was run",
        facts=material.facts,
        preformatted="\n".join(material.tracking),
        folded={title: text for title, text in folded.items() if text},
    )


def best_method(results: SweepResults, metric: str, mode: str) -> Method:
    """The method with the best mean of the sweep's own metric where that is a score, else of its first score."""
    names = results.score_names()
    name, sign = (metric, -1.0 if mode == "min" else 1.0) if metric in names else (names[0], 1.0)

    def worth(method: Method) -> float:
        values = method.scores(name)
        known = values[np.isfinite(values)]
        return sign * float(known.mean()) if known.size else -np.inf

    return max(results.methods, key=worth)
