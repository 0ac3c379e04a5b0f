"""The table of a sweep: a line for each method, means and SDs over its trials, beside the paper's figures.

Where a method is a row of the paper's Table 1, its difference from row 1 is marked: `same` if it has the paper's sign
in every trial (paired by what repeats them), `opposite` if in none, `mixed` otherwise. A mark is no test: with three
trials, two of eight coin tosses come out alike.

Contract: text, CSV, markdown, HTML and LaTeX hold the same lines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.files import score_name
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES
from beatray.sweep.paper import AUROC, BASELINE, CLAIMS, F1, PAPER_SCORES, SEGMENT_F1, PaperRow, described, paper_row
from beatray.sweep.results import Method, SweepResults

SAME, OPPOSITE, MIXED = "same", "opposite", "mixed"
CONTROL_NAMES = {"random": "random weights", "features": "measured features"}


@dataclass(frozen=True, slots=True)
class Column:
    """A score that every method has; `paper` names the figure of the paper that stands beside it."""

    title: str
    score: str
    paper: str | None = None
    arm: str = "pretrained"  # or joined


@dataclass(frozen=True, slots=True)
class Line:
    """One method or control: scores (n trials,) by column title; the paper's row, and how the directions compare."""

    name: str
    scores: dict[str, NDArray[np.float64]]
    repeats: tuple[str, ...] = ()  # what each trial is paired with those of other methods by
    paper: PaperRow | None = None
    marks: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SweepTable:
    """All lines: the methods in the order of the sweep, then the controls."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    controls: tuple[Line, ...]

    @property
    def of_paper(self) -> bool:
        """True if some line is a row of the paper."""
        return any(line.paper is not None for line in self.lines)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim of the paper: its difference, ours (n trials,), and how the directions compare."""

    text: str
    rows: tuple[int, int]
    score: str
    paper: float
    ours: NDArray[np.float64]
    mark: str


def make_table(results: SweepResults) -> SweepTable:
    """The table of the scores that all methods have."""
    columns = _columns(results)
    lines = tuple(_line(method, columns, name) for method, name in zip(results.methods, names_of(results), strict=True))
    first = next((line for line in lines if line.paper == BASELINE), None)
    if first is not None:
        lines = tuple(_marked(line, first, columns) for line in lines)
    return SweepTable(columns, lines, tuple(_controls(results, columns)))


def names_of(results: SweepResults) -> list[str]:
    """What the methods are called: in few words, unless two would be called the same."""
    short = [name_of(method) for method in results.methods]
    return [
        name if short.count(name) == 1 else method.name for name, method in zip(short, results.methods, strict=True)
    ]


def _controls(results: SweepResults, columns: Sequence[Column]) -> list[Line]:
    """A line for each arm; several, named by their methods, where methods have controls of their own."""
    groups: dict[tuple[str, ...], Method] = {}
    for method in results.methods:
        groups.setdefault(tuple(sorted({trial.control for trial in method.trials})), method)
    found = []
    for arm, name in CONTROL_NAMES.items():
        for method in groups.values():
            each = {trial.control: n for n, trial in enumerate(method.trials)}.values()
            scores = {
                column.title: method.control_scores(column.score, arm)[list(each)]
                if column.arm == "pretrained"
                else np.array([np.nan])
                for column in columns
            }
            if any(np.isfinite(values).any() for values in scores.values()):
                found.append(Line(name if len(groups) == 1 else f"{name} ({method.name})", scores))
    return found


def verdicts(table: SweepTable) -> list[Verdict]:
    """Every claim of the paper whose two rows are in the table."""
    by_number = {line.paper.number: line for line in table.lines if line.paper is not None}
    found = []
    for claim in CLAIMS:
        column = next((column for column in table.columns if column.paper == claim.score), None)
        higher, lower = by_number.get(claim.higher), by_number.get(claim.lower)
        if column is None or higher is None or lower is None or not higher.paper or not lower.paper:
            continue
        ours = _difference(higher, lower, column.title)
        gap = higher.paper.scores[claim.score] - lower.paper.scores[claim.score]
        rows = (claim.higher, claim.lower)
        found.append(Verdict(claim.text, rows, column.title, gap, ours, _direction(ours, gap)))
    return found


