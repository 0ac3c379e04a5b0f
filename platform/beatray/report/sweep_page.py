"""The report of a sweep, section by section: the table beside the paper's, what holds of it, and what stands behind it.

Contract: everything comes in the `SweepMaterial`; a part that is absent leaves its section out. Nothing is read from
disk.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from beatray.evaluate.names import parts_of
from beatray.report.build import error_sections, segmentation_section
from beatray.report.html import Section, write_report
from beatray.report.sweep_conditions import few_labels_section, robustness_sections
from beatray.report.sweep_encoder import classes_section, embedding_section, heart_section
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_methods import anchors, cost_section, method_sections, papers
from beatray.report.sweep_scores import labels_section, number_sections, scatter_section
from beatray.report.sweep_table import CONTROL_NAMES, GAIN, SweepTable, Verdict, shown, task_title, verdicts
from beatray.report.sweep_table_forms import as_html

READ_BY = {
    "linear_probe": "a linear probe",
    "frozen_decoder": "a frozen decoder",
    "mlp": "an MLP probe",
    "knn": "k-NN (cosine)",
    "finetune": "fine-tuning",
}
READ_FOR = {"classify": "for the classes", "segment": "for P, QRS and T, macro F1 of samples 500 to 4499"}


def build_sweep_report(path: Path, material: SweepMaterial) -> Path:
    """Draw, lay out and write the report; returns its path."""
    candidates = [
        _table_section(material),
        _claims_section(material.table),
        *number_sections(material),
        cost_section(material),
        few_labels_section(material) if material.compares_methods else labels_section(material),
        *robustness_sections(material),
        scatter_section(material),
        classes_section(material.best),
        *error_sections(material.evaluation, material.rows, material.hard),
        segmentation_section(material.overlays, material.min_leads, material.segment_fraction),
        embedding_section(material),
        heart_section(material),
        _run_section(material),
        *method_sections(material),
    ]
    count = len(material.results.methods)
    ways = f"{count} ways" if count > 1 else "One way"
    lead = [
        f"{ways} to pretrain an encoder for 12-lead ECGs without labels, {'each ' if count > 1 else ''}tried on "
        f"recordings it never saw{_beside(material)}."
    ]
    return write_report(path, material.title, lead, [section for section in candidates if section is not None])


def _beside(material: SweepMaterial) -> str:
    """The controls that the table holds, as the end of a sentence; empty without any."""
    names = [line.name for line in material.table.controls]
    scratch = any(name.endswith("finetune") for name in _protocols(material))
    random = "the same encoder with random weights"
    texts = {
        CONTROL_NAMES["random"]: random + " (fine-tuned, that is training from scratch)" * scratch,
        CONTROL_NAMES["features"]: "hand-made features",
    }
    found = [f"beside {text}" for of, text in texts.items() if any(name.startswith(of) for name in names)]
    return f", {' and '.join(found)}" if found else ""


def _how_tested(material: SweepMaterial) -> str:
    """What reads the encoder in the columns of each task, a sentence for each."""
    sentences = []
    for task in material.results.tasks:
        found = {parts_of(column.score)[1] for column in material.table.columns if parts_of(column.score)[0] == task}
        if found:
            readers = " and ".join(name for protocol, name in READ_BY.items() if protocol in found)
            sentences.append(f"{task_title(material.results, task)}: {readers} {READ_FOR[task]}.")
    return " ".join(sentences)


def _table_section(material: SweepMaterial) -> Section:
    table = material.table
    counts = {len(method.trials) for method in material.results.methods}
    trials, uneven = max(counts), len(counts) > 1
    trials_text = f"{'up to ' if uneven else ''}{trials} trial{'s' if trials > 1 else ''}"
    paragraphs = [
        f"Mean ± SD over {trials_text} of each method, the encoder frozen unless a column says otherwise. "
        + _how_tested(material)
    ]
    if len(table.lines) > 1:
        paragraphs.append("Bold is the highest mean of the methods in a column; it is no test.")
    if material.compares_methods:
        paragraphs.append(
            "The best first, by the score that the sweep ranks by; a name leads to how that method learned. Random "
            "weights stand once for each network"
            + (
                ": the gain over those of a method's own network is what its pretraining gave."
                if any(column.variant == GAIN for column in table.columns)
                else "."
            )
        )
    if table.of_paper:
        paragraphs.append(
            "Beside the paper's rows stand its own figures (other data, encoder and labels: only directions can be "
            "compared) and whether our difference from row 1 has the paper's sign in every trial (same), the other "
            "sign in every trial (opposite), or neither (mixed). No mark is a test."
        )
    missing = [f"Not in the table, since not finished or not evaluated: {', '.join(material.results.missing)}."]
    return Section(
        title="Scores of each method",
        paragraphs=[*paragraphs, *(missing if material.results.missing else [])],
        html=as_html(table, anchors(material)),
    )


def _protocols(material: SweepMaterial) -> set[str]:
    return {run["protocol"] for method in material.results.methods for t in method.trials for run in t.results["runs"]}


def _claims_section(table: SweepTable) -> Section | None:
    found = verdicts(table)
    if not found:
        return None
    head = ("the paper's finding", "rows", "score", "paper", "here", "direction")
    rows = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _claim_cells(verdict))}</tr>" for verdict in found]
    html = (
        f"<table class='results'><thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    counts = {mark: sum(verdict.mark == mark for verdict in found) for mark in ("same", "mixed", "opposite")}
    counted = ", ".join(f"{count} {mark}" for mark, count in counts.items())
    return Section(
        title="Findings of the paper, and those here", paragraphs=[f"Of {len(found)}: {counted}."], html=html
    )


def _claim_cells(verdict: Verdict) -> tuple[str, ...]:
    here = f"{'+' if verdict.measured.mean() >= 0 else ''}{shown(verdict.measured)}"
    rows = f"{verdict.rows[0]} over {verdict.rows[1]}"
    return verdict.text, rows, verdict.score, f"{verdict.paper:+.3f}", here, verdict.mark


def _run_section(material: SweepMaterial) -> Section:
    folded = {"Ranking of all trials": material.ranking, "All settings that the trials share": material.settings}
    return Section(
        title="What was run",
        # of a sweep over methods the page of each names its own
        facts={**material.facts, **({} if material.compares_methods else {"papers": "; ".join(papers(material))})},
        preformatted="\n".join(material.tracking),
        folded={title: text for title, text in folded.items() if text},
    )
