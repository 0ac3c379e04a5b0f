"""The report of one pretraining run and its evaluation, section by section.

Why a module of its own: `html` knows pages, `pictures`, `ecg` and `loops` know figures; this one knows what a reader
wants to know and in which order: the scores of the encoder beside its baselines, what was run, whether it learned,
what the recordings and their augmented views look like, and where the rest is kept.

Contract: a part that is absent from the `Material` leaves its section out. Nothing is read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.encoders import prepared
from beatray.evaluate.groups import code_rows, group_rows
from beatray.evaluate.labels import wave_mask
from beatray.evaluate.metrics import SegmentCounts, record_dice
from beatray.evaluate.notes import TASK_TITLES
from beatray.evaluate.results import Evaluation, percent
from beatray.evaluate.table import ResultTable, as_html, as_text, make_table
from beatray.objectives.objective import Curve
from beatray.record import LEADS
from beatray.report import ecg, loops, pictures
from beatray.report.canvas import to_png, to_svg
from beatray.report.group_scores import group_sections
from beatray.report.hard_recordings import Hard, hard_section
from beatray.report.html import Picture, Section, write_report
from beatray.report.learning import learning_pictures

if TYPE_CHECKING:
    from beatray.corpus.reader import Rows

SHOWN_LEAD = "II"


@dataclass(frozen=True, slots=True)
class Example:
    """One recording to show: millivolts (12, n) at 500 Hz, R-peaks, beat windows (k, 2), its VCG and views of it.

    `vcg` is (3, m) of the stretch to draw; `views` are (name, (3, m)) of the same stretch after augmentation.
    """

    record_id: str
    x_mv: NDArray[np.float32]
    r_peaks: NDArray[np.int32]
    beat_boxes: NDArray[np.float32]
    vcg: NDArray[np.float32] | None = None
    views: Sequence[tuple[str, NDArray[np.float32]]] = ()
    views_text: str = ""


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a report may hold: `metrics` are the lines of a run's metrics.jsonl, `licences` one text each."""

    title: str
    lead: Sequence[str] = ()
    run: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    corpus: Mapping[str, object] = field(default_factory=dict)
    licences: Sequence[str] = ()
    metrics: Sequence[Mapping[str, object]] = ()
    curves: Sequence[Curve] = ()  # that the method asks for
    similarities: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    example: Example | None = None
    evaluation: Evaluation | None = None
    rows: Rows | None = None  # the rows the evaluation was run on, for the pictures of its predictions
    hard: Sequence[Hard] = ()
    tracking: Sequence[str] = ()
    footer: str = ""


def build_report(path: Path, material: Material) -> Path:
    """Draw, lay out and write the report; returns its path."""
    evaluation = material.evaluation
    table = make_table(evaluation) if evaluation is not None else None
    candidates = [
        _result_section(table) if table is not None else None,
        _run_section(material),
        _curve_section(material),
        _example_section(material.example) if material.example is not None else None,
        vcg_section(material.example) if material.example is not None else None,
        _segmentation_section(evaluation, material.rows) if evaluation and material.rows is not None else None,
        *error_sections(evaluation, material.rows, material.hard),
        _more_section(material),
    ]
    sections = [section for section in candidates if section is not None]
    return write_report(path, material.title, material.lead, sections, material.footer)


def error_sections(evaluation: Evaluation | None, rows: Rows | None, hard: Sequence[Hard]) -> list[Section]:
    """For whom, for which codes and on which recordings the encoder is worse; none without the rows."""
    if evaluation is None or rows is None:
        return []
    titles = {task: part.title or TASK_TITLES[task] for task, part in evaluation.parts.items()}
    found = group_sections(group_rows(evaluation, rows), code_rows(evaluation, rows), titles)
    section = hard_section(hard, "the pretrained encoder")
    return [*found, section] if section is not None else found


def overlays(evaluation: Evaluation, rows: Rows) -> list[ecg.Overlay]:
    """Best, median and worst test recording of the run that kept its predictions; empty without one."""
    run = next((r for r in evaluation.runs if r.predictions is not None), None)
    if run is None or run.predictions is None or not isinstance(run.outcome, SegmentCounts):
        return []
    test_ids = evaluation.parts["segment"].test_ids
    return overlays_of(run.predictions, run.outcome, test_ids, rows, evaluation.settings.min_leads)


