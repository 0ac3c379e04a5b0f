"""Keep the scores of a sweep over methods in docs/results/ and write their table into docs/results.md.

    python scripts/methods_table.py NAME [--report SWEEP/report ...] [--check]

`--report` is what `beatray report SWEEP` wrote, several where a sweep ran in parts (`sweep.only=`): `scores.csv` and
`costs.csv` become docs/results/NAME-scores.csv and NAME-costs.csv, a trial of a later part in place of an earlier one.
A method whose trials come from several parts is refused: its costs would be those of one of them. The table is made of
these two files, and of docs/results/NAME-fine-tuned.csv where there is one (asked_together.py writes it with `--each`);
it stands between the marks that carry NAME. `--check` writes nothing and fails where the page has another table.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from beatray.evaluate.names import score_name

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FOLDER = DOCS / "results.md", DOCS / "results"

CLASSIFY, PROBE = "classify", "linear_probe"
COLUMNS = {
    "LUDB F1, 10 %": score_name("segment", "frozen_decoder", 0.1, "f1"),
    "LUDB F1": score_name("segment", "frozen_decoder", 1.0, "f1"),
    "AUROC, 1 %": score_name(CLASSIFY, PROBE, 0.01, "auroc"),
    "AUROC, 10 %": score_name(CLASSIFY, PROBE, 0.1, "auroc"),
    "AUROC": score_name(CLASSIFY, PROBE, 1.0, "auroc"),
    "AUROC, MLP": score_name(CLASSIFY, "mlp", 1.0, "auroc"),
    "AUROC, noise 3": score_name(CLASSIFY, PROBE, 1.0, "auroc", "noise 3"),
    "AUROC, 1 lead": score_name(CLASSIFY, PROBE, 1.0, "auroc", "1 lead"),
}

FINE_TUNED = {"AUROC, fine-tuned, 10 %": "0.1", "AUROC, fine-tuned": "1"}
"""Columns of models fine-tuned from the encoders, and their share of the labels: those of the runs METHOD-SHARE."""

Row = Mapping[str, str]


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the table of a sweep."""
    return f"<!-- scripts/methods_table.py {name} -->\n", f"<!-- end {name} -->\n"


