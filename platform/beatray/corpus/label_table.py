"""The labels of a user's own table, row by row of a corpus.

The table (csv, tsv, Parquet) has one column of keys and others that are labels: yes or no, one class, several classes
in a cell, or numbers. `read_labels` finds out what each column is, finds the recording or the patient that each key
means, and lays the labels beside the rows of the corpus; with times, the rows of a patient label the recordings near
them (`label_times`). An empty cell, and a row of the corpus that the table does not have, is unknown, which is not no.
A table whose keys match nothing, match two recordings, or come twice with different values is refused with counts and
examples; where ids are hashed, rows are named instead of ids.

Contract: a `Labels` holds `targets`, each a `Column` over the n rows of the corpus index: values (n, c) bool, or (n, 1)
float64 with NaN, and `known` (n,). `table_row` (n,) is the row of the table of each corpus row, -1 for none. Raises
LabelError, or SettingsError for a setting that names no column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from beatray.corpus.label_columns import Column, NoLabel, read_column, unknown_values, whole_number
from beatray.corpus.label_file import Table, TextColumn, read_table
from beatray.corpus.label_keys import NOTHING, Units, is_id_name, key_column, owner_column, recordings_of
from beatray.corpus.label_match import id_key_of, is_private, matched, refuse_bad_keys, repeated_rows
from beatray.corpus.label_settings import LabelSettings
from beatray.corpus.label_targets import Condition, parse, target
from beatray.corpus.label_times import TimeCounts, moved, near_rows, read_spans, refuse_missing_window
from beatray.errors import LabelError, SettingsError
from beatray.schema import nearest_to

NAMES = 10
"""So many classes, each of one key alone, may be names."""
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
    times: TimeCounts | None = None
    """Where rows were chosen by time: how many were, and how near."""

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


def read_labels(
    settings: LabelSettings,
    index: pd.DataFrame,
    recipe: dict[str, Any],
    acquired: Callable[[], NDArray[np.datetime64]],
) -> Labels:
    """The labels of the rows of a corpus' `index`; `recipe` is the corpus' own, and `acquired` gives the times of its
    rows, where they are asked for."""
    refuse_missing_window(settings)
    table = read_table(settings.table, settings.encoding)
    key = _named("key", settings.key, table) if settings.key else _key_by_name(list(table.columns), settings)
    owner = _named("patient", settings.patient, table) if settings.patient else owner_column(list(table.columns))
    for name in filter(None, (key, owner)):
        if kind := table.columns[name].other_type:
            raise LabelError(
                f"{table.location}: column {name!r} is read as ids, and its values are {kind}: write them as text, or "
                f"set another column, labels.{'key' if name == key else 'patient'}=COLUMN"
            )
    columns, left_out, conditions = _columns(table, key, settings)
    units, found, keys = matched(table, key, settings, index, recipe)
    private = is_private(settings, index, recipe)
    refuse_bad_keys(table, key, settings, private, units, found, keys)
    times, repeated = None, 0
    if settings.time:
        rows, table_row, times = _by_time(table, key, columns, settings, units, found, index, recipe, acquired())
        targets = tuple(column.take(row) for column, row in zip(columns, rows, strict=True))
    else:
        repeated = repeated_rows(table, key, columns, private, units, found, keys)
        row_of_unit = np.full(len(units.names), NOTHING, np.int64)
        usable = np.flatnonzero(found >= 0)
        row_of_unit[found[usable][::-1]] = usable[::-1]  # the first of equal rows
        table_row = np.where(units.of_row >= 0, row_of_unit[units.of_row], NOTHING)
        targets = tuple(column.take(table_row) for column in columns)
    return Labels(
        table,
        key,
        units.kind,
        targets,
        tuple(left_out),
        conditions,
        table_row,
        int((found < 0).sum()),
        repeated,
        tuple(keys),
        owner if owner != key else None,
        _owners(table.columns[owner], settings) if owner else np.full(table.rows, -1, np.int64),
        times,
    )


def _key_by_name(names: list[str], settings: LabelSettings) -> str:
    """The column that is called like a key; where rows have times, like that of a patient."""
    return (owner_column(names) if settings.time else None) or key_column(names)


def _by_time(
    table: Table,
    key: str,
    columns: Sequence[Column],
    settings: LabelSettings,
    patients: Units,
    found: NDArray[np.int64],
    index: pd.DataFrame,
    recipe: dict[str, Any],
    acquired: NDArray[np.datetime64],
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64], TimeCounts]:
    """For each label the row of the table of each corpus row, the nearest row at all, and the counts."""
    if patients.kind != "patient":
        raise SettingsError(
            f"labels.time is for tables whose key is a patient, and column {key!r} is read as the key of recordings, "
            "each of which has one time: set labels.key=COLUMN, or leave labels.time out"
        )
    spans = read_spans(table, settings)
    id_key = id_key_of(settings, recipe)
    if id_key is not None:
        hashed = [name.partition("/")[2] for name in patients.names]
        spans = moved(spans, found, lambda patient: id_key.moved_by_s(hashed[patient]))
    recordings = recordings_of(index).of_row
    first = np.unique(recordings, return_index=True)[1]
    near, counts = near_rows(table, columns, settings, found, spans, patients.of_row[first], acquired[first])
    return [rows[recordings] for rows in near.of_label], near.of_any[recordings], counts


def _columns(
    table: Table, key: str, settings: LabelSettings
) -> tuple[list[Column], list[NoLabel], dict[str, Condition]]:
    """The labels over the rows of the table, those made by a condition last; what is left out; the conditions."""
    for name in (*settings.columns, *settings.types):
        _named("columns" if name in settings.columns else f"types.{name}", name, table)
    for name in settings.time:
        _named("time", name, table)
    others = [name for name in table.columns if name != key and name not in settings.time]
    ids = [] if settings.columns else [name for name in others if is_id_name(name) or name == settings.patient]
    selected = settings.columns or [name for name in others if name not in ids]
    if key in selected:
        raise SettingsError(f"labels.columns names {key!r}, which is the key; set labels.key=COLUMN if another one is")
    if key in settings.time:
        raise SettingsError(f"labels.time names {key!r}, which is the key; set labels.key=COLUMN if another one is")
    for name in settings.time:
        if name in selected:
            raise SettingsError(f"labels.columns names {name!r}, which is the time of the rows: leave it out of one")
    found = [read_column(name, table.columns[name], settings) for name in selected]
    if not settings.columns:
        found = [_unless_a_name(each, table, key) for each in found]
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


def _unless_a_name(column: Column | NoLabel, table: Table, key: str) -> Column | NoLabel:
    """The column, unless each key has one class of its own in all its rows, as names and second ids have."""
    if isinstance(column, NoLabel) or column.kind != "classes" or len(column.classes) < NAMES:
        return column
    keys, values = table.columns[key].codes[column.known], column.values[column.known].argmax(axis=1)
    pairs = len(np.unique(np.stack([keys, values]), axis=1).T)
    if len(keys) > pairs == len(np.unique(keys)) == len(np.unique(values)):
        return NoLabel(column.name, "a value of its own for each key, as names have (labels.columns names labels)")
    return column


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
