"""The table of a sweep as CSV, markdown, plain text, HTML and LaTeX, and every score of every trial as CSV.

Contract: all forms of the table hold the same lines. CSV holds every column; what is meant to be read leaves the
smaller label fractions out where they are many (`SweepTable.shown`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from html import escape

import numpy as np

from beatray.report.sweep_table import Line, SweepTable, mean_sd, names_of, shown
from beatray.sweep.results import SweepResults


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
            mean, sd = mean_sd(line.scores[column.title])
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


def as_html(table: SweepTable, links: Mapping[str, str] | None = None) -> str:
    """A <table>; the best of the methods in each column is set in <strong>.

    A method named in `links` leads to that anchor.
    """
    header, lines = _texts(table)
    positions = [n for n, title in enumerate(header) if title in {column.title for column in table.shown}]
    best = {}
    for column, position in zip(table.shown, positions, strict=True):
        means = [mean_sd(line.scores[column.title])[0] for line in table.lines]
        best[position] = int(np.nanargmax(means)) if np.isfinite(means).any() else -1
    parts = ["<table class='results'><thead><tr>", *(f"<th>{escape(name)}</th>" for name in header)]
    parts.append("</tr></thead><tbody>")
    for number, cells in enumerate(lines):
        marked = [
            f"<strong>{escape(cell)}</strong>" if best.get(position) == number else escape(cell)
            for position, cell in enumerate(cells)
        ]
        named = header.index("method")
        if cells[named] in (links or {}):
            marked[named] = f'<a href="#{escape((links or {})[cells[named]])}">{marked[named]}</a>'
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
    writer.writerow(["method", "trial", "repeat", "score", "value", "random", "features", "encoder+features"])
    for name in results.score_names():
        for method, called in zip(results.methods, names_of(results), strict=True):  # as in the table and the costs
            values = (
                method.scores(name),
                method.control_scores(name, "random"),
                method.control_scores(name, "features"),
                method.scores(name, "encoder_features"),
            )
            for trial, *cells in zip(method.trials, *values, strict=True):
                writer.writerow([called, trial.trial, trial.repeat, name, *(_number(value, 6) for value in cells)])
    return out.getvalue()


def _texts(table: SweepTable) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of all forms meant to be read."""
    header = [*(["row"] if table.of_paper else []), "method"]
    for column in table.shown:
        header.append(column.title)
        header += ["paper", "direction"] if column.paper and table.of_paper else []
    lines = []
    for line in (*table.lines, *table.controls):
        cells = [*([str(line.paper.number) if line.paper else ""] if table.of_paper else []), line.name]
        for column in table.shown:
            cells.append(shown(line.scores[column.title]))
            if column.paper and table.of_paper:
                cells.append(f"{line.paper.scores[column.paper]:.3f}" if line.paper else "")
                cells.append((line.marks or {}).get(column.title, ""))
        lines.append(cells)
    return header, lines


def _count(line: Line) -> int:
    return max((int(np.isfinite(values).sum()) for values in line.scores.values()), default=0)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def _latex(text: str) -> str:
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("^", r"\textasciicircum{}"), ("±", r"$\pm$")):
        text = text.replace(plain, escaped)
    return text
