"""How encoders do where the annotators of PTB-XL were sure, and where they were not.

    python scripts/sure_labels.py EVALUATION [EVALUATION ...] --ptbxl ptbxl_database.csv [...]
        [--random EVALUATION ...] [--models RUN ... --corpus CORPUS] [--csv FILE]

PTB-XL gives every diagnostic statement a likelihood in percent, 0 where none is known (Wagner et al., Sci Data 7:154,
2020); the labels of the benchmark count a statement whatever it is. A recording is as sure as the least likely of its
diagnostic statements. For each band, of all that asked_together.py asks, with all labels: recordings, and the macro
AUROC of the superclasses with 95 % intervals over patients, over the classes that have both answers in the band.
"""

from __future__ import annotations

import argparse
import ast
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import asked_together
import numpy as np
from asked_together import BOTH, MODELS, PROBE, UNTRAINED, Answer, Key
from numpy.typing import NDArray

from beatray.errors import CheckpointError, CorpusError
from beatray.evaluate.intervals import own_intervals
from beatray.evaluate.label_spaces import label_space
from beatray.evaluate.metrics import macro_auroc
from beatray.evaluate.results import Decisions, TaskPart

BANDS = (("all", 0.0, 101.0), ("100 %", 100.0, 101.0), ("50 to 99 %", 50.0, 100.0), ("below 50 %", 1.0, 50.0))
"""Likelihoods from and below; a recording whose least sure statement has none (0) is in `all` alone."""
COLUMNS = ("likelihood", "recordings", "classes", "asked", "auroc", "low", "high")


def likelihoods(databases: Sequence[Path]) -> dict[str, float]:
    """The least likelihood among the diagnostic statements of each recording that has one, by record id.

    Raises SystemExit for a file that is not PTB-XL's ptbxl_database.csv.
    """
    diagnostic = label_space("superdiagnostic", (), 1).class_of_code
    found: dict[str, float] = {}
    for database in databases:
        try:
            with database.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    codes = ast.literal_eval(row["scp_codes"])
                    sure = [float(value) for code, value in codes.items() if code in diagnostic]
                    if sure:
                        found[f"ptbxl/{int(float(row['ecg_id'])):05d}"] = min(sure)
        except (OSError, KeyError, TypeError, AttributeError, ValueError, SyntaxError) as error:
            raise SystemExit(f"{database} is not PTB-XL's ptbxl_database.csv ({error!r})") from error
    return found


def asked(answers: Mapping[Key, Sequence[Answer]]) -> dict[str, Decisions]:
    """Whose scores are shown, in order."""
    shown = {}
    for name in (UNTRAINED, PROBE, MODELS, BOTH):
        found = answers.get((name, 1.0), ())
        if found:
            shown[f"{name}, {len(found)}"] = asked_together.together([each.outcome for each in found])
    return shown


def rows(shown: Mapping[str, Decisions], part: TaskPart, sure: NDArray[np.float64]) -> list[dict[str, str]]:
    """A row for each band that has recordings and each of `shown`; `sure` (n_test,) are the likelihoods."""
    assert part.truth is not None
    table = []
    for name, low, below in BANDS:
        here = np.flatnonzero((sure >= low) & (sure < below))
        if not here.size:
            continue
        patients = [part.test_patients[i] for i in here]
        for who, outcome in shown.items():
            tested = Decisions(outcome.scores[here], outcome.thresholds)
            found = own_intervals([tested], part.truth[here], patients, asked_together.BOOTSTRAPS)["auroc"]
            counted = macro_auroc(part.truth[here], tested.scores).counted
            numbers = (f"{value:.6g}" for value in (found.value, found.low, found.high))
            table.append(dict(zip(COLUMNS, (name, str(len(here)), str(counted), who, *numbers), strict=True)))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; keep it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    asked_together.add_inputs(parser)
    parser.add_argument("--ptbxl", nargs="+", type=Path, required=True, metavar="DATABASE")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    asked_together.check_inputs(parser, given)
    sure_of = likelihoods(given.ptbxl)
    try:
        answers, part = asked_together.all_answers(given.evaluations, given.random, given.models, given.corpus)
    except (CheckpointError, CorpusError) as error:
        raise SystemExit(str(error)) from error
    if part.classes != label_space("superdiagnostic", (), 1).classes:
        raise SystemExit(f"the evaluations are of {', '.join(part.classes)}, not of PTB-XL's superclasses")
    missing = [name for name in part.test_ids if name not in sure_of]
    if missing:
        raise SystemExit(
            f"{len(missing)} of {len(part.test_ids)} recordings have no diagnostic statement in the databases that "
            f"are given, as {missing[0]}"
        )
    table = rows(asked(answers), part, np.array([sure_of[name] for name in part.test_ids]))
    if given.csv is not None:
        asked_together.write(given.csv, COLUMNS, table)
    print("| likelihood | recordings | classes | asked | AUROC | 95 % interval |\n|---|---|---|---|---|---|")
    for row in table:
        value, low, high = (f"{float(row[key]):.3f}" for key in ("auroc", "low", "high"))
        begin = " | ".join(row[key] for key in COLUMNS[:4])
        print(f"| {begin} | {value} | {low} to {high} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