def overlays_of(
    predictions: NDArray[np.int8], counts: SegmentCounts, test_ids: Sequence[str], rows: Rows, min_leads: int
) -> list[ecg.Overlay]:
    """Best, median and worst recording by Dice: predictions (n, 5000) and counts of the test recordings, in order."""
    dice = record_dice(counts)
    position_of = {record_id: position for position, record_id in enumerate(rows.record_id)}
    shown = []
    for name, test_position in ecg.best_median_worst(dice):
        position = position_of[test_ids[test_position]]
        x_mv = prepared(rows.signal_uv[position : position + 1], rows.n_samples[position : position + 1])[0]
        shown.append(
            ecg.Overlay(
                title=f"{name}: {test_ids[test_position]}, Dice {dice[test_position]:.3f}",
                lead_mv=x_mv[LEADS.index(SHOWN_LEAD)],
                truth=wave_mask(rows.waves[position], min_leads=min_leads),
                predicted=predictions[test_position],
            )
        )
    return shown


def _result_section(table: ResultTable) -> Section:
    return Section(
        title="Scores of the encoder",
        paragraphs=[table.notes[0]] if table.notes else [],
        html=as_html(ResultTable(table.rows, table.notes[1:])),
        pictures=[
            Picture(
                to_svg(pictures.comparison(table.rows)),
                alt="Scores of the pretrained encoder, random weights and measured features, per protocol",
                caption="Means over seeds; bars are one SD over seeds. Whether a difference outlasts the choice of "
                "test recordings is in the intervals of the table.",
            )
        ],
        folded={"The same table as plain text": as_text(table)},
    )


def _run_section(material: Material) -> Section | None:
    facts = {**material.run, **({"corpus": material.corpus} if material.corpus else {})}
    if not facts and not material.settings and not material.licences:
        return None
    return Section(
        title="What was run",
        facts=facts,
        folded={"All settings": material.settings} if material.settings else None,
        small_print=material.licences,
    )


def _curve_section(material: Material) -> Section | None:
    figures = learning_pictures(material.metrics, material.curves)
    if material.similarities:
        figures.append(
            Picture(
                to_svg(pictures.histograms(material.similarities, "value")),
                alt="Histograms of " + ", ".join(material.similarities),
                caption="Similarities between recordings of one batch, and the soft targets made of them.",
            )
        )
    return Section(title="How it learned", pictures=figures) if figures else None


def _example_section(example: Example) -> Section:
    strip = ecg.twelve_lead_strip(example.x_mv, example.r_peaks, example.beat_boxes, example.record_id)
    return Section(
        title="A recording",
        pictures=[
            Picture(
                to_png(strip, dpi=170),
                alt=f"12-lead ECG strip of {example.record_id} with {len(example.r_peaks)} detected R-peaks",
                caption="Each lead for 2.5 s, lead II for 10 s below. Triangles are the R-peaks found"
                + (", shaded the windows that are contrasted as single beats." if len(example.beat_boxes) else "."),
            )
        ],
    )


def vcg_section(example: Example, title: str | None = None) -> Section | None:
    """The loops of the recording's heart vector and of its views; None without a vector."""
    if example.vcg is None:
        return None
    names = ", ".join(name for name, _ in example.views) or "no views"
    usual = "Its heart vector, and what augmentation does to it" if example.views else "Its heart vector"
    return Section(
        title=title or usual,
        pictures=[
            Picture(
                to_svg(loops.vcg_loops(example.vcg, example.views)),
                alt=f"Vectorcardiogram loops of {example.record_id} in three planes: original, {names}",
                caption=" ".join(
                    ["The 12 leads as one rotating vector.", *([example.views_text] if example.views else [])]
                ),
            )
        ],
    )


def _segmentation_section(evaluation: Evaluation, rows: Rows) -> Section | None:
    settings = evaluation.settings
    return segmentation_section(overlays(evaluation, rows), settings.min_leads, max(settings.segment_fractions))


def segmentation_section(shown: Sequence[ecg.Overlay], min_leads: int, fraction: float) -> Section | None:
    """Overlays of truth and of what was predicted with this share of the labels; None without any."""
    if not shown:
        return None
    return Section(
        title="Waves found in recordings never trained on",
        pictures=[
            Picture(
                to_png(ecg.segmentation(shown, SHOWN_LEAD)),
                alt="ECG with true and predicted P, QRS and T waves: " + "; ".join(each.title for each in shown),
                caption=f"Frozen encoder, light decoder, {percent(fraction)} of the training labels, first seed. The "
                f"truth merges the marks of 12 leads (a wave counts where {min_leads} leads agree), so it need not fit "
                f"lead {SHOWN_LEAD} to the sample.",
            )
        ],
    )


def _more_section(material: Material) -> Section | None:
    if not material.tracking:
        return None
    return Section(title="Where the rest is kept", preformatted="\n".join(material.tracking))
