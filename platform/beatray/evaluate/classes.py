"""The classification class by class: what a macro score is the mean of.

One row for each class of each arm, protocol and label fraction: how many recordings of it there were to train on and
to test on, AUROC, AUPRC and F1 as means over seeds with the interval over test patients and seeds
(`intervals.class_intervals`), and the threshold that was chosen without the test part. A class that no score covers
keeps its row, with NaN.

Contract: rows are in the order of the table; `clean` recordings only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from beatray.evaluate.intervals import Interval, class_intervals
from beatray.evaluate.results import Decisions, Evaluation, Run

CLASS_METRICS = ("auroc", "auprc", "f1")
HEADER = ("protocol", "labels", "arm", "class", "train", "test", "AUROC [95 %]", "AUPRC [95 %]", "F1 [95 %]", "cut")


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of one arm: `scores` by name, `train_positives` and `threshold` are means over seeds."""

    protocol: str
    fraction: float
    arm: str
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
        if run.task == "classify" and run.arm != "shuffled" and run.condition == "clean":
            key = (run.protocol, run.fraction, run.arm, run.encoder, run.architecture)
            groups.setdefault(key, []).append(run)
    names = part.classes or tuple(f"class {k}" for k in range(part.truth.shape[1]))
    test_positives = part.truth.sum(axis=0)
    rows = []
    for (protocol, fraction, arm, encoder, _), runs in groups.items():
        outcomes = [run.outcome for run in runs if isinstance(run.outcome, Decisions)]
        found = class_intervals(outcomes, part.truth, part.test_patients, evaluation.settings.bootstraps)
        thresholds = np.mean([outcome.thresholds for outcome in outcomes], axis=0)
        positives = np.mean([run.train_positives or part.train_positives for run in runs], axis=0)
        for k, name in enumerate(names):
            scores = {metric: found[metric][k] for metric in CLASS_METRICS}
            count = float(positives[k]) if np.ndim(positives) else float("nan")
            rows.append(
                ClassRow(
                    protocol, fraction, arm, encoder, name, count, int(test_positives[k]), scores, float(thresholds[k])
                )
            )
    return rows


def as_markdown(rows: Sequence[ClassRow]) -> str:
    """GitHub-flavoured markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in rows:
        cells = [row.protocol, f"{100 * row.fraction:g}%", row.encoder, row.name.replace("|", "/")]
        cells += [f"{row.train_positives:.0f}", str(row.test_positives)]
        cells += [_cell(row.scores[metric]) for metric in CLASS_METRICS] + [f"{row.threshold:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    note = "train, test: recordings of the class. cut: the threshold of F1, chosen without the test part."
    return "\n".join(lines) + f"\n\n{note}\n"


def as_rows(rows: Sequence[ClassRow]) -> list[dict[str, Any]]:
    """The rows as plain dicts."""
    return [asdict(row) for row in rows]


def _cell(score: Interval) -> str:
    if np.isnan(score.value):
        return "-"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
