"""What the keys of a whole table mean in a corpus, and which tables are refused for it.

Whether a key names recordings or patients is set, else follows from the name of its column, else from what fits. A
table whose keys match nothing, could mean two, or come twice with different values is refused with counts and examples,
so that no label lands on the wrong recording in silence. Where patient ids are hashed or were dropped, messages name
rows instead of keys that may be ids.

Contract: `matched` gives the units of the corpus (`label_keys.Units`), the unit of each row of the table, and its key;
`repeated_rows` gives how many rows repeat another one. LabelError and SettingsError name the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.corpus.id_key import RECIPE_KEY, IdKey, read_id_key
from beatray.corpus.label_columns import Column
from beatray.corpus.label_file import Table, TextColumn
from beatray.corpus.label_keys import (
    NOTHING,
    SEVERAL,
    Units,
    examples,
    kind_by_name,
    match,
    patients_of,
    recordings_of,
)
from beatray.corpus.label_settings import LabelSettings
from beatray.errors import LabelError, SettingsError

SHOWN = 3
ZEROS = " (zeros in front of an id, which spreadsheets drop, are part of it)"
TIMES = (
    "if these are values of different times, labels.time=COLUMN and labels.window=30d choose the row nearest to each "
    "recording; else keep one row of each"
)


def matched(
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
    column = table.columns[key]
    private = is_private(settings, index, recipe)
    by_name = kind_by_name(key)
    named = settings.key_kind if settings.key_kind != "auto" else by_name or ("patient" if settings.time else "")
    kinds = (named,) if named else ("recording", "patient")
    fits: list[tuple[Units, NDArray[np.int64], int]] = []
    for kind in kinds:
        units = _without(recordings_of(index) if kind == "recording" else patients_of(index), others)
        if kind == "patient" and named:
            _check_patients(units, settings, recipe)
        hidden = _row_of(column) if _hides(private, kind, key) else None
        id_key = id_key_of(settings, recipe) if kind == "patient" else None
        found = match(column.distinct, units, id_key, hidden)[column.codes]
        fits.append((units, found, int((found != NOTHING).sum())))
    fits.sort(key=lambda fit: -fit[2])
    (units, found, hits), *others_fit = fits
    if others_fit and 10 * others_fit[0][2] >= hits > 0:
        options = " and ".join(f"{fit[0].kind}s in {fit[2]:,}" for fit in fits)
        raise LabelError(
            f"{table.location}: the {table.rows:,} rows of column {key!r} could mean {options} rows: set "
            "labels.key_kind=recording or labels.key_kind=patient"
        )
    return units, found, column.of_rows().tolist()


def _hides(private: bool, kind: str, key: str) -> bool:
    """Whether no message may show a key, since it may be the id of a patient whom the corpus does not show."""
    return private and not (kind == "recording" and kind_by_name(key) == "recording")


def _row_of(column: TextColumn) -> Callable[[int], str]:
    """What stands for a value of the key column in a message."""
    return lambda position: f"of row {int(np.flatnonzero(column.codes == position)[0]) + 1}"


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
            "no recording of the corpus has a patient id (a hospital's own are dropped at ingest without an id key): "
            "use recordings as keys, or ingest again with --id-key-file"
        )
    if recipe.get(RECIPE_KEY) and settings.id_key_file is None:
        raise LabelError(
            f"the patient ids of the corpus are hashed with the id key of fingerprint {recipe[RECIPE_KEY]}: set "
            "labels.id_key_file=PATH, and those of the table are hashed in the same way"
        )


def is_private(settings: LabelSettings, index: pd.DataFrame, recipe: dict[str, Any]) -> bool:
    """Whether patient ids are hashed in the corpus, or were left out of it."""
    hashed = bool(recipe.get(RECIPE_KEY)) or settings.id_key_file is not None
    return hashed or bool(index["patient_id"].isna().all())


def id_key_of(settings: LabelSettings, recipe: dict[str, Any]) -> IdKey | None:
    """The id key that the settings name, if it is the one of the corpus."""
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


def refuse_bad_keys(
    table: Table,
    key: str,
    settings: LabelSettings,
    private: bool,
    units: Units,
    found: NDArray[np.int64],
    keys: Sequence[str],
) -> None:
    """Raise LabelError for keys that no choice can be made for.

    `private`: the corpus does not show whose its recordings are, so no message may show what could be a patient's id.
    """
    hide = _hides(private, units.kind, key)
    some = _some(hide, keys)
    lost, several = np.flatnonzero(found == NOTHING), np.flatnonzero(found == SEVERAL)
    look = "" if hide else f", such as {examples(units)}"
    kind = f"{table.location}: column {key!r} was read as the key of {units.kind}s"
    if len(several):
        raise LabelError(
            f"{kind}, and {len(several):,} of {table.rows:,} rows could mean two of the corpus (e.g. {some(several)}): "
            f"set labels.source=NAME, or write keys as in the corpus{look}"
        )
    if len(lost) == table.rows or (2 * len(lost) > table.rows and settings.unmatched == "refuse"):
        remedy = "set labels.key=COLUMN, or labels.key_kind=recording or patient"
        if units.kind == "patient" or settings.key_kind == "auto":
            remedy += "; patient ids that were dropped or hashed at ingest need labels.id_key_file or another key"
        if len(lost) < table.rows:
            remedy += "; where most are not in the corpus on purpose, labels.unmatched=ignore"
        raise LabelError(
            f"{kind}, and {len(lost):,} of {table.rows:,} rows match nothing (e.g. {some(lost)}), where the corpus has "
            f"{len(units.names):,} {units.kind}s{look}: {remedy}"
        )
    if len(lost) and settings.unmatched == "refuse":
        raise LabelError(
            f"{kind}, and {len(lost):,} of {table.rows:,} rows match nothing in the corpus (e.g. {some(lost)}); if "
            "these are not in it on purpose, set labels.unmatched=ignore"
            f"{ZEROS if units.kind == 'patient' and settings.id_key_file else ''}"
        )


def _some(hide: bool, keys: Sequence[str]) -> Callable[[NDArray[np.int64]], str]:
    """What names a few rows in a message: their keys, or their numbers."""

    def some(rows: NDArray[np.int64]) -> str:
        if hide:
            return f"in rows {', '.join(str(row + 1) for row in rows[:SHOWN])}"
        shown = list(dict.fromkeys(keys[row] or "an empty one" for row in rows[: 50 * SHOWN]))[:SHOWN]
        return ", ".join(shown)

    return some


def repeated_rows(
    table: Table,
    key: str,
    columns: Sequence[Column],
    private: bool,
    units: Units,
    found: NDArray[np.int64],
    keys: Sequence[str],
) -> int:
    """How many rows repeat the values of an earlier row of the same unit; LabelError where their values differ."""
    some = _some(_hides(private, units.kind, key), keys)
    kind = f"{table.location}: column {key!r} was read as the key of {units.kind}s"
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
            who = f"{count:,} {units.kind}{'s have' if count > 1 else ' has'}"
            row, next_row = int(first[differ[0]]), int(second[differ[0]])
            remedy = f"; {TIMES}" if units.kind == "patient" else ": keep one row of each"
            raise LabelError(
                f"{kind}, and {who} rows with different values (e.g. "
                f"{some(first[differ])}: {column.name} is {_shown(column, row)} in row {row + 1} and "
                f"{_shown(column, next_row)} in row {next_row + 1}){remedy}"
            )
    return len(again)


def _shown(column: Column, row: int) -> str:
    """The value of a row as text."""
    if not column.known[row]:
        return "unknown"
    if column.kind == "numbers":
        return f"{column.values[row, 0]:g}"
    if column.kind == "binary":
        return "yes" if column.values[row, 0] else "no"
    return " and ".join(np.array(column.classes)[column.values[row].astype(bool)].tolist()) or "none"
