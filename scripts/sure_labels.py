"""How encoders do where the annotators of PTB-XL were sure, and where they were not.

    python scripts/sure_labels.py EVALUATION [EVALUATION ...] --ptbxl ptbxl_database.csv [...] \\
        --statements scp_statements.csv [--models RUN ... --corpus CORPUS] [--random EVALUATION ...] [--csv FILE]

PTB-XL gives every diagnostic statement a likelihood in percent, 0 where none is known (Wagner et al., Sci Data 7:154,
2020, "SCP-ECG statements"); the labels of the benchmark count a statement whatever it is. A recording is as sure as the
least likely of its diagnostic statements. For each band: recordings, and the macro AUROC of superclasses, with 95 %
intervals over patients, of all encoders asked together (asked_together.py), by linear probes with all labels; with
--models also of the models fine-tuned with all labels, and of both together; with --random of networks with random
weights together.
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
from asked_together import BOTH, MODEL, PROBE, UNTRAINED, Answer, Key
from numpy.typing import NDArray

from beatray.errors import CheckpointError, CorpusError
from beatray.evaluate.intervals import Interval, own_intervals
from beatray.evaluate.results import Decisions, TaskPart

BANDS = (("all", 0.0, 101.0), ("100 %", 100.0, 101.0), ("50 to 99 %", 50.0, 100.0), ("below 50 %", 1.0, 50.0))
"""Likelihoods from and below; a recording whose least sure statement has none (0) is in `all` alone."""
COLUMNS = ("likelihood", "recordings", "asked", "auroc", "low", "high")


def likelihoods(databases: Sequence[Path], statements: Path) -> dict[str, float]:
    """The least likelihood among the diagnostic statements of each recording that has one, by record id."""
    with statements.open(newline="", encoding="utf-8") as file:
        diagnostic = {row[""] for row in csv.DictReader(file) if row["diagnostic_class"]}
    found: dict[str, float] = {}
    for database in databases:
        with database.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                codes = ast.literal_eval(row["scp_codes"])
                sure = [float(value) for code, value in codes.items() if code in diagnostic]
                if sure:
                    found[f"ptbxl/{int(float(row['ecg_id'])):05d}"] = min(sure)
    return found


def asked(answers: Mapping[Key, Sequence[Answer]]) -> dict[str, Decisions]:
    """Whose scores are shown, in order."""
    shown = {}
    for name in (UNTRAINED, PROBE, MODEL, BOTH):
        found = answers.get((name, 1.0), ())
        if found:
            shown[f"{name}, {len(found)}"] = asked_together.together([each.outcome for each in found])
    return shown


def rows(shown: Mapping[str, Decisions], part: TaskPart, sure: NDArray[np.float64]) -> list[dict[str, str]]:
    """A row for each band and each of `shown`; `sure` (n_test,) is the likelihood of each tested recording."""
    assert part.truth is not None
    table = []
    for name, low, below in BANDS:
        here = np.flatnonzero((sure >= low) & (sure < below))
        patients = [part.test_patients[i] for i in here]
        for who, outcome in shown.items():
            tested = Decisions(outcome.scores[here], outcome.thresholds)
            found: Interval = own_intervals([tested], part.truth[here], patients, asked_together.BOOTSTRAPS)["auroc"]
            numbers = (f"{value:.4f}" for value in (found.value, found.low, found.high))
            table.append(dict(zip(COLUMNS, (name, str(len(here)), who, *numbers), strict=True)))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    asked_together.add_inputs(parser)
    parser.add_argument("--ptbxl", nargs="+", type=Path, required=True)
    parser.add_argument("--statements", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    asked_together.check_inputs(parser, given)
    try:
        sure_of = likelihoods(given.ptbxl, given.statements)
        answers, part = asked_together.all_answers(given.evaluations, given.random, given.models, given.corpus)
    except (CheckpointError, CorpusError, OSError, KeyError, ValueError, SyntaxError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    missing = [name for name in part.test_ids if name not in sure_of]
    if missing:
        raise SystemExit(
            f"{len(missing)} of {len(part.test_ids)} tested recordings are in no database, as {missing[0]}"
        )
    sure = np.array([sure_of[name] for name in part.test_ids])
    table = rows(asked(answers), part, sure)
    print("| likelihood | recordings | asked | AUROC | 95 % interval |\n|---|---|---|---|---|")
    for row in table:
        cells = [f"{float(row[key]):.3f}" for key in ("auroc", "low", "high")]
        print(f"| {row['likelihood']} | {row['recordings']} | {row['asked']} | {cells[0]} | {cells[1]} to {cells[2]} |")
    if given.csv is not None:
        asked_together.write(given.csv, COLUMNS, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