def as_csv(table: SweepTable) -> str:
    """Plain numbers, a line per method."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["row", "method", "trials"]
    for column in table.columns:
        header += [f"{column.title} mean", f"{column.title} SD"]
        header += [f"{column.title} paper", f"{column.title} direction"] if column.paper and table.of_paper else []
    writer.writerow(header)
    for line in (*table.lines, *table.controls):
        cells: list[object] = [line.paper.number if line.paper else "", line.name, _count(line)]
        for column in table.columns:
            mean, sd = _mean_sd(line.scores[column.title])
            cells += [_number(mean, 4), _number(sd, 4)]
            if column.paper and table.of_paper:
                cells += [
                    line.paper.scores[column.paper] if line.paper else "",
                    (line.marks or {}).get(column.title, ""),
                ]
        writer.writerow(cells)
    return out.getvalue()


def as_markdown(table: SweepTable) -> str:
    """GitHub-flavoured markdown."""
    header, lines = _texts(table)
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*rows, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def as_text(table: SweepTable) -> str:
    """Columns for a terminal."""
    header, lines = _texts(table)
    widths = [max(len(line[n]) for line in (header, *lines)) for n in range(len(header))]
    padded = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (header, *lines)]
    return "\n".join(line.rstrip() for line in padded) + "\n"


def as_html(table: SweepTable) -> str:
    """A <table>; the best of the methods in each column is set in <strong>."""
    header, lines = _texts(table)
    places = [n for n, title in enumerate(header) if title in {column.title for column in table.columns}]
    best = {}
    for column, place in zip(table.columns, places, strict=True):
        means = [_mean_sd(line.scores[column.title])[0] for line in table.lines]
        best[place] = int(np.nanargmax(means)) if np.isfinite(means).any() else -1
    parts = ["<table class='results'><thead><tr>", *(f"<th>{escape(name)}</th>" for name in header)]
    parts.append("</tr></thead><tbody>")
    for number, cells in enumerate(lines):
        marked = [
            f"<strong>{escape(cell)}</strong>" if best.get(place) == number else escape(cell)
            for place, cell in enumerate(cells)
        ]
        parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in marked) + "</tr>")
    return "".join([*parts, "</tbody></table>"])


def as_latex(table: SweepTable) -> str:
    """A `tabular` for booktabs."""
    header, lines = _texts(table)
    lines = [list(line) for line in lines]
    body = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
    body.insert(len(table.lines), r"\midrule") if table.controls else None
    rows = [rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule", " & ".join(map(_latex, header)) + r" \\"]
    return "\n".join([*rows, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def long_csv(results: SweepResults) -> str:
    """Every score of every trial, a line each: what any other table can be made of."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "trial", "repeat", "score", "value", "random", "features", "joined"])
    for name in results.score_names():
        for method in results.methods:
            values = (
                method.scores(name),
                method.control_scores(name, "random"),
                method.control_scores(name, "features"),
                method.scores(name, "joined"),
            )
            for trial, *cells in zip(method.trials, *values, strict=True):
                writer.writerow([method.name, trial.trial, trial.repeat, name, *(_number(value, 6) for value in cells)])
    return out.getvalue()


def _columns(results: SweepResults) -> tuple[Column, ...]:
    """The main scores at all labels, those of the paper first; then the same with the measured features joined, other
    protocols, and fewer labels."""
    runs = [run for m in results.methods for t in m.trials for run in t.results["runs"] if run["condition"] == "clean"]
    kinds = dict.fromkeys((run["protocol"], run["task"], run["fraction"]) for run in runs)
    largest = {task: max(fraction for _, other, fraction in kinds if other == task) for _, task, _ in kinds}
    paper, joined, others, fewer = [], [], [], []
    for protocol, task, fraction in kinds:
        name = "PTB-XL" if task == "classify" else "LUDB"
        how = "" if protocol == "frozen" else f", {PROTOCOL_NAMES[task, protocol]}"
        for metric, of_paper in (("auroc", AUROC), ("f1", F1)) if task == "classify" else (("f1", SEGMENT_F1),):
            title = f"{name} {METRIC_NAMES[metric].removeprefix('macro ')}"
            score = score_name(task, protocol, fraction, metric)
            if fraction != largest[task]:
                if of_paper != F1:
                    fewer.append(Column(f"{title}{how} at {fraction:.0%}", score))
            elif protocol == "frozen":
                paper.append(Column(title, score, of_paper))
                joined += [Column(f"{title} with features", score, arm="joined")] if metric == "auroc" else []
            else:
                others.append(Column(f"{title}{how}", score))
    paper.sort(key=lambda column: PAPER_SCORES.index(str(column.paper)))
    fewer.sort(key=lambda column: column.title)
    return tuple(
        column
        for column in (*paper, *joined, *others, *fewer)
        if all(np.isfinite(method.scores(column.score, column.arm)).any() for method in results.methods)
    )


