"""One table of an evaluation: the pretrained encoder beside its baselines, with spread and difference.

A row is task, protocol, label fraction and score. Every number is mean +- SD over seeds; the difference is pretrained
minus random, with the interval of `intervals.paired_differences`. Random is the same architecture from random
weights: frozen below decoders and probes, trained end to end (from scratch) in the fine-tuned rows. "features" is the
probe on measured intervals and amplitudes, "permuted" the probe on permuted labels, which belongs at an AUROC of 0.5.
Where something was done to the test recordings, its name stands in place of the labels, below the clean rows.

Contract: text output is at most 120 columns wide; markdown and HTML hold the same cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from beatray.evaluate.intervals import Interval, Known, own_intervals, paired_differences, row_patients
from beatray.evaluate.metrics import SegmentCounts
from beatray.evaluate.notes import TASK_NAMES, TASK_TITLES, notes_of
from beatray.evaluate.results import METRICS, VARIANTS, Decisions, Evaluation, Run, TaskPart
from beatray.evaluate.settings import PROTOCOLS

PROTOCOL_NAMES = {
    ("segment", "linear_probe"): "linear probe",
    ("segment", "frozen_decoder"): "frozen decoder",
    ("classify", "linear_probe"): "linear probe",
    ("classify", "mlp"): "MLP probe",
    ("classify", "knn"): "k-NN (cosine)",
    ("segment", "finetune"): "fine-tuned",
    ("classify", "finetune"): "fine-tuned",
}
METRIC_NAMES = {"f1": "macro F1", "dice": "Dice", "auroc": "AUROC", "auprc": "AUPRC"}
PROTOCOL_ORDER = PROTOCOLS
HEADER = (
    "task", "protocol", "labels", "score", "pretrained", "random", "difference [95 %]", "features", "permuted",
)  # fmt: skip

Cell = tuple[float, float]  # mean and SD


@dataclass(frozen=True, slots=True)
class Row:
    """One line: cells are (mean, SD) over seeds, None where that variant was not run."""

    encoder: str
    task: str
    protocol: str
    fraction: float
    train_records: int
    metric: str
    pretrained: Cell | None
    random: Cell | None
    difference: Interval | None
    features: Cell | None
    permuted_labels: Cell | None
    title: str = ""  # of the task, with its label space
    condition: str = "clean"
    pretrained_interval: Interval | None = None  # of the variant by itself, over test patients and seeds
    random_interval: Interval | None = None
    encoder_features: Cell | None = None  # the encoder's features and the measured ones, read together


@dataclass(frozen=True, slots=True)
class ResultTable:
    """The rows of one encoder after the other, and the sentences that belong under them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def make_table(evaluation: Evaluation) -> ResultTable:
    """All rows, in a fixed order: encoder, task, protocol, fraction, condition, score."""
    runs = evaluation.runs
    encoders = list(dict.fromkeys(run.encoder for run in runs if run.variant == "pretrained")) or [""]
    seen = list(dict.fromkeys(run.condition for run in runs))
    rows = []
    for encoder in encoders:
        architecture = next((r.architecture for r in runs if r.variant == "pretrained" and r.encoder == encoder), None)
        for task, metrics in METRICS.items():
            for protocol in PROTOCOL_ORDER:
                here = [r for r in runs if (r.task, r.protocol) == (task, protocol)]
                for fraction, condition in sorted({(r.fraction, seen.index(r.condition)) for r in here}):
                    chosen = [r for r in here if (r.fraction, r.condition) == (fraction, seen[condition])]
                    variants = _variants(chosen, encoder, architecture)
                    if variants["pretrained"] or variants["random"]:
                        rows += _rows(evaluation, encoder, chosen[0], variants, metrics)
    return ResultTable(tuple(rows), tuple(notes_of(evaluation, rows)))


def as_text(table: ResultTable) -> str:
    """Plain text, at most 120 columns, notes wrapped below."""
    blocks = []
    for encoder in dict.fromkeys(row.encoder for row in table.rows):
        cells = [HEADER, *(cells_of(row) for row in table.rows if row.encoder == encoder)]
        cells = _without_repeats(cells)
        widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        blocks.append("\n".join(([f"encoder: {encoder}"] if encoder else []) + lines))
    return "\n\n".join(blocks) + "\n\n" + "\n".join(_wrap(note, 118) for note in table.notes) + "\n"


def as_markdown(table: ResultTable) -> str:
    """GitHub-flavoured markdown."""
    lines = ["| " + " | ".join(("encoder", *HEADER)) + " |", "|" + "---|" * (len(HEADER) + 1)]
    lines += ["| " + " | ".join((row.encoder or "-", *cells_of(row))) + " |" for row in table.rows]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in table.notes) + "\n"


