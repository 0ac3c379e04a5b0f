"""Several frozen encoders asked together: the mean of the log odds that their probes give.

    python scripts/probe_average.py EVALUATION [EVALUATION ...] [--csv FILE]

An EVALUATION is a folder with the results.json of `beatray evaluate` (or of a sweep's trial), each of one encoder, all
on the same recordings and labels. For every probe and label fraction that all of them have, one line: the encoder that
validation prefers, and all together, in macro AUROC of the test part with 95 % intervals over patients. Nothing is
chosen by a test score: every encoder that is given counts alike (log odds averaged; Satopaa et al., Int. J.
Forecasting 30:344, 2014).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.intervals import own_intervals, paired_differences
from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, Run, TaskPart, evaluation_of

SURE = 1e-6
"""No probability counts as surer than this."""
BOOTSTRAPS = 1000
COLUMNS = ("probe", "labels", "encoders", "best", "best_auroc", "auroc", "low", "high", "gain", "gain_low", "gain_high")


def read(folder: Path) -> Evaluation:
    """The evaluation in a folder. Raises SystemExit with one line."""
    try:
        return evaluation_of(json.loads((folder / "results.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{folder} holds no results.json of beatray evaluate ({error})") from error


def probes(evaluation: Evaluation) -> dict[tuple[str, float], Run]:
    """The plain runs of the classification by probe and fraction, of the first seed."""
    found: dict[tuple[str, float], Run] = {}
    for run in evaluation.runs:
        if (run.task, run.variant, run.condition) == ("classify", "pretrained", "clean") and run.protocol != "finetune":
            found.setdefault((run.protocol, run.fraction), run)
    return found


def together(outcomes: Sequence[Decisions]) -> Decisions:
    """The mean of the log odds, as probabilities."""
    scores = [np.clip(each.scores, SURE, 1 - SURE) for each in outcomes]
    odds: NDArray[np.float64] = np.mean([np.log(each / (1 - each)) for each in scores], axis=0)
    return Decisions(1 / (1 + np.exp(-odds)), np.full(odds.shape[1], 0.5))


def rows(folders: Sequence[Path]) -> list[dict[str, str]]:
    """A row for each probe and fraction. Raises SystemExit where the evaluations are not of the same recordings."""
    evaluations = [read(folder) for folder in folders]
    parts = [each.parts.get("classify") for each in evaluations]
    first = parts[0]
    for folder, part in zip(folders, parts, strict=True):
        if first is None or part is None or part.truth is None or first.truth is None or not _same(first, part):
            raise SystemExit(f"{folder} was not tested on the recordings and classes of {folders[0]}")
    assert first is not None
    found = [probes(each) for each in evaluations]
    table = []
    for key in sorted(set.intersection(*(set(each) for each in found))):
        runs = [each[key] for each in found]
        of_each = [run.outcome for run in runs if isinstance(run.outcome, Decisions)]
        all_of_them = together(of_each)
        best = max(range(len(runs)), key=lambda k: runs[k].metrics.get(VALIDATION_AUROC, float("-inf")))
        own = own_intervals([all_of_them], first.truth, first.test_patients, BOOTSTRAPS)["auroc"]
        one = own_intervals([of_each[best]], first.truth, first.test_patients, BOOTSTRAPS)["auroc"]
        gain = paired_differences([all_of_them], [of_each[best]], first.truth, first.test_patients, BOOTSTRAPS)["auroc"]
        values = (own.value, own.low, own.high, gain.value, gain.low, gain.high)
        name = folders[best].parent.name if folders[best].name == "evaluation" else folders[best].name
        cells = (key[0], f"{key[1]:g}", str(len(runs)), name, f"{one.value:.4f}", *(f"{value:.4f}" for value in values))
        table.append(dict(zip(COLUMNS, cells, strict=True)))
    return table


def _same(one: TaskPart, other: TaskPart) -> bool:
    return one.test_ids == other.test_ids and one.classes == other.classes and np.array_equal(one.truth, other.truth)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("evaluations", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    if len(given.evaluations) < 2:
        parser.error("give two evaluations or more")
    table = rows(given.evaluations)
    print("| probe | labels | the one that validation prefers | AUROC | all together | 95 % interval | gain |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        print(
            f"| {row['probe']} | {100 * float(row['labels']):g} % | `{row['best']}` | {float(row['best_auroc']):.3f} | "
            f"{float(row['auroc']):.3f} | {float(row['low']):.3f} to {float(row['high']):.3f} | "
            f"{float(row['gain']):+.3f} ({float(row['gain_low']):+.3f} to {float(row['gain_high']):+.3f}) |"
        )
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
