"""The ranking of a sweep: what a trial is ranked by, and every trial in one table, the best first, none dropped.

A trial is ranked by the last figures of its run; whether they can have the metric that is asked for is checked before
it starts. Finished trials come first, by the metric; then those that were stopped early, by theirs; then the rest:
failed ones with their error, and those that have not ended.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beatray.errors import SettingsError
from beatray.evaluate.names import scores_of
from beatray.evaluate.results import PREFIX
from beatray.evaluate.settings import EvaluateSettings
from beatray.objectives import registry as objectives
from beatray.settings import PretrainSettings
from beatray.sweep.record import SweepRecord, TrialRecord
from beatray.sweep.settings import SweepSettings
from beatray.sweep.space import name_of, short_keys, shown
from beatray.track.journal import figure_today
from beatray.train import checkpoint as checkpoints
from beatray.train.run_folder import METRICS
from beatray.train.run_spec import RunSpec

VALIDATION = "validation_"
"""How the columns of a validation begin."""
VALIDATION_LOSS = f"{VALIDATION}loss"
REPORTED = ("loss", VALIDATION_LOSS)
"""What the ranks report while they train."""
COLUMNS = (
    *REPORTED, "learning_rate", "gradient_norm", "records_per_s", "data_wait_s", "step_s", "core_s", "workers",
    "dropped_rows", "checkpoint_failures",
)  # fmt: skip
"""What the loop itself logs of a step; a method adds its own."""
CORE_S, CORE_MINUTES = "core_s", "core_minutes"
"""What the cores worked for a line of the journal, and for the whole run: CPU time of all ranks, on GPUs wall time."""
NOT_FIGURES = ("step", "epoch", "time_ms")
ORDER = ("finished", "stopped", "running", "paused", "interrupted", "waiting", "failed")
LONGEST_ERROR = 100


def with_metric(trial: TrialRecord, metric: str) -> TrialRecord:
    """The trial, or a failed one if it trained to its end and yet has no finite value of the metric."""
    values = [source[metric] for source in (trial.figures, *trial.reports) if source.get(metric) is not None]
    if any(math.isfinite(value) for value in values):
        return trial
    has = ", ".join(sorted(trial.figures)) or "nothing"
    return replace(trial, status="failed", error=f"it reports no {metric}; sweep.metric= can be one of: {has}")


def refuse_unknown_metric(metric: str, evaluation: EvaluateSettings | None, trials: Sequence[PretrainSettings]) -> None:
    """SettingsError for a metric that no trial can have, or that is most likely a typing error, before one starts."""
    if metric.startswith(PREFIX):
        if evaluation is None:
            raise SettingsError(f"sweep.metric={metric} is a score of an evaluation: it needs sweep.evaluate=true")
        scores = scores_of(evaluation)
        if metric not in scores:
            raise SettingsError(f"sweep.metric={metric} is no score of this evaluation{_meant(metric, scores)}")
        return
    methods = {json.dumps(trial.objective, sort_keys=True): dict(trial.objective) for trial in trials}
    known = {*COLUMNS, CORE_MINUTES, *(key for method in methods.values() for key in _curves(method))}
    hint = _meant(metric, known)
    terms = {key.partition("/")[0] for key in known if "/" in key}  # a method may log more of a term, as TERM/WHAT
    of_users_own = any(":" in str(trial.objective["name"]) for trial in trials)
    may_be = "/" in metric and (of_users_own or metric.partition("/")[0] in terms)
    if metric not in known and (hint.startswith(";") or not may_be):
        raise SettingsError(f"sweep.metric={metric} is nothing that a trial logs{hint}")


def _meant(metric: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(metric, sorted(known), 1, 0.85)
    return f"; did you mean '{close[0]}'?" if close else f": there are {', '.join(sorted(known))}"


def _curves(method: dict[str, Any]) -> list[str]:
    """The columns that a method is known to log."""
    name = str(method.pop("name"))
    kind = objectives.objective_class(name)
    return [curve.key for curve in kind.curves(objectives.objective_settings(name, method, "objective."))]


def check_metric(run_spec: RunSpec, sweep: SweepSettings) -> None:
    """SettingsError if the trial could not be ranked, or not be stopped early, by the sweep's metric."""
    validates = bool(run_spec.validation.groups)
    if sweep.metric == VALIDATION_LOSS and not validates:
        raise SettingsError(
            "it has nothing to validate on: choose corpus.validation_folds that the corpus has and "
            "train.validate_every_epochs above 0, or take sweep.metric=loss"
        )
    if sweep.search not in ("asha", "pbt"):
        return
    if sweep.metric not in REPORTED:
        raise SettingsError(
            f"while they train, trials report {' and '.join(REPORTED)}: sweep.metric={sweep.metric} is known too late "
            f"for search={sweep.search}; take search=random"
        )
    if sweep.search == "pbt" and sweep.grace_period >= run_spec.settings.train.epochs:
        raise SettingsError(
            f"sweep.grace_period={sweep.grace_period} leaves no round of train.epochs={run_spec.settings.train.epochs} "
            "in which a trial could exploit another: lower it"
        )
    every = run_spec.settings.train.validate_every_epochs if validates else 1
    if every > sweep.grace_period or (sweep.search == "pbt" and sweep.grace_period % every):
        raise SettingsError(
            f"it reports every {every} epochs, which does not fit sweep.grace_period={sweep.grace_period}: set "
            f"train.validate_every_epochs={sweep.grace_period}, or a longer sweep.grace_period"
        )


