"""Which of several methods is better: the runs of their evaluations paired, compared, and laid out as lines of text.

A run of one method is paired with the run of another that had the same training labels, seed and test recordings. Two
kinds of pairs exist. Seeds of one evaluation change the labels drawn and the heads, not the pretraining: they show
whether this encoder beats that one. Several results files per method (pretraining seeds, or splits) show whether the
method does, and then each file counts once, with the mean over its seeds.

Contract: a results file is what `results.write_results` wrote. Each score is compared over the methods that were
evaluated for it. ValueError names what does not fit: other test recordings, other settings, a run that is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beatray.evaluate.notes import TASK_TITLES
from beatray.evaluate.older import results_today
from beatray.evaluate.results import METRICS, VARIANTS, percent
from beatray.evaluate.statistics import ALPHA, Statistics, compare
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES

IRRELEVANT = {
    *("tasks", "protocols", "seeds", "finetune_seeds", "segment_fractions", "classify_fractions"),
    *("baselines", "permutations", "bootstraps", "device", "workers", "keep_outputs"),
}
"""Settings of an evaluation that do not change the score of a run that both have."""
WHICH_CONDITIONS = ("noise_levels", "leads", "noise_kinds", "snr_db")
"""Settings of `robustness` that say which conditions there are, and change none."""

ONE = (
    "a run is one evaluation seed of one pretrained encoder: this compares these encoders, not the methods. For that, "
    "pretrain several and name each results file: A=FILE A=FILE B=FILE B=FILE"
)
SEVERAL = "a run is one results file (pretraining seed or split), with the mean over its seeds"

HEADER = ("", "shift", "rank-biserial", "p", "Bonferroni", "Holm", "verdict")


@dataclass(frozen=True, slots=True)
class RunScore:
    """One number: `pair` names what the run shares with its partner of every other method (split, seed)."""

    method: str
    pair: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """All methods on one metric: scores (n,) by method in the order of `pairs`, and the tests."""

    metric: str
    pairs: tuple[str, ...]
    scores: dict[str, list[float]]
    statistics: Statistics


def compare_runs(runs: Iterable[RunScore], alpha: float = ALPHA, against: str | None = None) -> list[MetricComparison]:
    """Every metric that two methods or more have, in the order of first appearance; all pairs of methods, or each
    `against` one.

    ValueError names a run that one method has and another lacks, or has twice: nothing is left out of its pair.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        of_method = table.setdefault(run.metric, {}).setdefault(run.method, {})
        if run.pair in of_method:
            raise ValueError(f"{run.method} has two runs {run.pair} of {run.metric}")
        of_method[run.pair] = run.value
    found = []
    for metric, by_method in table.items():
        if len(by_method) < 2:
            continue
        pairs = tuple(dict.fromkeys(pair for of_method in by_method.values() for pair in of_method))
        for name, of_method in by_method.items():
            missing = [pair for pair in pairs if not math.isfinite(of_method.get(pair, math.nan))]
            if missing:
                raise ValueError(
                    f"{metric}: {name} has no score for {', '.join(missing)}, which another method has. Repeat the "
                    "missing runs: leaving pairs out would favour a method that fails"
                )
        scores = {name: [of_method[pair] for pair in pairs] for name, of_method in by_method.items()}
        found.append(MetricComparison(metric, pairs, scores, compare(scores, alpha, against)))
    return found


def as_rows(comparison: MetricComparison) -> list[str]:
    """The lines of one metric: each method's mean and spread, each pair's effect, p and verdict, and what it means."""
    tests = comparison.statistics
    friedman = "" if tests.friedman_p is None else f"; Friedman p = {_p(tests.friedman_p)}"
    lines = [f"{comparison.metric}: {tests.runs} paired run{'s' if tests.runs > 1 else ''}{friedman}"]
    wide = max(len(name) for name in comparison.scores)
    for name, values in comparison.scores.items():
        spread = f" +- {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        lines.append(f"  {name.ljust(wide)}  {np.mean(values):.4f}{spread}")
    cells = [HEADER]
    for c in tests.comparisons:
        p_values = (_p(c.p), _p(c.p_bonferroni), _p(c.p_holm))
        label = f"{c.first} - {c.second}"
        cells.append((label, f"{c.hodges_lehmann:+.4f}", f"{c.rank_biserial:+.2f}", *p_values, c.verdict))
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    if tests.refusal is not None:
        lines.append(f"  {tests.refusal}")
    return lines


