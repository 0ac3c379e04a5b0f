"""The files of an evaluation: results.json, and its tables as text, markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from beatray.evaluate.detail_tables import class_rows, classes_markdown, wave_rows, waves_markdown
from beatray.evaluate.groups import code_rows, codes_markdown, group_rows, groups_markdown
from beatray.evaluate.names import score_name
from beatray.evaluate.results import MAPS, VALIDATION_AUROC, VARIANTS, Evaluation, plain, write_results
from beatray.evaluate.table import as_markdown, as_rows, as_text, make_table

if TYPE_CHECKING:
    from beatray.corpus.reader import Rows

NAMES = ("results.json", "table.txt", "table.md", "table.json", "classes.md", "waves.md", "groups.md", "codes.md")
"""All there may be, beside the label maps of one run (`MAPS`)."""


def write_tables(evaluation: Evaluation, folder: Path, rows: Rows) -> str:
    """Write the files `NAMES` (those that have content) into `folder`; returns the table as text.

    `rows` are those that were evaluated: ages, sexes, flags and codes come from there.
    """
    for name in (*NAMES, MAPS):  # of an evaluation that this one replaces
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    table, by_class = make_table(evaluation), class_rows(evaluation)
    by_wave, by_group, by_code = wave_rows(evaluation), group_rows(evaluation, rows), code_rows(evaluation, rows)
    content = {
        "rows": as_rows(table),
        "notes": table.notes,
        "classes": [asdict(row) for row in by_class],
        "waves": [asdict(row) for row in by_wave],
        "groups": [asdict(row) for row in by_group],
        "codes": [asdict(row) for row in by_code],
    }
    (folder / "table.json").write_text(json.dumps(plain(content), indent=1))
    if by_class:
        (folder / "classes.md").write_text(classes_markdown(by_class))
    if by_wave:
        (folder / "waves.md").write_text(waves_markdown(by_wave))
    if by_group:
        (folder / "groups.md").write_text(groups_markdown(by_group))
    if by_code:
        (folder / "codes.md").write_text(codes_markdown(by_code))
    (folder / "table.md").write_text(as_markdown(table))
    text = as_text(table)
    (folder / "table.txt").write_text(text)
    write_results(evaluation, folder)
    return text


def table_scores(evaluation: Evaluation) -> Mapping[str, Mapping[str, float]]:
    """The means of the table and of the AUROC on validation records, of one encoder: by variant, by `score_name`."""
    found: dict[str, dict[str, float]] = {}
    for row in make_table(evaluation).rows:
        name = score_name(row.task, row.protocol, row.fraction, row.metric, row.condition)
        for variant in VARIANTS:
            cell = getattr(row, variant)
            if cell is not None and cell[0] == cell[0]:
                found.setdefault(variant, {})[name] = float(cell[0])
    on_validation: dict[tuple[str, str], list[float]] = {}
    for run in evaluation.runs:
        if np.isfinite(run.metrics.get(VALIDATION_AUROC, np.nan)):
            name = score_name(run.task, run.protocol, run.fraction, VALIDATION_AUROC)
            on_validation.setdefault((run.variant, name), []).append(run.metrics[VALIDATION_AUROC])
    for (variant, name), values in on_validation.items():
        found.setdefault(variant, {})[name] = float(np.mean(values))
    return found
