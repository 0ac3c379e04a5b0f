"""The two tables behind the table of results: the classification class by class, the segmentation wave by wave.

One row for each class of each variant, protocol and label fraction: how many recordings of it there were to train on
and to test on, AUROC, AUPRC and F1 as means over seeds with the interval over test patients and seeds
(`intervals.class_intervals`), and the threshold that was chosen without the test part. A class that no score covers
keeps its row, with NaN.

One row for each of P, QRS and T of each variant, protocol, label fraction and condition: F1 of all samples together,
mean Dice of the records, sensitivity and PPV of waves at 150 ms, and the error of onsets and offsets (mean and SD over
the waves found, as means over seeds), as `waves` defines them. Intervals are over test patients and seeds.

Contract: rows are in the order of the runs; those of the classes are of `clean` recordings only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beatray.evaluate.intervals import Interval, class_intervals, row_patients, wave_intervals
from beatray.evaluate.recordings import positives
from beatray.evaluate.results import VARIANTS, Decisions, Evaluation, Run
from beatray.record import WAVE_KINDS

CLASS_METRICS = ("auroc", "auprc", "f1")
CLASS_HEADER = (
    "protocol", "labels", "variant", "class", "train", "test", "AUROC [95 %]", "AUPRC [95 %]", "F1 [95 %]", "cut",
)  # fmt: skip
WAVE_HEADER = (
    "protocol", "labels", "recordings", "variant", "wave", "F1", "Dice", "sensitivity [95 %]", "PPV [95 %]",
    "onset ms", "offset ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of one variant: `scores` by name, `train_positives` and `threshold` are means over seeds."""

    protocol: str
    fraction: float
    variant: str
    encoder: str
    name: str
    train_positives: float
    test_positives: int
    scores: dict[str, Interval]
    threshold: float


def class_rows(evaluation: Evaluation) -> list[ClassRow]:
    """All rows of the classification; empty without one."""
    part = evaluation.parts.get("classify")
    if part is None or part.truth is None:
        return []
    groups: dict[tuple[str, float, str, str, str], list[Run]] = {}
    for run in evaluation.runs:
        if run.task == "classify" and run.variant != "permuted_labels" and run.condition == "clean":
            key = (run.protocol, run.fraction, run.variant, run.encoder, run.architecture)
            groups.setdefault(key, []).append(run)
    names = part.classes or tuple(f"class {k}" for k in range(part.truth.shape[1]))
    test_positives = positives(part.test_ids, part.truth)
    rows = []
    for (protocol, fraction, variant, encoder, _), runs in groups.items():
        outcomes = [run.outcome for run in runs if isinstance(run.outcome, Decisions)]
        found = class_intervals(outcomes, part.truth, part.test_patients, evaluation.settings.bootstraps)
        thresholds = np.mean([outcome.thresholds for outcome in outcomes], axis=0)
        trained = np.mean([run.train_positives or part.train_positives for run in runs], axis=0)
        for k, name in enumerate(names):
            scores = {metric: found[metric][k] for metric in CLASS_METRICS}
            count = float(trained[k]) if np.ndim(trained) else float("nan")
            rows.append(
                ClassRow(
                    protocol,
                    fraction,
                    variant,
                    encoder,
                    name,
                    count,
                    test_positives[k],
                    scores,
                    float(thresholds[k]),
                )
            )
    return rows


def classes_markdown(rows: Sequence[ClassRow]) -> str:
    """GitHub-flavoured markdown."""
    lines = []
    for row in rows:
        cells = [row.protocol, f"{100 * row.fraction:g}%", _shown(row, rows), row.name]
        cells += [f"{row.train_positives:.0f}", str(row.test_positives)]
        cells += [interval_text(row.scores[metric]) for metric in CLASS_METRICS] + [f"{row.threshold:.3f}"]
        lines.append(cells)
    note = "train, test: recordings of the class. cut: the threshold of F1, chosen without the test part."
    return markdown_table(CLASS_HEADER, lines, note)


@dataclass(frozen=True, slots=True)
class WaveRow:
    """One wave of one variant: `scores` holds sensitivity, ppv, onset_ms, onset_sd_ms, offset_ms, offset_sd_ms."""

    protocol: str
    fraction: float
    condition: str
    variant: str
    encoder: str
    wave: str
    f1: float
    dice: float
    scores: dict[str, Interval]


def wave_rows(evaluation: Evaluation) -> list[WaveRow]:
    """All rows of the segmentation; empty without one."""
    groups: dict[tuple[str, float, str, str, str, str], list[Run]] = {}
    for run in evaluation.runs:
        if run.waves is not None:
            key = (run.protocol, run.fraction, run.condition, run.variant, run.encoder, run.architecture)
            groups.setdefault(key, []).append(run)
    rows = []
    for (protocol, fraction, condition, variant, encoder, _), runs in groups.items():
        counts = [run.waves for run in runs if run.waves is not None]
        patients = row_patients(evaluation.parts["segment"].test_patients, len(counts[0].hits))
        found = wave_intervals(counts, patients, evaluation.settings.bootstraps)
        for k, kind in enumerate(WAVE_KINDS):
            f1, dice = (float(np.mean([r.metrics[f"{name}_{kind.lower()}"] for r in runs])) for name in ("f1", "dice"))
            scores = {name: intervals[k] for name, intervals in found.items()}
            rows.append(WaveRow(protocol, fraction, condition, variant, encoder, kind, f1, dice, scores))
    return rows


def waves_markdown(rows: Sequence[WaveRow]) -> str:
    """GitHub-flavoured markdown."""
    lines = []
    for row in rows:
        cells = [row.protocol, f"{100 * row.fraction:g}%", row.condition, _shown(row, rows), row.wave]
        cells += [f"{row.f1:.3f}", f"{row.dice:.3f}"]
        for name in ("sensitivity", "ppv"):
            score = row.scores[name]
            cells.append(f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]")
        for end in ("onset", "offset"):
            cells.append(f"{row.scores[f'{end}_ms'].value:+.1f} ± {row.scores[f'{end}_sd_ms'].value:.1f}")
        lines.append(cells)
    note = (
        "A wave is found when both its ends lie within 150 ms of the marked ones; runs below 20 ms are no waves. "
        "Errors are predicted - marked, mean ± SD over the waves found."
    )
    return markdown_table(WAVE_HEADER, lines, note)


def _shown(row: ClassRow | WaveRow, rows: Sequence[ClassRow] | Sequence[WaveRow]) -> str:
    """What a head read, and of which encoder where there are several."""
    encoders = {each.encoder for each in rows if each.variant == "pretrained"}
    shown = VARIANTS[row.variant]
    return f"{shown} ({row.encoder})" if len(encoders) > 1 and row.encoder in encoders else shown


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A table in GitHub's markdown, and a sentence below it."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |" for cells in rows]
    return "\n".join(lines) + f"\n\n{note}\n"


def interval_text(score: Interval) -> str:
    """A score with its interval, "-" where it is not known."""
    if np.isnan(score.value):
        return "-"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
