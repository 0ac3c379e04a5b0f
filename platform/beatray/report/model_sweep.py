"""The report of a sweep over labels: the scores of each method on test recordings, by share of the labels.

Contract: everything comes in the `ModelSweepMaterial`; nothing is read from disk. Scores are those that the models'
folders hold; SDs are over the repeats of a method (seeds, splits), so the spread of the test recordings is not in them:
the models' own intervals show that.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.results import percent
from beatray.report.canvas import to_svg
from beatray.report.html import Picture, Section, plain_table, write_report
from beatray.report.sweep_figures import Curve, curves
from beatray.sweep.model_results import ERRORS, NAMES, ModelMethod, ModelResults

DRAWN = 2
"""Scores that are drawn over the share of the labels."""


@dataclass(frozen=True, slots=True)
class ModelSweepMaterial:
    """Everything the report holds."""

    title: str
    what: str  # is learned: "sex (multilabel)"
    results: ModelResults
    facts: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    ranking: str = ""
    tracking: Sequence[str] = ()


def build_model_sweep_report(path: Path, material: ModelSweepMaterial) -> Path:
    """Draw, lay out and write the report; returns its path."""
    lead = [
        f"{len(material.results.methods)} ways from labels to a model of {material.what}, each scored on recordings "
        "that were used neither to train nor to choose it."
    ]
    sections = [_scores_section(material), _gain_section(material.results), _run_section(material)]
    return write_report(path, material.title, lead, [section for section in sections if section is not None])


def table_of(results: ModelResults, score: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a method's mean ± SD over its repeats at each share of the labels."""
    header = ["method", *(f"{percent(fraction)} of the labels" for fraction in results.fractions)]
    lines = [
        [method.name, *(_cell(method, score, fraction) for fraction in results.fractions)] for method in results.methods
    ]
    counts = ["recordings trained on", *(_counts(results, fraction) for fraction in results.fractions)]
    return header, [*lines, counts]


def gains_of(results: ModelResults, score: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines: what pretraining gave, paired by repeat, for each method that has a partner from scratch."""
    header = ["method", *(f"{percent(fraction)} of the labels" for fraction in results.fractions)]
    lines = []
    for method in results.methods:
        partner = results.partner(method)
        if partner is not None:
            lines.append([method.name, *(_gain(method, partner, score, fraction) for fraction in results.fractions)])
    return header, lines


def as_text(results: ModelResults) -> str:
    """The main table for a terminal."""
    header, lines = table_of(results, results.score_names[0])
    widths = [max(len(line[n]) for line in (header, *lines)) for n in range(len(header))]
    padded = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (header, *lines)]
    return "\n".join(line.rstrip() for line in (f"test {NAMES[results.score_names[0]]}", *padded)) + "\n"


def as_markdown(results: ModelResults) -> str:
    """Every score as a table of GitHub-flavoured markdown, gains behind it."""
    parts = []
    for score in results.score_names:
        for title, (header, lines) in (
            (f"Test {NAMES[score]}", table_of(results, score)),
            (f"Better than from random weights, {NAMES[score]}", gains_of(results, score)),
        ):
            if lines:
                rows = ["| " + " | ".join(line) + " |" for line in (header, *lines)]
                parts.append("\n".join([f"{title}:", "", rows[0], "|" + "---|" * len(header), *rows[1:]]))
    return "\n\n".join(parts) + "\n"


def long_csv(results: ModelResults) -> str:
    """Every test score of every trial with its interval over patients: plain numbers, a line each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "trial", "repeat", "fraction", "trained", "tested", "score", "value", "low", "high"])
    for method in results.methods:
        for each in method.trials:
            records = each.description["records"]
            for score in results.score_names:
                found = each.description["scores"]["test"][score]
                values = ["" if found[key] is None else found[key] for key in ("value", "low", "high")]
                about = [method.name, each.trial, each.repeat, each.fraction, records["train"], records["test"]]
                writer.writerow([*about, score, *values])
    return out.getvalue()


def _scores_section(material: ModelSweepMaterial) -> Section:
    results = material.results
    main = results.score_names[0]
    header, lines = table_of(results, main)
    tested = sorted({trial.description["records"]["test"] for method in results.methods for trial in method.trials})
    paragraphs = [
        f"Test {NAMES[main]} ({'less' if main in ERRORS else 'more'} is better), mean ± SD over the repeats of a way, "
        f"on {' or '.join(f'{count:,}' for count in tested)} test recordings. The SD holds what seeds and the patients "
        "drawn for a share change, and nothing of which patients were tested: scores.csv has each model's 95 % "
        "interval over patients."
    ]
    if results.missing:
        paragraphs.append(f"Not in the table, since not finished: {', '.join(results.missing)}.")
    return Section(
        title="Scores by number of labels",
        paragraphs=paragraphs,
        html=plain_table(header, lines),
        pictures=[_picture(results)] if len(results.fractions) > 1 else [],
    )


def _picture(results: ModelResults) -> Picture:
    shown = results.score_names[:DRAWN]
    panels = {
        f"test {NAMES[score]}": {
            method.name: Curve(
                {
                    fraction: values
                    for fraction in results.fractions
                    if (values := _known(method.scores(score, fraction))).size
                }
            )
            for method in results.methods
        }
        for score in shown
    }
    return Picture(
        to_svg(curves(panels, "share of the labelled training patients", percent=True)),
        alt=f"{' and '.join(panels)} over the share of the labels, a line for each of {', '.join(_names(results))}",
        caption="Means over the repeats, bars one SD, each model a dot. Shares of one seed lie in one another and are "
        "the same for all ways.",
    )


def _gain_section(results: ModelResults) -> Section | None:
    main = results.score_names[0]
    header, lines = gains_of(results, main)
    if not lines:
        return None
    return Section(
        title="What pretraining gave",
        paragraphs=[
            f"{NAMES[main]} of the pretrained encoder less that of the same network from random weights, trained "
            f"on the same recordings ({'less' if main in ERRORS else 'more'} is better): the mean over the repeats, "
            "and in how many of them pretraining was better."
        ],
        html=plain_table(header, lines),
    )


def _run_section(material: ModelSweepMaterial) -> Section:
    folded = {"Ranking of all trials": material.ranking, "All settings that the trials share": material.settings}
    return Section(
        title="What was run",
        facts=material.facts,
        preformatted="\n".join(material.tracking),
        folded={title: text for title, text in folded.items() if text},
    )


def _cell(method: ModelMethod, score: str, fraction: float) -> str:
    values = _known(method.scores(score, fraction))
    if not values.size:
        return "-"
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if values.size > 1 else "")


def _gain(method: ModelMethod, partner: ModelMethod, score: str, fraction: float) -> str:
    own, other = method.scores(score, fraction), partner.scores(score, fraction)
    gains = _known({repeat: own[repeat] - other[repeat] for repeat in own if repeat in other})
    if not gains.size:
        return "-"
    better = int(((gains < 0) if score in ERRORS else (gains > 0)).sum())
    return f"{gains.mean():+.3f} ({better} of {gains.size})"


def _counts(results: ModelResults, fraction: float) -> str:
    """How many recordings a share holds: the same for all ways, but for seeds that draw patients with more of them."""
    found = np.concatenate([method.trained(fraction) for method in results.methods])
    low, high = int(found.min()), int(found.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _known(scores: Mapping[str, float]) -> NDArray[np.float64]:
    values = np.array(list(scores.values()), np.float64)
    return values[np.isfinite(values)]


def _names(results: ModelResults) -> list[str]:
    return [method.name for method in results.methods]
