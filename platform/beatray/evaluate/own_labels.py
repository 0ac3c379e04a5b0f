"""A user's own table as the label space of the classification.

Every column that is not numbers gives classes: a binary one a class of its name, the others a class for each of their
values, called `column=value` where the table has several such columns and `value` where it has one. What a recording's
label is stands only for the columns in which it is known: a class is trained, chosen and scored on those recordings.

Contract: `TableSpace.truth` is (n, c) int8 over the rows of a corpus index: 1 yes, 0 no, `metrics.IGNORE` unknown.
Raises LabelError for a table without a class.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_columns import Column
from beatray.corpus.label_settings import file_name
from beatray.corpus.label_table import Labels
from beatray.errors import LabelError
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.metrics import IGNORE


@dataclass(frozen=True, slots=True)
class TableSpace:
    """The classes of a table and the truth of each row; `notes` state what was read and what was not."""

    title: str
    classes: tuple[str, ...]
    truth: NDArray[np.int8]
    notes: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> TableSpace:
        """The same for the rows at these positions."""
        return TableSpace(self.title, self.classes, self.truth[rows], self.notes)


def table_space(labels: Labels) -> TableSpace:
    """The label space that a table makes."""
    columns = [column for column in labels.targets if column.kind != "numbers"]
    numbers = [column.name for column in labels.targets if column.kind == "numbers"]
    if not columns:
        raise LabelError(
            f"{labels.table.location} has numbers alone ({', '.join(numbers)}), which are no classes: set a condition, "
            f"as 'labels.targets.low={numbers[0]} < 40'"
        )
    several = len(columns) > 1
    classes = [_called(column, name, several) for column in columns for name in column.classes]
    doubled = sorted(name for name, times in Counter(classes).items() if times > 1)
    if doubled:
        raise LabelError(
            f"{labels.table.location} makes two classes called {doubled[0]!r}: rename a column, or leave one out "
            "(labels.columns=[...])"
        )
    truth = np.concatenate([_truth(column) for column in columns], axis=1)
    title = file_name(labels.table.location)
    notes = [
        f"Labels: {labels.table.location} (SHA-256 {labels.table.sha256[:12]}), {labels.rows_known:,} rows of the "
        f"corpus by {labels.key!r}. A class is trained and scored on the recordings whose label is known."
    ]
    notes += [f"{name}: set as {labels.conditions[name].text}." for name in labels.conditions]
    if numbers:
        notes.append(
            f"Numbers are not classified: {', '.join(numbers)} (labels.targets.NAME='{numbers[0]} < 40' does)."
        )
    notes += [f"{each.name} is no label: {each.why}." for each in labels.left_out]
    return TableSpace(title, tuple(classes), truth, tuple(notes))


def with_table(content: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation, as plain content, with those of a table; they choose it as label space."""
    if not given:
        return content
    classify = {"labels": TABLE, **content.get("classify", {})}
    return {**content, "classify": classify, "labels": {**content.get("labels", {}), **given}}


def _called(column: Column, name: str, several: bool) -> str:
    return name if column.kind == "binary" or not several else f"{column.name}={name}"


def _truth(column: Column) -> NDArray[np.int8]:
    return np.where(column.known[:, None], column.values.astype(np.int8), np.int8(IGNORE)).astype(np.int8)