def as_html(table: ResultTable) -> str:
    """A <table> and a list of notes; the better of pretrained and random is set in <strong>."""
    parts = ["<table class='results'><thead><tr>"]
    parts += [f"<th>{escape(name)}</th>" for name in HEADER] + ["</tr></thead><tbody>"]
    encoder = None
    for row in table.rows:
        if row.encoder != encoder and row.encoder:
            parts.append(f"<tr class='group'><th colspan='{len(HEADER)}'>encoder: {escape(row.encoder)}</th></tr>")
        encoder = row.encoder
        cells = [escape(cell) for cell in cells_of(row)]
        if row.pretrained and row.random:
            better = 4 if row.pretrained[0] >= row.random[0] else 5
            cells[better] = f"<strong>{cells[better]}</strong>"
        parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    parts.append("</tbody></table><ul class='notes'>")
    return "".join([*parts, *(f"<li>{escape(note)}</li>" for note in table.notes), "</ul>"])


def as_rows(table: ResultTable) -> list[dict[str, Any]]:
    """The rows as plain dicts, for table.json."""
    return [asdict(row) for row in table.rows]


def cells_of(row: Row) -> tuple[str, ...]:
    """The text of each column of `HEADER`."""
    difference = "-"
    if row.difference is not None:
        gap = row.difference
        difference = f"{gap.value:+.3f} [{_short(gap.low, '+')}, {_short(gap.high, '+')}]"
    return (
        TASK_NAMES[row.task],
        PROTOCOL_NAMES[row.task, row.protocol],
        f"{100 * row.fraction:g}%, {row.train_records}" if row.condition == "clean" else row.condition,
        METRIC_NAMES[row.metric],
        _cell(row.pretrained),
        _cell(row.random),
        difference,
        _cell(row.features),
        _cell(row.permuted_labels),
    )


def _variants(runs: Iterable[Run], encoder: str, architecture: str | None) -> dict[str, dict[int, Run]]:
    """Runs by variant and seed; the random control is that of the encoder's own architecture, where it is known."""
    variants: dict[str, dict[int, Run]] = {variant: {} for variant in VARIANTS}
    for run in runs:
        other_encoder = run.variant in ("pretrained", "encoder_features") and run.encoder != encoder
        known = bool(architecture and run.architecture)
        other_control = run.variant == "random" and known and run.architecture != architecture
        if not other_encoder and not other_control:
            variants[run.variant][run.seed] = run
    return variants


def _rows(
    evaluation: Evaluation, encoder: str, like: Run, variants: dict[str, dict[int, Run]], metrics: Sequence[str]
) -> list[Row]:
    """The rows of one task, protocol, fraction and condition, those of the run `like`."""
    differences: dict[str, Interval] = {}
    known: Known = {}
    common = sorted(variants["pretrained"].keys() & variants["random"].keys())
    part = evaluation.parts[like.task]
    if common:
        first, second = ([variants[variant][seed].outcome for seed in common] for variant in ("pretrained", "random"))
        bootstraps = evaluation.settings.bootstraps
        differences = paired_differences(first, second, part.truth, _owners(part, first[0]), bootstraps, known)
    own = {}
    for variant in ("pretrained", "random"):
        outcomes = [run.outcome for run in variants[variant].values()]
        if outcomes:
            owners = _owners(part, outcomes[0])
            own[variant] = own_intervals(outcomes, part.truth, owners, evaluation.settings.bootstraps, known)
    trained_on = [run.train_records for variant in ("pretrained", "random") for run in variants[variant].values()]
    return [
        Row(
            encoder=encoder,
            task=like.task,
            protocol=like.protocol,
            fraction=like.fraction,
            condition=like.condition,
            train_records=round(float(np.mean(trained_on))),
            metric=metric,
            difference=differences.get(metric),
            pretrained=_spread(variants["pretrained"], metric),
            random=_spread(variants["random"], metric),
            features=_spread(variants["features"], metric),
            encoder_features=_spread(variants["encoder_features"], metric),
            permuted_labels=_spread(variants["permuted_labels"], metric),
            title=part.title or TASK_TITLES[like.task],
            pretrained_interval=own.get("pretrained", {}).get(metric),
            random_interval=own.get("random", {}).get(metric),
        )
        for metric in metrics
    ]


def _owners(part: TaskPart, outcome: SegmentCounts | Decisions) -> list[str]:
    rows = len(outcome.both) if isinstance(outcome, SegmentCounts) else len(outcome.scores)
    return row_patients(part.test_patients, rows)


def _spread(runs: dict[int, Run], metric: str) -> Cell | None:
    values = [run.metrics[metric] for run in runs.values()]
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    mean, sd = cell
    return f"{mean:.3f}" if np.isnan(sd) else f"{mean:.3f}±{_short(sd)}"


def _short(value: float, sign: str = "") -> str:
    """Three decimals without the zero before the point: .013, +.104."""
    return format(value, f"{sign}.3f").replace("0.", ".", 1)


def _without_repeats(cells: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Blank the first two columns where they repeat the line above."""
    shown = [cells[0]]
    for above, line in pairwise(cells):
        task = "" if line[0] == above[0] else line[0]
        protocol = "" if line[:2] == above[:2] else line[1]
        shown.append((task, protocol, *line[2:]))
    return shown


def _wrap(text: str, width: int) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return "\n  ".join([*lines, line])
