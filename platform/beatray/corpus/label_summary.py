"""A table of labels in numbers: what each column was taken for, how often each class is there, and in which split.

Contract: `summary` is plain JSON without NaN and without ids, one count per recording whatever its windows.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.corpus.label_check import findings, one_row_each
from beatray.corpus.label_columns import Column
from beatray.corpus.label_table import Labels
from beatray.corpus.splits import Role

QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def summary(labels: Labels, index: pd.DataFrame, roles: NDArray[np.int8]) -> dict[str, Any]:
    """What was understood, and what is odd (`label_check`)."""
    first = one_row_each(index)
    of_table, rows = labels.table_row[first], np.flatnonzero(first)
    return {
        "table": labels.table.location,
        "sha256": labels.table.sha256,
        "rows": labels.table.rows,
        "key": labels.key,
        "key_kind": labels.key_kind,
        "rows_matched": labels.table.rows - labels.unmatched,
        "rows_unmatched": labels.unmatched,
        "rows_repeated": labels.repeated,
        "times": None if labels.times is None else asdict(labels.times),
        "recordings": len(rows),
        "recordings_in_table": int((of_table >= 0).sum()),
        "columns": [_column(column.take(rows), labels, roles[first]) for column in labels.targets],
        "left_out": {each.name: each.why for each in labels.left_out},
        "findings": [
            {"kind": each.kind, "column": each.column, "text": each.text} for each in findings(labels, index, roles)
        ],
    }


def _column(column: Column, labels: Labels, roles: NDArray[np.int8]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": column.name,
        "type": column.kind,
        "known": int(column.known.sum()),
        "unknown": int((~column.known).sum()),
        "known_by_split": {role.name.lower(): int((column.known & (roles == role)).sum()) for role in Role},
    }
    if column.name in labels.conditions:
        about["condition"] = labels.conditions[column.name].text
    if column.kind == "numbers":
        values = column.values[column.known, 0].astype(np.float64)
        about["different"] = len(np.unique(values))
        about["quartiles"] = [float(q) for q in np.quantile(values, QUARTILES)] if len(values) else []
        return about
    about["classes"] = [
        {
            "name": name,
            "count": int(column.values[:, k].sum()),
            "by_split": {role.name.lower(): int(column.values[roles == role, k].sum()) for role in Role},
        }
        for k, name in enumerate(column.classes)
    ]
    return about
