"""The ranking of a sweep: every trial in one table, the best first, none dropped.

Finished trials are ranked by the metric; then come those that were stopped early, by theirs; then the rest: failed
ones with their error, and those that have not ended.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import Any

from beatray.sweep.record import SweepRecord, TrialRecord
from beatray.sweep.space import name_of, short_keys, shown

ORDER = ("finished", "stopped", "running", "paused", "interrupted", "waiting", "failed")
LONGEST_ERROR = 100


@dataclass(frozen=True, slots=True)
class Ranked:
    """A trial with its place; only finished trials have one."""

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

    def place(trial: TrialRecord) -> tuple[int, float]:
        value = metric_of(record, trial)
        return ORDER.index(trial.status), math.inf if value is None else sign * value

    rows: list[Ranked] = []
    for trial in sorted(record.trials, key=place):
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
    told = all(trial.name == name_of(trial.present, short) for trial in record.trials)  # by the columns that follow
    kept = [n for n, _ in enumerate(columns[:-1]) if n != named or not told]
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