def _line(method: Method, columns: Sequence[Column], name: str) -> Line:
    scores = {column.title: method.scores(column.score, column.arm) for column in columns}
    return Line(name, scores, method.repeats, paper_row(method.changes))


def name_of(method: Method) -> str:
    """Rhythm / beat targets and what else makes the method; the trial's own name where it is about other things."""
    changes = dict(method.changes)
    if not {"objective.rhythm", "objective.beat"} <= changes.keys():
        return method.name
    targets = (changes.pop("objective.rhythm"), changes.pop("objective.beat"), changes.pop("objective.exponent", None))
    others = [
        value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"
        for key, value in changes.items()
        if value is not None
    ]
    return ", ".join([described(*targets), *others])


def _marked(line: Line, first: Line, columns: Sequence[Column]) -> Line:
    if line.paper is None or line.paper == BASELINE:
        return line
    marks = {}
    for column in columns:
        if column.paper is not None:
            gap = line.paper.scores[column.paper] - BASELINE.scores[column.paper]
            marks[column.title] = _direction(_difference(line, first, column.title), gap)
    return Line(line.name, line.scores, line.repeats, line.paper, marks)


def _difference(one: Line, other: Line, title: str) -> NDArray[np.float64]:
    """Per trial that both have, known by what repeats it."""
    of_other = dict(zip(other.repeats, other.scores[title], strict=True))
    pairs = [(a, of_other[r]) for r, a in zip(one.repeats, one.scores[title], strict=True) if r in of_other]
    differences = np.array([a - b for a, b in pairs], np.float64)
    return differences[np.isfinite(differences)]


def _direction(ours: NDArray[np.float64], paper: float) -> str:
    along, against = np.sign(ours) == np.sign(paper), np.sign(ours) == -np.sign(paper)
    if not ours.size:
        return ""
    return SAME if along.all() else OPPOSITE if against.all() else MIXED


def _texts(table: SweepTable) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of all forms meant to be read."""
    header = [*(["row"] if table.of_paper else []), "method"]
    for column in table.columns:
        header.append(column.title)
        header += ["paper", "direction"] if column.paper and table.of_paper else []
    lines = []
    for line in (*table.lines, *table.controls):
        cells = [*([str(line.paper.number) if line.paper else ""] if table.of_paper else []), line.name]
        for column in table.columns:
            cells.append(shown(line.scores[column.title]))
            if column.paper and table.of_paper:
                cells.append(f"{line.paper.scores[column.paper]:.3f}" if line.paper else "")
                cells.append((line.marks or {}).get(column.title, ""))
        lines.append(cells)
    return header, lines


def shown(values: NDArray[np.float64]) -> str:
    """Mean +- SD over trials; the SD is left out where there is none."""
    mean, sd = _mean_sd(values)
    if not np.isfinite(mean):
        return "-"
    return f"{mean:.3f} ± {sd:.3f}" if np.isfinite(sd) and sd > 0 else f"{mean:.3f}"


def _mean_sd(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if known.size else float("nan")
    return mean, float(known.std(ddof=1)) if known.size > 1 else float("nan")


def _count(line: Line) -> int:
    return max((int(np.isfinite(values).sum()) for values in line.scores.values()), default=0)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def _latex(text: str) -> str:
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("^", r"\textasciicircum{}"), ("±", r"$\pm$")):
        text = text.replace(plain, escaped)
    return text
