"""The labels of a user's own table, row by row of a corpus.

The table (csv, tsv, Parquet) has one column of keys and others that are labels: yes or no, one class, several classes
in a cell, or numbers. `read_labels` finds out what each column is, finds the recording or the patient that each key
means, and lays the labels beside the rows of the corpus. An empty cell, and a row of the corpus that the table does not
have, is unknown, which is not no. A table whose keys match nothing, match two recordings, or come twice with different
values is refused with counts and examples; where ids are hashed, rows are named instead of ids.

Contract: a `Labels` holds `targets`, each a `Column` over the n rows of the corpus index: values (n, c) bool, or (n, 1)
float64 with NaN, and `known` (n,). `table_row` (n,) is the row of the table of each corpus row, -1 for none. Raises
LabelError, or SettingsError for a setting that names no column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from beatray.corpus.label_columns import Column, NoLabel, read_column, unknown_values, whole_number
from beatray.corpus.label_file import Table, TextColumn, read_table
from beatray.corpus.label_keys import NOTHING, is_id_name, key_column, owner_column
from beatray.corpus.label_match import is_private, matched, refuse_bad_keys
from beatray.corpus.label_settings import LabelSettings
from beatray.corpus.label_targets import Condition, parse, target
from beatray.errors import LabelError, SettingsError
from beatray.schema import nearest_to

OF_TABLE = "table/"
"""How the name of a patient begins whom the table alone knows."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels that a table gives the rows of a corpus, and how it was read."""

    table: Table
    key: str
    key_kind: str
    targets: tuple[Column, ...]
    left_out: tuple[NoLabel, ...]
    conditions: dict[str, Condition]
    table_row: NDArray[np.int64]
    unmatched: int
    repeated: int
    key_values: tuple[str, ...]
    """The key of each row of the table: never to be shown where ids are hashed."""
    owner: str | None
    """The column that names the patient of a row."""
    owner_of_row: NDArray[np.int64]
    """That patient's number in each row of the table, -1 where it is not given."""

    def owners(self, rows: NDArray[np.int64], known: Sequence[str | None]) -> list[str | None]:
        """Whose the corpus rows at these positions are: the patients that the corpus knows, else those of the table.

        Rows that either ties together are one patient's, so that no patient counts as two where the corpus knows one
        recording alone.
        """
        of_table = self.table_row[rows]
        own = np.where(of_table >= 0, self.owner_of_row[of_table], -1)
        called = [
            [*([patient] if patient else []), *([f"{OF_TABLE}{number}"] if number >= 0 else [])]
            for patient, number in zip(known, own.tolist(), strict=True)
        ]
        # the corpus' own names come first, so that a group is called by one of them where it has one
        names = sorted({name for each in called for name in each}, key=lambda name: (name.startswith(OF_TABLE), name))
        number_of = {name: len(rows) + number for number, name in enumerate(names)}
        ties = [(row, number_of[name]) for row, each in enumerate(called) for name in each]
        size = len(rows) + len(names)
        one, other = np.array(ties, np.int64).reshape(-1, 2).T
        graph = coo_array((np.ones(len(ties), np.int8), (one, other)), shape=(size, size))
        groups = connected_components(graph, directed=False)[1].tolist() if size else []
        first = {groups[len(rows) + number]: name for number, name in reversed(list(enumerate(names)))}
        return [first.get(group) for group in groups[: len(rows)]]

    @property
    def rows_known(self) -> int:
        """Rows of the corpus that the table has."""
        return int((self.table_row >= 0).sum())