def rendered(scores: Sequence[Row], costs: Sequence[Row], fine_tuned: Sequence[Row] = ()) -> str:
    """The table: a line per method, each score (mean ± SD of several trials) beside that of its network with random
    weights, the best in bold; behind them the scores of its fine-tuned models."""
    runs = {row["run"]: float(row["auroc"]) for row in fine_tuned}
    cost_of = {row["method"]: row for row in costs}
    methods = list(dict.fromkeys(row["method"] for row in scores))
    by_cell: dict[tuple[str, str], list[Row]] = {}
    for row in scores:
        by_cell.setdefault((row["method"], row["score"]), []).append(row)
    best = {
        score: max(methods, key=lambda name: _mean(by_cell.get((name, score), ()), "value"))
        for score in COLUMNS.values()
    }
    best_run = {
        share: max((runs.get(f"{name}-{share}", 0.0) for name in methods), default=0.0) for share in FINE_TUNED.values()
    }
    models = {column: share for column, share in FINE_TUNED.items() if best_run[share]}
    header = ["recipe", "network", "epochs", *COLUMNS, *models]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in methods:
        cells = []
        for score in COLUMNS.values():
            found = by_cell.get((name, score), ())
            value = _shown(_mean(found, "value"))
            beside = _shown(_mean(found, "random"))
            shown = f"**{value}**" if value and best[score] == name else value
            shown += _spread(found)
            cells.append(shown + f" ({beside})" * bool(value and beside))
        for share in models.values():
            reached = runs.get(f"{name}-{share}", float("-inf"))
            cells.append(f"**{_shown(reached)}**" if reached == best_run[share] else _shown(reached))
        cost = cost_of.get(name, {})  # blank where the costs do not name it
        network = cost.get("network", "").replace("(", "").replace(")", "")
        lines.append("| " + " | ".join([f"`{name}`", network, cost.get("epochs", ""), *cells]) + " |")
    features = [_mean(by_cell.get((methods[0], score), ()), "features") for score in COLUMNS.values()]
    lines.append("| " + " | ".join(["measured features", "", "", *map(_shown, features), *[""] * len(models)]) + " |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def _mean(rows: Sequence[Row], column: str) -> float:
    """Over the trials of a method; minus infinity where none has the score."""
    values = [float(row[column]) for row in rows if row[column]]
    return statistics.fmean(values) if values else float("-inf")


def _spread(rows: Sequence[Row]) -> str:
    """The SD over the trials of a method, where there are several."""
    values = [float(row["value"]) for row in rows if row["value"]]
    return f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""


def _shown(value: float) -> str:
    return "" if value == float("-inf") else f"{value:.3f}"


def read(name: str) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """The kept scores and costs, and what is kept of fine-tuned models."""
    kept: list[list[dict[str, str]]] = []
    for kind in ("scores", "costs", "fine-tuned"):
        path = FOLDER / f"{name}-{kind}.csv"
        if kind == "fine-tuned" and not path.is_file():
            kept.append([])
            continue
        with path.open(newline="", encoding="utf-8") as handle:
            kept.append(list(csv.DictReader(handle)))
    return kept[0], kept[1], kept[2]


def joined(parts: Sequence[Sequence[Row]], key: str) -> list[Row]:
    """The rows of several parts; those of a later part with the same `key` take the place of earlier ones."""
    rows: list[Row] = []
    for part in parts:
        fresh = {row[key] for row in part}
        rows = [row for row in rows if row[key] not in fresh] + list(part)
    return rows


def keep(name: str, reports: Sequence[Path]) -> None:
    """Write the scores and costs of the parts of a sweep into docs/results/, both or none.

    Raises ValueError if there is nothing to keep or a method's trials come from several parts; OSError for a report
    that lacks a file.
    """
    texts = {}
    for kind, key in (("scores", "trial"), ("costs", "method")):
        parts = []
        for report in reports:
            with (report / f"{kind}.csv").open(newline="", encoding="utf-8") as handle:
                parts.append(list(csv.DictReader(handle)))
        rows = joined(parts, key)
        if not rows:
            raise ValueError(f"{kind}.csv of {', '.join(map(str, reports))} has no rows: was the sweep evaluated?")
        if kind == "scores":
            refuse_mixed(parts, reports)
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        texts[kind] = out.getvalue()
    FOLDER.mkdir(exist_ok=True)
    for kind, text in texts.items():
        (FOLDER / f"{name}-{kind}.csv.part").write_text(text, encoding="utf-8")
    for kind in texts:
        (FOLDER / f"{name}-{kind}.csv.part").replace(FOLDER / f"{name}-{kind}.csv")


def refuse_mixed(parts: Sequence[Sequence[Row]], reports: Sequence[Path]) -> None:
    """Raise ValueError if the trials of a method that are kept come from more than one part."""
    part_of = {row["trial"]: number for number, part in enumerate(parts) for row in part}  # the last one has it
    parts_of: dict[str, set[int]] = {}
    for row in (row for part in parts for row in part):
        parts_of.setdefault(row["method"], set()).add(part_of[row["trial"]])
    for method, numbers in parts_of.items():
        if len(numbers) > 1:
            where = " and ".join(str(reports[number]) for number in sorted(numbers))
            raise ValueError(
                f"the trials of {method} come from {where}, and its costs would be those of the last alone: "
                "report all trials of a method in one part"
            )


def table_of(text: str, name: str) -> str:
    """The table of a sweep as it stands in a page."""
    begin, end = marks(name)
    return text.partition(begin)[2].partition(end)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--report", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    if args.report is not None and args.check:
        parser.error("--check writes nothing, and --report keeps scores: give one of them")
    text = PAGE.read_text(encoding="utf-8")
    begin, end = marks(args.name)
    if begin not in text or end not in text:
        print(f"{PAGE.name} has no marks for this table: write {begin}{end} where it belongs")
        return 1
    if args.report is not None:
        try:
            keep(args.name, args.report)
        except (OSError, ValueError) as error:
            print(f"nothing was kept: {error}")
            return 1
    if not (FOLDER / f"{args.name}-scores.csv").is_file():
        print(f"no scores of {args.name} are kept in {FOLDER}: give --report SWEEP/report")
        return 1
    table = rendered(*read(args.name))
    if args.check:
        if table_of(text, args.name) != table:
            print(f"{PAGE.name} has another table than {FOLDER.name}/{args.name}-scores.csv:\n{table}")
            return 1
        return 0
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(before + begin + table + end + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
