"""The labels of a user's own table, row by row of a corpus.

The table (csv, tsv, Parquet) has one column of keys and others that are labels: yes or no, one class, several classes
in a cell, or numbers. `read_labels` finds out what each column is, finds the recording or the patient that each key
means, and lays the labels beside the rows of the corpus. An empty cell, and a row of the corpus that the table does not
have, is unknown, which is not no. A table whose keys match nothing, match two recordings, or come twice with different
values is refused with counts and examples; where ids are hashed, rows are named instead of ids.

Contract: a `Labels` holds `targets`, each a `Column` over the n rows of the corpus index: values (n, c) bool, or (n, 1)
float64 with NaN, and `known` (n,). `table_row` (n,) is the row of the table of each corpus row, -1 for none. Raises
LabelError, or SettingsError for a word that names no column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.corpus.id_key import RECIPE_KEY, IdKey, read_id_key
from beatray.corpus.label_columns import Column, NoLabel, read_column
from beatray.corpus.label_file import Table, read_table
from beatray.corpus.label_keys import (
    NOTHING,
    SEVERAL,
    Units,
    examples,
    is_id_name,
    key_column,
    kinds_by_name,
    match,
    owner_column,
    patients_of,
    recordings_of,
)
from beatray.corpus.label_settings import LabelSettings
from beatray.corpus.label_targets import Condition, parse, target
from beatray.errors import LabelError, SettingsError
from beatray.schema import nearest_to

SHOWN = 3
TIMES = (
    "a corpus keeps no dates of recordings, so rows of one patient cannot be told apart by time: choose the value for "
    "each recording in the table (for example the one nearest to it) and use the recordings as keys"
)


@dataclass(frozen=True, slots=True)
class Labels:
    """What a table says of the rows of a corpus, and what was understood on the way."""

    table: Table
    key: str
    key_kind: str
    targets: tuple[Column, ...]
    left_out: tuple[NoLabel, ...]
    conditions: dict[str, Condition]
    table_row: NDArray[np.int64]
    unmatched: int
    repeated: int
    key_words: tuple[str, ...]
    """The key of each row of the table: never to be shown where ids are hashed."""
    owner: str | None
    """The column that says whose recording a row is."""

    @property
    def rows_known(self) -> int:
        """Rows of the corpus that the table has."""
        return int((self.table_row >= 0).sum())


def read_labels(settings: LabelSettings, index: pd.DataFrame, recipe: dict[str, Any]) -> Labels:
    """The labels of the rows of a corpus' `index`; `recipe` is the corpus' own."""
    table = read_table(settings.table, settings.encoding)
    key = _named("key", settings.key, table) if settings.key else key_column(list(table.columns))
    owner = _named("patient", settings.patient, table) if settings.patient else owner_column(list(table.columns))
    columns, left_out, conditions = _columns(table, key, settings)
    units, found, keys = _matched(table, key, settings, index, recipe)
    repeated = _refuse_bad_keys(table, key, columns, settings, units, found, keys)
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
    )


def _columns(table: Table, key: str, settings: LabelSettings) -> tuple[list[Column], list[NoLabel], dict[str, Condition]]:
    """The labels over the rows of the table, those made by a condition last; what is left out; the conditions."""
    for name in (*settings.columns, *settings.types):
        _named("columns" if name in settings.columns else f"types.{name}", name, table)
    others = [name for name in table.columns if name != key]
    ids = [] if settings.columns else [name for name in others if is_id_name(name) or name == settings.patient]
    wanted = settings.columns or [name for name in others if name not in ids]
    if key in wanted:
        raise SettingsError(f"labels.columns names {key!r}, which is the key; say labels.key=COLUMN if another one is")
    found = [read_column(name, table.columns[name], settings) for name in wanted]
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
            words = table.columns[_named(f"targets.{name}", column, table)]
            numbers = read_column(column, words, settings, "numbers")
            if isinstance(numbers, NoLabel):
                raise LabelError(f"labels.targets.{name} reads column {column!r}, of which {numbers.why}")
            read[column] = numbers
        labels.append(target(name, condition, read))
    if not labels:
        why = "; ".join(f"{each.name}: {each.why}" for each in left_out)
        raise LabelError(f"{table.place} has no column that is a label ({why})")
    return labels, left_out, conditions


def _named(word: str, name: str, table: Table) -> str:
    if name not in table.columns:
        near = nearest_to(name, list(table.columns))
        raise SettingsError(
            f"labels.{word}: {table.place} has no column {name!r}{near} (it has {', '.join(list(table.columns)[:12])})"
        )
    return name


def _matched(
    table: Table, key: str, settings: LabelSettings, index: pd.DataFrame, recipe: dict[str, Any]
) -> tuple[Units, NDArray[np.int64], list[str]]:
    """What the keys mean, the unit of each row of the table, and its key."""
    if settings.source:
        sources = sorted(set(index["source"]))
        if settings.source not in sources:
            raise SettingsError(f"labels.source={settings.source}: the corpus has {', '.join(sources)}")
        others = (index["source"] != settings.source).to_numpy()
    else:
        others = np.zeros(len(index), np.bool_)
    words = table.columns[key]
    by_name = kinds_by_name(key)
    kinds = (settings.key_kind,) if settings.key_kind != "auto" else by_name or ("recording", "patient")
    fits: list[tuple[Units, NDArray[np.int64], int]] = []
    for kind in kinds:
        units = _without(recordings_of(index) if kind == "recording" else patients_of(index), others)
        if kind == "patient" and settings.key_kind == "patient":
            _check_patients(units, settings, recipe)
        found = match(words.distinct, units, _id_key(settings, recipe) if kind == "patient" else None)[words.codes]
        fits.append((units, found, int((found != NOTHING).sum())))
        if fits[-1][2] and by_name:
            break  # its name says what it is, and it is
    fits.sort(key=lambda fit: -fit[2])
    (units, found, hits), *others_fit = fits
    if others_fit and not by_name and 10 * others_fit[0][2] >= hits > 0:
        said = " and ".join(f"{fit[0].kind}s in {fit[2]:,}" for fit in fits)
        raise LabelError(
            f"{table.place}: the {table.rows:,} rows of column {key!r} could mean {said} rows: say labels.key_kind=recording "
            "or labels.key_kind=patient"
        )
    return units, found, words.of_rows().tolist()


def _without(units: Units, rows: NDArray[np.bool_]) -> Units:
    """The units without those of some rows."""
    if not rows.any():
        return units
    of_row = np.where(rows, -1, units.of_row)
    kept = np.unique(of_row[of_row >= 0])
    new = np.full(len(units.names) + 1, -1, np.int64)
    new[kept] = np.arange(len(kept))
    return Units(units.kind, tuple(units.names[k] for k in kept), new[of_row])


def _check_patients(units: Units, settings: LabelSettings, recipe: dict[str, Any]) -> None:
    if not units.names:
        raise LabelError(
            "no recording of the corpus has a patient id (a hospital's own are dropped at ingest without an id key): use "
            "recordings as keys, or ingest again with --id-key-file"
        )
    if recipe.get(RECIPE_KEY) and settings.id_key_file is None:
        raise LabelError(
            f"the patient ids of the corpus are hashed with the id key of fingerprint {recipe[RECIPE_KEY]}: say "
            "labels.id_key_file=PATH, and those of the table are hashed in the same way"
        )


def _id_key(settings: LabelSettings, recipe: dict[str, Any]) -> IdKey | None:
    if settings.id_key_file is None:
        return None
    id_key, made_with = read_id_key(settings.id_key_file, "labels.id_key_file="), recipe.get(RECIPE_KEY)
    if made_with is None:
        raise LabelError("the corpus was made without an id key, its ids are not hashed: leave out labels.id_key_file")
    if made_with != id_key.fingerprint:
        raise LabelError(
            f"the patient ids of the corpus are hashed with the id key of fingerprint {made_with}, "
            f"labels.id_key_file has {id_key.fingerprint}: give the one of the ingest"
        )
    return id_key


def _refuse_bad_keys(
    table: Table,
    key: str,
    columns: Sequence[Column],
    settings: LabelSettings,
    units: Units,
    found: NDArray[np.int64],
    keys: Sequence[str],
) -> int:
    """How many rows repeat another one; raises LabelError for keys that no choice can be made for."""
    hide = settings.id_key_file is not None

    def some(rows: NDArray[np.int64]) -> str:
        if hide:
            return f"in rows {', '.join(str(row + 1) for row in rows[:SHOWN])}"
        shown = list(dict.fromkeys(keys[row] or "an empty one" for row in rows[: 50 * SHOWN]))[:SHOWN]
        return ", ".join(shown)

    lost, several = np.flatnonzero(found == NOTHING), np.flatnonzero(found == SEVERAL)
    look = "" if hide else f", such as {examples(units)}"
    kind = f"{table.place}: column {key!r} was read as the key of {'recordings' if units.kind == 'recording' else 'patients'}"
    if len(several):
        raise LabelError(
            f"{kind}, and {len(several):,} of {table.rows:,} rows could mean two of the corpus (e.g. {some(several)}): say "
            f"labels.source=NAME, or write keys as in the corpus{look}"
        )
    if len(lost) == table.rows or (2 * len(lost) > table.rows and settings.unmatched == "refuse"):
        remedy = "say labels.key=COLUMN, or labels.key_kind=recording or patient"
        if units.kind == "patient" or settings.key_kind == "auto":
            remedy += "; patient ids that were dropped or hashed at ingest need labels.id_key_file or another key"
        raise LabelError(
            f"{kind}, and {len(lost):,} of {table.rows:,} rows match nothing (e.g. {some(lost)}), where the corpus has "
            f"{len(units.names):,} {units.kind}s{look}: {remedy}"
        )
    if len(lost) and settings.unmatched == "refuse":
        raise LabelError(
            f"{kind}, and {len(lost):,} of {table.rows:,} rows match nothing in the corpus (e.g. {some(lost)}); if these "
            "are not in it on purpose, say labels.unmatched=ignore"
        )
    return _repeated(columns, kind, units, found, some)


def _repeated(columns: Sequence[Column], kind: str, units: Units, found: NDArray[np.int64], some: Any) -> int:
    """How many rows say once more what an earlier row of the same unit says; LabelError where they say otherwise."""
    matched = np.flatnonzero(found >= 0)
    order = matched[np.argsort(found[matched], kind="stable")]
    again = np.flatnonzero(np.diff(found[order]) == 0)
    first, second = order[again], order[again + 1]
    for column in columns:
        one, other = column.values[first], column.values[second]
        same = ((one == other) | ((one != one) & (other != other))).all(axis=1)
        differ = np.flatnonzero(~same | (column.known[first] != column.known[second]))
        if len(differ):
            count = len(np.unique(found[first[differ]]))
            row, next_row = int(first[differ[0]]), int(second[differ[0]])
            remedy = f"; {TIMES}" if units.kind == "patient" else ": keep one row of each"
            raise LabelError(
                f"{kind}, and {count:,} {units.kind}{'s have' if count > 1 else ' has'} rows with different values (e.g. "
                f"{some(first[differ])}: {column.name} is {_shown(column, row)} in row {row + 1} and "
                f"{_shown(column, next_row)} in row {next_row + 1}){remedy}"
            )
    return len(again)


def _shown(column: Column, row: int) -> str:
    """The value of a row in words."""
    if not column.known[row]:
        return "unknown"
    if column.kind == "numbers":
        return f"{column.values[row, 0]:g}"
    if column.kind == "binary":
        return "yes" if column.values[row, 0] else "no"
    return " and ".join(np.array(column.classes)[column.values[row].astype(bool)].tolist()) or "none"