def read_labels(settings: LabelSettings, index: pd.DataFrame, recipe: dict[str, Any]) -> Labels:
    """The labels of the rows of a corpus' `index`; `recipe` is the corpus' own."""
    table = read_table(settings.table, settings.encoding)
    key = _named("key", settings.key, table) if settings.key else key_column(list(table.columns))
    owner = _named("patient", settings.patient, table) if settings.patient else owner_column(list(table.columns))
    for name in filter(None, (key, owner)):
        if kind := table.columns[name].other_type:
            raise LabelError(
                f"{table.location}: column {name!r} is read as ids, and its values are {kind}: write them as text, or "
                f"set another column, labels.{'key' if name == key else 'patient'}=COLUMN"
            )
    columns, left_out, conditions = _columns(table, key, settings)
    units, found, keys = matched(table, key, settings, index, recipe)
    repeated = refuse_bad_keys(table, key, columns, settings, is_private(settings, index, recipe), units, found, keys)
    row_of_unit = np.full(len(units.names), NOTHING, np.int64)
    usable = np.flatnonzero(found >= 0)
    row_of_unit[found[usable][::-1]] = usable[::-1]  # the first of equal rows
    table_row = np.where(units.of_row >= 0, row_of_unit[units.of_row], NOTHING)
    return Labels(
        table,
        key,
        units.kind,
        tuple(column.take(table_row) for column in columns),
        tuple(left_out),
        conditions,
        table_row,
        int((found < 0).sum()),
        repeated,
        tuple(keys),
        owner if owner != key else None,
        _owners(table.columns[owner], settings) if owner else np.full(table.rows, -1, np.int64),
    )


def _columns(
    table: Table, key: str, settings: LabelSettings
) -> tuple[list[Column], list[NoLabel], dict[str, Condition]]:
    """The labels over the rows of the table, those made by a condition last; what is left out; the conditions."""
    for name in (*settings.columns, *settings.types):
        _named("columns" if name in settings.columns else f"types.{name}", name, table)
    others = [name for name in table.columns if name != key]
    ids = [] if settings.columns else [name for name in others if is_id_name(name) or name == settings.patient]
    selected = settings.columns or [name for name in others if name not in ids]
    if key in selected:
        raise SettingsError(f"labels.columns names {key!r}, which is the key; set labels.key=COLUMN if another one is")
    found = [read_column(name, table.columns[name], settings) for name in selected]
    labels = [each for each in found if isinstance(each, Column)]
    left_out = [each for each in found if isinstance(each, NoLabel)]
    left_out += [NoLabel(name, "an id by its name (labels.columns names labels)") for name in ids]
    if left_out and settings.columns:
        raise LabelError(f"column {left_out[0].name!r} is no label: {left_out[0].why}")
    conditions = {name: parse(name, text) for name, text in settings.targets.items()}
    for name, condition in conditions.items():
        if name in table.columns:
            raise SettingsError(f"labels.targets.{name} has the name of a column; choose another one")
        read = {}
        for column in condition.columns:
            texts = table.columns[_named(f"targets.{name}", column, table)]
            numbers = read_column(column, texts, settings, "numbers")
            if isinstance(numbers, NoLabel):
                raise LabelError(f"labels.targets.{name} reads column {column!r}, of which {numbers.why}")
            read[column] = numbers
        labels.append(target(name, condition, read))
    if not labels:
        why = "; ".join(f"{each.name}: {each.why}" for each in left_out)
        raise LabelError(f"{table.location} has no column that is a label ({why})")
    return labels, left_out, conditions


def _owners(column: TextColumn, settings: LabelSettings) -> NDArray[np.int64]:
    unknown = unknown_values(settings)
    numbers: dict[str, int] = {}
    of_value = [
        -1 if value.lower() in unknown else numbers.setdefault(whole_number(value), len(numbers))
        for value in column.distinct
    ]
    return np.array(of_value, np.int64)[column.codes]


def _named(key: str, name: str, table: Table) -> str:
    if name not in table.columns:
        near = nearest_to(name, list(table.columns))
        raise SettingsError(
            f"labels.{key}: {table.location} has no column {name!r}{near} "
            f"(it has {', '.join(list(table.columns)[:12])})"
        )
    return name