def figures_of(run_spec: RunSpec) -> dict[str, float]:
    """The last figures of a run, from its folder; those of its validation are of the weights that it exports."""
    try:
        text = run_spec.run.read(METRICS).decode()
    except FileNotFoundError:
        return {}
    lines = [_today(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]
    figures = last_figures(lines)
    if any(CORE_S in line for line in lines):  # not in the journal of an older version
        figures[CORE_MINUTES] = sum(line.get(CORE_S) or 0.0 for line in lines) / 60.0
    best = checkpoints.best(run_spec.run) if run_spec.settings.checkpoint.export == "best" else None
    of_best = [] if best is None else [line for line in lines if checkpoints.name_of(line["step"] + 1) == best[0]]
    if not of_best:
        return figures
    others = {name: value for name, value in figures.items() if not name.startswith(VALIDATION)}
    validated = {name: value for name, value in last_figures(of_best).items() if name.startswith(VALIDATION)}
    return {**others, **validated}  # from the journal: best.json holds what was selected by, which need not be the loss


def _today(line: Mapping[str, Any]) -> dict[str, Any]:
    return {figure_today(name): value for name, value in line.items()}


def last_figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each column of a run's metrics, averaged over the last epoch that has it: single steps are noisy."""
    sums: dict[str, tuple[int, float, int]] = {}  # epoch, sum, count
    for line in lines:
        for name, value in line.items():
            if name in NOT_FIGURES or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                continue
            epoch, total, count = sums.get(name, (line["epoch"], 0.0, 0))
            same = epoch == line["epoch"]
            sums[name] = (line["epoch"], total + value if same else value, count + 1 if same else 1)
    return {name: total / count for name, (_, total, count) in sums.items()}


@dataclass(frozen=True, slots=True)
class Ranked:
    """A trial with its rank; only finished trials have one."""

    rank: int | None
    value: float | None
    trial: TrialRecord


def metric_of(record: SweepRecord, trial: TrialRecord) -> float | None:
    """The trial's value of the metric: from its figures, else as last reported."""
    for source in (trial.figures, *reversed(trial.reports)):
        value = source.get(record.metric)
        if value is not None and math.isfinite(value):
            return float(value)
    return None


def ranked(record: SweepRecord) -> list[Ranked]:
    """All trials, the best first."""
    sign = -1.0 if record.mode == "max" else 1.0

    def sort_key(trial: TrialRecord) -> tuple[int, float]:
        value = metric_of(record, trial)
        return ORDER.index(trial.status), math.inf if value is None else sign * value

    rows: list[Ranked] = []
    for trial in sorted(record.trials, key=sort_key):
        value = metric_of(record, trial)
        counts = trial.status == "finished" and value is not None
        rows.append(Ranked(len(rows) + 1 if counts else None, value, trial))
    return rows


def table_of(record: SweepRecord) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) with raw values; a column per setting in which the trials differ."""
    keys = _keys(record)
    short = short_keys(keys)
    columns = ["rank", record.metric, "trial", *(short[key] for key in keys), "status", "steps", "seconds", "error"]
    rows = [
        [
            row.rank,
            row.value,
            row.trial.name,
            *(row.trial.present.get(key, "") for key in keys),
            row.trial.status,
            row.trial.steps,
            round(row.trial.seconds, 1),
            row.trial.error,
        ]
        for row in ranked(record)
    ]
    return columns, rows


def _keys(record: SweepRecord) -> list[str]:
    return list(dict.fromkeys(key for trial in record.trials for key in trial.changes))


def as_text(record: SweepRecord) -> str:
    """The table for a terminal; errors below it, one line each."""
    columns, rows = table_of(record)
    named, short = columns.index("trial"), short_keys(_keys(record))
    derived = all(trial.name == name_of(trial.present, short) for trial in record.trials)  # by the columns that follow
    kept = [n for n, _ in enumerate(columns[:-1]) if n != named or not derived]
    settings = range(named + 1, columns.index("status"))
    cells = [[_cell(columns[n], row[n], setting=n in settings) for n in kept] for row in rows]
    cells = [[columns[n] for n in kept], *cells]
    widths = [max(len(line[n]) for line in cells) for n in range(len(kept))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    errors = [f"  {row[named]}: {_short(row[-1])}" for row in rows if row[-1]]
    return "\n".join([*lines, *(["failed or tried again:", *errors] if errors else [])])


def as_csv(record: SweepRecord) -> str:
    """The table as CSV."""
    columns, rows = table_of(record)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if value is None else _plain(value) for value in row] for row in rows])
    return out.getvalue()


def as_mlflow_table(record: SweepRecord) -> str:
    """The table in the form that MLflow shows as a table artifact."""
    columns, rows = table_of(record)
    return json.dumps({"columns": columns, "data": [[_plain(value) for value in row] for row in rows]})


def tables(record: SweepRecord) -> dict[str, str]:
    """The table as files, by name."""
    return {"ranking.csv": as_csv(record), "ranking.json": as_mlflow_table(record)}


def as_json(record: SweepRecord) -> str:
    """Everything `beatray sweep show` knows, for scripts."""
    trials = [
        {
            "rank": row.rank,
            "trial": row.trial.name,
            record.metric: row.value,
            "changes": row.trial.present,
            "status": row.trial.status,
            "attempts": row.trial.attempts,
            "steps": row.trial.steps,
            "seconds": round(row.trial.seconds, 3),
            "error": row.trial.error,
            "figures": dict(row.trial.figures),
        }
        for row in ranked(record)
    ]
    about = {"run": record.run, "metric": record.metric, "mode": record.mode, "search": record.search}
    return json.dumps({**about, "trials": trials}, indent=1)


def _cell(column: str, value: Any, *, setting: bool) -> str:
    if isinstance(value, float) and column != "seconds" and not setting:
        return f"{value:.4g}"
    return "-" if value is None and not setting else shown(value)


def _plain(value: Any) -> Any:
    return shown(value) if isinstance(value, (list, dict, bool)) else value


def _short(error: str) -> str:
    line = " ".join(error.split())
    return line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]}..."
