"""Several encoders asked together: the mean of the log odds that their probes, and models fine-tuned from them, give.

    python scripts/asked_together.py EVALUATION [EVALUATION ...] [--random EVALUATION ...]
        [--models RUN ... --corpus CORPUS] [--csv FILE] [--each FILE]

An EVALUATION is a folder with the results.json of `beatray evaluate` (or of a sweep's trial), each of one encoder, all
on the same recordings and labels; one behind --random is of a network with random weights. A RUN is one of `beatray
finetune` with the same labels; its model answers the test recordings of the evaluations, read from CORPUS. For every
probe and label fraction that all evaluations have, for the models of each fraction, and for linear probes and models of
a fraction together, one line: what validation prefers, and all together, in macro AUROC of the test part with 95 %
intervals over patients. Nothing is chosen by a test score: all that is given counts alike (log odds averaged; Satopaa
et al., Int. J. Forecasting 30:344, 2014).

`--each` writes a line for each model: its own scores, as `beatray finetune` measured them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.corpus.reader import Rows, open_corpus
from beatray.errors import CheckpointError, CorpusError
from beatray.evaluate.intervals import own_intervals, paired_differences
from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, TaskPart, evaluation_of
from beatray.infer.model import EcgModel

SURE = 1e-6
"""No probability counts as surer than this."""
BOOTSTRAPS = 1000
PROBE, MODEL, UNTRAINED = "linear_probe", "finetune", "random weights"
BOTH = f"{PROBE}+{MODEL}"
COLUMNS = ("probe", "labels", "encoders", "best", "best_auroc", "auroc", "low", "high", "gain", "gain_low", "gain_high")
EACH = ("method", "labels", "auroc", "low", "high", "f1", "validation_auroc", "train_records", "epochs")

Key = tuple[str, float]
"""What was trained on the labels, and the fraction of them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one encoder says of the test recordings, and its AUROC on validation."""

    name: str
    outcome: Decisions
    validation: float


def read(folder: Path) -> Evaluation:
    """The evaluation in a folder. Raises SystemExit with one line."""
    try:
        return evaluation_of(json.loads((folder / "results.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{folder} holds no results.json of beatray evaluate ({error})") from error


def probes(folder: Path, evaluation: Evaluation, variant: str = "pretrained") -> dict[Key, Answer]:
    """The answers of the probes of an encoder, of the first seed; or of its network with random weights (`random`)."""
    name = folder.parent.name if folder.name == "evaluation" else folder.name
    found: dict[Key, Answer] = {}
    for run in evaluation.runs:
        plain = (run.task, run.variant, run.condition) == ("classify", variant, "clean")
        if plain and run.protocol != MODEL and isinstance(run.outcome, Decisions):
            validation = run.metrics.get(VALIDATION_AUROC, float("-inf"))
            found.setdefault((run.protocol, run.fraction), Answer(name, run.outcome, validation))
    return found


def part_of(folders: Sequence[Path], evaluations: Sequence[Evaluation]) -> TaskPart:
    """The test recordings and labels. Raises SystemExit where the evaluations are not of the same."""
    parts = [each.parts.get("classify") for each in evaluations]
    first = parts[0]
    for folder, part in zip(folders, parts, strict=True):
        if first is None or part is None or part.truth is None or first.truth is None or not _same(first, part):
            raise SystemExit(f"{folder} was not tested on the recordings and classes of {folders[0]}")
    assert first is not None
    return first


def recordings(corpus: str, part: TaskPart) -> Rows:
    """The rows of the test recordings, in their order. Raises SystemExit where the corpus lacks one."""
    opened = open_corpus(corpus)
    position = {name: number for number, name in enumerate(opened.index["record_id"])}
    missing = [name for name in part.test_ids if name not in position]
    if missing:
        raise SystemExit(f"{corpus} lacks {len(missing)} of {len(part.test_ids)} test recordings, as {missing[0]}")
    return opened.rows([position[name] for name in part.test_ids])


def answer(run: str, rows: Rows, part: TaskPart) -> tuple[Key, Answer]:
    """What the model of a run says of the rows. Raises SystemExit for a model of other classes or that saw one."""
    model = EcgModel(run)
    about = model.description
    if model.kind != "multilabel" or tuple(about["names"]) != part.classes:
        raise SystemExit(f"{run} tells {', '.join(about['names'])} apart, the evaluations {', '.join(part.classes)}")
    if about["scores"]["test"] is None or about["records"]["test"] != len(part.test_ids):
        raise SystemExit(f"{run} was not tested on the {len(part.test_ids)} recordings of the evaluations")
    chances = model.values(rows.signal_uv, rows.n_samples.astype(np.int64))[0]
    outcome = Decisions(chances, np.asarray(model.thresholds))
    return (MODEL, float(about["objective"]["fraction"])), Answer(Path(run).name, outcome, _validation(about))


def each_row(run: str) -> dict[str, str]:
    """A model's own scores. `method` is the name of its run without the fraction behind it."""
    about = EcgModel(run).description
    fraction = float(about["objective"]["fraction"])
    score = about["scores"]["test"]
    auroc = [f"{score['auroc'][key]:.4f}" for key in ("value", "low", "high")]
    name = Path(run).name
    for text in (f"-{fraction:g}", f"-{fraction}"):
        name = name.removesuffix(text)
    cells = (
        name,
        f"{fraction:g}",
        *auroc,
        f"{score['f1']['value']:.4f}",
        f"{_validation(about):.4f}",
        str(about["records"]["train"]),
        str(about["train"]["epochs"]),
    )
    return dict(zip(EACH, cells, strict=True))


