"""Several encoders asked together: the mean of the log odds that their probes, and models fine-tuned from them, give.

    python scripts/asked_together.py EVALUATION [EVALUATION ...] [--random EVALUATION ...]
        [--models RUN ... --corpus CORPUS] [--csv FILE] [--each FILE]

An EVALUATION is a folder with the results.json of `beatray evaluate` (or of a sweep's trial), each of one encoder, all
on the same recordings and labels; one behind --random is of a network with random weights. A RUN is one of `beatray
finetune` with the same labels; its model answers the test recordings of the evaluations, read from CORPUS. For every
probe and label fraction that all evaluations have, and for the models of each fraction, one line: what validation
prefers, and all together, in macro AUROC of the test part with 95 % intervals over patients. With all labels also the
average of two, of the linear probes and of the models; with fewer labels they learned from different patients, and saw
more together. Nothing is chosen by a test score: all that is given counts alike (log odds averaged; Satopaa et al.,
Int. J. Forecasting 30:344, 2014).

`--each` writes a line for each model: its own scores.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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
from beatray.models.encoder_folder import check_recipe
from beatray.models.model_folder import describe_model, model_files

CLIP = 1e-6
"""No probability counts as surer than this."""
BOOTSTRAPS = 1000
PROBE, MODELS, UNTRAINED = "linear_probe", "fine-tuned", "random weights"
BOTH = "both averages"
COLUMNS = ("asked", "labels", "members", "best", "best_auroc", "auroc", "low", "high", "gain", "gain_low", "gain_high")
EACH = ("run", "labels", "auroc", "low", "high", "f1", "validation_auroc", "train_records", "steps")

Key = tuple[str, float]
"""Who is asked (a probe of all encoders, the models, ...), and the fraction of the labels they learned from."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one probe or model says of the test recordings, and its AUROC on validation (-inf where not known)."""

    name: str
    outcome: Decisions
    validation: float


@dataclass(frozen=True, slots=True)
class Tested:
    """The test recordings in a corpus: their rows, in the order of the evaluations, and the recipe they follow."""

    rows: Rows
    hashes: NDArray[np.uint64]
    recipe: dict[str, Any]