def as_document(comparisons: Sequence[MetricComparison]) -> list[dict[str, Any]]:
    """The same as plain JSON."""
    return [{**asdict(c), "refusal": c.statistics.refusal} for c in comparisons]


def runs_of(files: Mapping[str, Sequence[Path]], variants: Sequence[str] = ()) -> tuple[list[RunScore], str]:
    """The runs of methods, each with one results file or with the same number of them in the same order, and a
    sentence on what a paired run is.

    `variants` (random, features, encoder_features) of the first method's files stand as methods of their own.
    """
    counts = {name: len(paths) for name, paths in files.items()}
    if len(set(counts.values())) != 1:
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"methods need the same number of results files to be paired: {counted}")
    documents = {name: [_read(path) for path in paths] for name, paths in files.items()}
    first = next(iter(documents))
    several = counts[first] > 1
    lines = [(name, name, "pretrained") for name in documents]
    lines += [(VARIANTS[variant], first, variant) for variant in variants]
    scores: dict[tuple[str, str, str], dict[int, float]] = {}
    for method, source, variant in lines:
        for number, document in enumerate(documents[source]):
            _check_alike(documents[first][number], document, files[first][number], files[source][number])
            here = [run for run in document["runs"] if run["variant"] == variant]
            if not here:
                raise ValueError(f"{files[source][number]} holds no runs of {variant}")
            for run in here:
                pair = f"file {number + 1}" if several else f"seed {run['seed']}"
                for metric in METRICS[run["task"]]:
                    if metric not in run["metrics"]:
                        continue  # of an evaluation that did not compute it
                    title = document["tasks"].get(run["task"], {}).get("title")
                    seeds = scores.setdefault((method, pair, _metric(run, metric, title)), {})
                    if run["seed"] in seeds:
                        raise ValueError(f"{files[source][number]} holds two encoders; evaluate one at a time")
                    value = run["metrics"].get(metric)
                    seeds[run["seed"]] = math.nan if value is None else float(value)
    for (method, pair, name), seeds in scores.items():
        others = [each for (_, p, m), each in scores.items() if (p, m) == (pair, name)]
        if any(each.keys() != seeds.keys() for each in others):
            raise ValueError(f"{name}, {pair}: {method} was evaluated with other seeds than the others")
    unit = SEVERAL if several else ONE
    return [RunScore(*key, float(np.mean(list(seeds.values())))) for key, seeds in scores.items()], unit


def _read(path: Path) -> dict[str, Any]:
    file = path / "results.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not {"settings", "tasks", "runs"} <= set(document):
            raise ValueError("it lacks settings, tasks or runs")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is no results.json of beatray evaluate: {error}") from error
    return results_today(document)


def _check_alike(one: dict[str, Any], other: dict[str, Any], one_path: Path, other_path: Path) -> None:
    for task in one["tasks"].keys() & other["tasks"].keys():
        for part in ("test_ids", "train_ids"):
            if one["tasks"][task][part] != other["tasks"][task][part]:
                raise ValueError(f"{one_path} and {other_path} cannot be paired: their {part} of {task} differ")
    for key in sorted((one["settings"].keys() | other["settings"].keys()) - IRRELEVANT):
        before, now = one["settings"].get(key), other["settings"].get(key)
        if key == "robustness":
            before, now = _of_conditions(before), _of_conditions(now)
        if before != now:
            raise ValueError(f"{one_path} and {other_path} were evaluated with different {key}: {before} and {now}")


def _of_conditions(robustness: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of `robustness` that may change a score."""
    settings = robustness or {}
    return {key: value for key, value in settings.items() if key not in WHICH_CONDITIONS and value is not None}


def _metric(run: Mapping[str, Any], metric: str, title: str | None) -> str:
    task, condition = run["task"], run.get("condition", "clean")
    parts = [title or TASK_TITLES[task], PROTOCOL_NAMES[task, run["protocol"]], f"{percent(run['fraction'])} labels"]
    parts += [condition] if condition != "clean" else []
    return ", ".join([*parts, METRIC_NAMES[metric]])


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"