def together(outcomes: Sequence[Decisions]) -> Decisions:
    """The mean of the log odds, as probabilities."""
    scores = [np.clip(each.scores, SURE, 1 - SURE) for each in outcomes]
    odds: NDArray[np.float64] = np.mean([np.log(each / (1 - each)) for each in scores], axis=0)
    return Decisions(1 / (1 + np.exp(-odds)), np.full(odds.shape[1], 0.5))


def table_of(answers: Mapping[Key, Sequence[Answer]], part: TaskPart) -> list[dict[str, str]]:
    """A row for each probe and fraction."""
    table = []
    for (probe, fraction), given in sorted(answers.items()):
        all_of_them = together([each.outcome for each in given])
        best = max(given, key=lambda each: each.validation)
        own = own_intervals([all_of_them], part.truth, part.test_patients, BOOTSTRAPS)["auroc"]
        one = own_intervals([best.outcome], part.truth, part.test_patients, BOOTSTRAPS)["auroc"]
        gain = paired_differences([all_of_them], [best.outcome], part.truth, part.test_patients, BOOTSTRAPS)["auroc"]
        values = (own.value, own.low, own.high, gain.value, gain.low, gain.high)
        cells = (probe, f"{fraction:g}", str(len(given)), best.name, f"{one.value:.4f}", *(f"{v:.4f}" for v in values))
        table.append(dict(zip(COLUMNS, cells, strict=True)))
    return table


def all_answers(
    folders: Sequence[Path], untrained: Sequence[Path] = (), runs: Sequence[str] = (), corpus: str | None = None
) -> tuple[dict[Key, list[Answer]], TaskPart]:
    """By probe and fraction, what is asked together, and the part that is tested."""
    evaluations = [read(folder) for folder in (*folders, *untrained)]
    part = part_of([*folders, *untrained], evaluations)
    found = [probes(folder, each) for folder, each in zip(folders, evaluations, strict=False)]
    common = set.intersection(*(set(each) for each in found))
    answers: dict[Key, list[Answer]] = {key: [each[key] for each in found] for key in common}
    for folder, evaluation in zip(untrained, evaluations[len(folders) :], strict=True):
        for (probe, fraction), given in probes(folder, evaluation, "random").items():
            if probe == PROBE and (PROBE, fraction) in answers:
                answers.setdefault((UNTRAINED, fraction), []).append(given)
    if corpus is not None:
        rows = recordings(corpus, part)
        for run in runs:
            key, given = answer(run, rows, part)
            answers.setdefault(key, []).append(given)
        for fraction in [fraction for probe, fraction in answers if probe == MODEL]:
            if (PROBE, fraction) in answers:
                answers[BOTH, fraction] = answers[PROBE, fraction] + answers[MODEL, fraction]
    return answers, part


def _validation(about: Mapping[str, Any]) -> float:
    return float(about["scores"]["validation"]["auroc"]["value"])


def _same(one: TaskPart, other: TaskPart) -> bool:
    return one.test_ids == other.test_ids and one.classes == other.classes and np.array_equal(one.truth, other.truth)


def write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The arguments of what is asked together."""
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="EVALUATION")
    parser.add_argument("--random", nargs="+", type=Path, default=[], metavar="EVALUATION")
    parser.add_argument("--models", nargs="+", default=[], metavar="RUN")
    parser.add_argument("--corpus")


def check_inputs(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with a line where they do not fit together."""
    if len(given.evaluations) < 2:
        parser.error("give two evaluations or more")
    if bool(given.models) != (given.corpus is not None):
        parser.error("--models and --corpus belong together")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_inputs(parser)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--each", type=Path)
    given = parser.parse_args(arguments)
    check_inputs(parser, given)
    torch.set_num_threads(1)
    try:
        table = table_of(*all_answers(given.evaluations, given.random, given.models, given.corpus))
        each = [each_row(run) for run in given.models]
    except (CheckpointError, CorpusError) as error:
        raise SystemExit(str(error)) from error
    print("| probe | labels | the one that validation prefers | AUROC | all together | 95 % interval | gain |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        print(
            f"| {row['probe']} | {100 * float(row['labels']):g} % | `{row['best']}` | {float(row['best_auroc']):.3f} | "
            f"{float(row['auroc']):.3f} | {float(row['low']):.3f} to {float(row['high']):.3f} | "
            f"{float(row['gain']):+.3f} ({float(row['gain_low']):+.3f} to {float(row['gain_high']):+.3f}) |"
        )
    if given.csv is not None:
        write(given.csv, COLUMNS, table)
    if given.each is not None:
        write(given.each, EACH, each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