def read(folder: Path) -> Evaluation:
    """The evaluation in a folder. Raises SystemExit with one line."""
    try:
        return evaluation_of(json.loads((folder / "results.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{folder} holds no results.json of beatray evaluate ({error})") from error


def probes(folder: Path, evaluation: Evaluation, variant: str = "pretrained") -> dict[Key, Answer]:
    """The answers of the probes of an encoder, of the first seed; or of its network with random weights (`random`).

    Raises SystemExit where there is none.
    """
    name = folder.parent.name if folder.name == "evaluation" else folder.name
    found: dict[Key, Answer] = {}
    for run in evaluation.runs:
        plain = (run.task, run.variant, run.condition) == ("classify", variant, "clean")
        if plain and run.protocol != "finetune" and isinstance(run.outcome, Decisions):
            validation = _known(run.metrics.get(VALIDATION_AUROC))
            found.setdefault((run.protocol, run.fraction), Answer(name, run.outcome, validation))
    if not found:
        raise SystemExit(f"{folder} has no probe of the classification ({variant})")
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


def recordings(corpus: str, part: TaskPart) -> Tested:
    """The test recordings of the evaluations. Raises SystemExit where the corpus lacks one."""
    opened = open_corpus(corpus)
    index = opened.index
    position = {name: number for number, name in enumerate(index["record_id"])}
    missing = [name for name in part.test_ids if name not in position]
    if missing:
        raise SystemExit(f"{corpus} lacks {len(missing)} of {len(part.test_ids)} test recordings, as {missing[0]}")
    positions = [position[name] for name in part.test_ids]
    hashes = b"".join(value[:8] for value in index["content_hash"].iloc[positions])
    return Tested(opened.rows(positions), np.frombuffer(hashes, "<u8"), opened.recipe)


def answer(run: str, tested: Tested, part: TaskPart) -> tuple[Key, Answer]:
    """What the model of a run says. Raises SystemExit for one of other classes, or that was trained on a recording."""
    about = describe_model(run)
    if about["kind"] != "multilabel" or tuple(about["names"]) != part.classes:
        raise SystemExit(
            f"{run} is a model of {about['kind']} for {', '.join(about['names'])}; the evaluations are of several "
            f"labels, {', '.join(part.classes)}"
        )
    seen = int(np.isin(tested.hashes, np.frombuffer(model_files(run)["trained_on.bin"], "<u8")).sum())
    if seen:
        raise SystemExit(f"{run} was trained on {seen} of the {len(part.test_ids)} test recordings of the evaluations")
    check_recipe(about["recipe"], tested.recipe, f"the model of {run}")
    model = EcgModel(run)
    chances = model.values(tested.rows.signal_uv, tested.rows.n_samples.astype(np.int64))[0]
    outcome = Decisions(chances, np.asarray(model.thresholds))
    return (MODELS, float(about["objective"]["fraction"])), Answer(Path(run).name, outcome, _validation(about))


def each_row(run: str) -> dict[str, str]:
    """A model's own scores."""
    about = describe_model(run)
    score = about["scores"]["test"]
    auroc = score.get("auroc", {})
    values = (*(auroc.get(key) for key in ("value", "low", "high")), score.get("f1", {}).get("value"))
    cells = (
        Path(run).name,
        f"{about['objective']['fraction']:g}",
        *("" if value is None else f"{value:.6g}" for value in (*values, _validation(about))),
        str(about["records"]["train"]),
        str(about["made_of"]["steps"]),
    )
    return dict(zip(EACH, cells, strict=True))


def together(outcomes: Sequence[Decisions]) -> Decisions:
    """The mean of the log odds, as probabilities."""
    scores = [np.clip(each.scores, CLIP, 1 - CLIP) for each in outcomes]
    odds: NDArray[np.float64] = np.mean([np.log(each / (1 - each)) for each in scores], axis=0)
    return Decisions(1 / (1 + np.exp(-odds)), np.full(odds.shape[1], 0.5))


def table_of(answers: Mapping[Key, Sequence[Answer]], part: TaskPart) -> list[dict[str, str]]:
    """A row for each of `answers`. Probes and models validate differently, so both together are compared with none."""
    table = []
    for (asked, fraction), given in sorted(answers.items()):
        all_of_them = together([each.outcome for each in given])
        own = own_intervals([all_of_them], part.truth, part.test_patients, BOOTSTRAPS)["auroc"]
        row = {"asked": asked, "labels": f"{fraction:g}", "members": str(len(given))}
        row |= {"auroc": f"{own.value:.6g}", "low": f"{own.low:.6g}", "high": f"{own.high:.6g}"}
        if asked != BOTH:
            best = max(given, key=lambda each: each.validation)
            one = own_intervals([best.outcome], part.truth, part.test_patients, BOOTSTRAPS)["auroc"]
            outcomes = ([all_of_them], [best.outcome])
            gain = paired_differences(*outcomes, part.truth, part.test_patients, BOOTSTRAPS)["auroc"]
            row |= {"best": best.name, "best_auroc": f"{one.value:.6g}", "gain": f"{gain.value:.6g}"}
            row |= {"gain_low": f"{gain.low:.6g}", "gain_high": f"{gain.high:.6g}"}
        table.append({column: row.get(column, "") for column in COLUMNS})
    return table


def all_answers(
    folders: Sequence[Path], untrained: Sequence[Path] = (), runs: Sequence[str] = (), corpus: str | None = None
) -> tuple[dict[Key, list[Answer]], TaskPart]:
    """By who is asked and the fraction of labels, the answers; and the part that is tested.

    Raises SystemExit where one is given twice, or nothing is common to all evaluations.
    """
    evaluations = [read(folder) for folder in (*folders, *untrained)]
    part = part_of([*folders, *untrained], evaluations)
    found = [probes(folder, each) for folder, each in zip(folders, evaluations[: len(folders)], strict=True)]
    common = set.intersection(*(set(each) for each in found))
    if not common:
        raise SystemExit("no probe and label fraction is common to all evaluations")
    answers: dict[Key, list[Answer]] = {key: [each[key] for each in found] for key in common}
    for folder, evaluation in zip(untrained, evaluations[len(folders) :], strict=True):
        for (probe, fraction), given in probes(folder, evaluation, "random").items():
            if probe == PROBE and (PROBE, fraction) in common:
                answers.setdefault((UNTRAINED, fraction), []).append(given)
    if corpus is not None:
        tested = recordings(corpus, part)
        refuse_other_patients(runs)
        for run in runs:
            key, given = answer(run, tested, part)
            answers.setdefault(key, []).append(given)
    for given_alike in answers.values():
        for one, other in combinations(given_alike, 2):
            if np.array_equal(one.outcome.scores, other.outcome.scores):
                raise SystemExit(f"{one.name} and {other.name} give the same answers: give each encoder once")
    if (PROBE, 1.0) in answers and (MODELS, 1.0) in answers:
        kinds = ((name, answers[name, 1.0]) for name in (PROBE, MODELS))
        answers[BOTH, 1.0] = [Answer(name, together([a.outcome for a in given]), -math.inf) for name, given in kinds]
    return answers, part


def refuse_other_patients(runs: Sequence[str]) -> None:
    """Raise SystemExit where models of the same fraction learned from different patients."""
    drawn: dict[float, tuple[str, Any]] = {}
    for run in runs:
        about = describe_model(run)
        objective = about["objective"]
        seed = about["seed"] if objective["fraction_seed"] is None else objective["fraction_seed"]
        first, by = drawn.setdefault(float(objective["fraction"]), (run, seed))
        if by != seed and objective["fraction"] < 1:
            raise SystemExit(
                f"{run} and {first} learned from different patients (seeds {seed} and {by}), and together from more "
                f"than {100 * objective['fraction']:g} %: give those of one objective.fraction_seed"
            )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The arguments of what is asked together."""
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="EVALUATION")
    parser.add_argument("--random", nargs="+", type=Path, default=[], metavar="EVALUATION")
    parser.add_argument("--models", nargs="+", default=[], metavar="RUN")
    parser.add_argument("--corpus")


def check_inputs(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with a line where they do not fit together; one thread from here on, as small networks are faster on it."""
    if len(given.evaluations) < 2:
        parser.error("give two evaluations or more")
    if bool(given.models) != (given.corpus is not None):
        parser.error("--models and --corpus belong together")
    torch.set_num_threads(1)


def write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def shown(row: Mapping[str, str]) -> str:
    """A row of the table in Markdown."""
    number = {key: f"{float(value):.3f}" for key, value in row.items() if key not in COLUMNS[:4] and value}
    alone, gain = ("", ""), ""
    if row["best"]:
        alone = (f"`{row['best']}`", number["best_auroc"])
        gain = f"{float(row['gain']):+.3f} ({float(row['gain_low']):+.3f} to {float(row['gain_high']):+.3f})"
    cells = [f"{row['asked']}, {row['members']}", f"{100 * float(row['labels']):g} %", *alone]
    cells += [number["auroc"], f"{number['low']} to {number['high']}", gain]
    return "| " + " | ".join(cells) + " |"


def _validation(about: Mapping[str, Any]) -> float:
    return _known(about["scores"]["validation"].get("auroc", {}).get("value"))


def _known(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else float(value)


def _same(one: TaskPart, other: TaskPart) -> bool:
    return one.test_ids == other.test_ids and one.classes == other.classes and np.array_equal(one.truth, other.truth)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; keep it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_inputs(parser)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--each", type=Path)
    given = parser.parse_args(arguments)
    check_inputs(parser, given)
    if given.each is not None and not given.models:
        parser.error("--each is of models: give --models")
    try:
        table = table_of(*all_answers(given.evaluations, given.random, given.models, given.corpus))
        each = [each_row(run) for run in given.models]
        if given.csv is not None:
            write(given.csv, COLUMNS, table)
        if given.each is not None:
            write(given.each, EACH, each)
    except (CheckpointError, CorpusError, OSError) as error:
        raise SystemExit(str(error)) from error
    print("| asked | labels | the one that validation prefers | AUROC | all together | 95 % interval | gain |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        print(shown(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
