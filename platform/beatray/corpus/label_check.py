"""What is odd about a table of labels, before anything is trained on it.

Every check looks for one mistake that has been made with such tables: a column that never varies, a column that is
another one over again (copied, its classes renamed, its rows shuffled), a column that is an id, a number that gives a
target away, a class that a split has too little of, spellings that make two classes of one, a patient in two splits.

Contract: one entry per recording, whatever its windows; `roles` are those of `splits.assign_roles`. Findings are
sentences with a remedy; none holds an id. Nothing here changes a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from beatray.corpus.label_columns import Column
from beatray.corpus.label_table import Labels
from beatray.corpus.splits import Role
from beatray.errors import LabelError

FEW = 10
"""Recordings with and without a class below which a split shows little of it."""
LEAST = 5
"""Of each kind, before a perfect separation is reported."""
SAME = 0.9
"""Share of values that equal the key from which on a column is taken for it."""
IN_ORDER = 0.999
"""Rank correlation with the key from which on a column is taken for a running number."""
DISTINCT = 50
"""So many values, all different and whole, look like ids."""

Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Finding:
    """One oddity: what kind of it, in which column, in one sentence."""

    kind: str
    column: str
    text: str


def findings(labels: Labels, index: pd.DataFrame, roles: NDArray[np.int8]) -> list[Finding]:
    """All that is odd, by kind."""
    rows = one_row_each(index) & (labels.table_row >= 0)
    columns = [column.take(np.flatnonzero(rows)) for column in labels.targets]
    return [
        *_patients(labels, index, roles, rows),
        *_constant(columns),
        *_again(columns, labels),
        *_ids(columns, labels, rows),
        *_giving_away(columns, labels),
        *_spellings(columns),
        *_few(columns, roles[rows]),
    ]


def one_row_each(index: pd.DataFrame) -> Rows:
    """The first row of every recording."""
    return np.asarray(~index["record_id"].str.partition("#")[0].duplicated(), np.bool_)


def patients_in_two_splits(labels: Labels, index: pd.DataFrame, roles: NDArray[np.int8]) -> int:
    """How many patients, by the table's own column, have labelled recordings in two splits."""
    rows = one_row_each(index) & (labels.table_row >= 0)
    parts = pd.DataFrame({"owner": labels.owner_of_row[labels.table_row[rows]], "role": roles[rows]})
    parts = parts[parts["owner"] >= 0]
    return int((parts.groupby("owner")["role"].nunique() > 1).sum())


def in_two_splits(count: int, labels: Labels) -> str:
    """The sentence on these patients, with the remedy."""
    return (
        f"{count:,} patients of column {labels.owner!r} have recordings in two splits, because the corpus does not "
        "know them: ingest again with their ids (columns: {patient: ...} of a recordings.yaml, or --id-key-file)"
    )


def refuse_patients_in_two_splits(labels: Labels, index: pd.DataFrame, roles: NDArray[np.int8]) -> None:
    """Raise LabelError where the table's own column of patients shows one in two splits."""
    if shared := patients_in_two_splits(labels, index, roles):
        raise LabelError(f"{labels.table.location}: {in_two_splits(shared, labels)}. Scores would be too good")


def _patients(labels: Labels, index: pd.DataFrame, roles: NDArray[np.int8], rows: Rows) -> Iterator[Finding]:
    """Splits are by patient where the corpus knows them; the table may know better."""
    if labels.owner is not None:
        several = patients_in_two_splits(labels, index, roles)
        if several:
            yield Finding("patients", labels.owner, in_two_splits(several, labels))
        return
    nameless = int(index["patient_id"][rows].isna().sum())
    if nameless:
        yield Finding(
            "patients",
            "",
            f"{nameless:,} labelled recordings have no patient id in the corpus, so one patient may lie in two splits: "
            "labels.patient=COLUMN names the patients, --id-key-file at ingest keeps ids",
        )


def _constant(columns: list[Column]) -> Iterator[Finding]:
    for column in columns:
        if column.known.any() and _n_values(column) == 1:
            yield Finding("constant", column.name, f"{column.name} has the same value in all recordings that are known")


def _again(columns: list[Column], labels: Labels) -> Iterator[Finding]:
    """Copies, copies under other names of the classes, and numbers in another order."""
    same: dict[bytes, Column] = {}
    shuffled: dict[bytes, Column] = {}
    for column in columns:
        if _n_values(column) < 2:
            continue
        codes = _codes(column)[column.known]
        if column.kind == "numbers":  # without repetition all columns of numbers have one pattern of repetition
            codes = np.round((codes - codes.mean()) / codes.std(), 9) + 0.0
        else:
            codes = pd.factorize(codes)[0].astype(np.float64)
        pattern = column.known.tobytes() + codes.tobytes()
        first = same.setdefault(pattern, column)
        if first is not column:
            if not _made_of(first, column, labels):
                equal = first.kind == column.kind and np.array_equal(first.values, column.values, equal_nan=True)
                how = "is the same as" if equal else "is, under other names of its values, the same as"
                yield Finding("copied", column.name, f"{column.name} {how} {first.name}: one of the two is enough")
            continue
        if column.kind == "numbers" and _n_values(column) > FEW:
            pool = np.sort(column.values[column.known, 0]).tobytes()
            first = shuffled.setdefault(pool, column)
            if first is not column:
                text = f"{column.name} holds the values of {first.name} in another order: was it sorted by itself?"
                yield Finding("permuted", column.name, text)


def _ids(columns: list[Column], labels: Labels, rows: Rows) -> Iterator[Finding]:
    """Numbers that are the key, run with it, or are all different."""
    keys = [labels.key_values[row] for row in labels.table_row[rows]]
    digits = [re.search(r"(\d{1,15})(?:\.0+)?$", key) for key in keys]
    numbers = np.array([float(found[1]) if found else np.nan for found in digits])
    for column in columns:
        if column.kind != "numbers":
            continue
        known = column.known & ~np.isnan(numbers)
        values = column.values[known, 0]
        if len(values) > FEW and np.mean(values == numbers[known]) >= SAME:
            yield Finding("id", column.name, f"{column.name} equals the key: it is an id, not a label")
        elif (
            len(values) > FEW and _n_values(column) > FEW and abs(_rank_correlation(values, numbers[known])) >= IN_ORDER
        ):
            yield Finding("id", column.name, f"{column.name} runs in the order of the key: is it a running number?")
        elif column.known.sum() >= DISTINCT and _n_values(column) == column.known.sum() and _whole(column):
            yield Finding("id", column.name, f"every value of {column.name} is another whole number: is it an id?")


def _giving_away(columns: list[Column], labels: Labels) -> Iterator[Finding]:
    """Numbers that alone separate a class without a mistake."""
    for number in columns:
        if number.kind != "numbers":
            continue
        for column in columns:
            if column.kind == "numbers" or _made_of(number, column, labels):
                continue
            both = number.known & column.known
            for k, name in enumerate(column.classes):
                truth = column.values[both, k].astype(bool)
                if min(truth.sum(), (~truth).sum()) < LEAST:
                    continue
                area = auroc(truth, number.values[both, 0].astype(np.float64))
                if area in (0.0, 1.0):
                    label = name if name == column.name else f"{column.name}={name}"
                    yield Finding(
                        "leak",
                        number.name,
                        f"{number.name} alone separates {label} without a mistake (AUROC {area:g}): leave one out",
                    )


def _spellings(columns: list[Column]) -> Iterator[Finding]:
    for column in columns:
        lower: dict[str, list[str]] = {}
        for name in column.classes:
            lower.setdefault(re.sub(r"\W+", "", name.lower()) or name, []).append(name)
        for names in lower.values():
            if len(names) > 1:
                yield Finding("spelling", column.name, f"{column.name} has {' and '.join(names)}: are these one class?")


def _few(columns: list[Column], roles: NDArray[np.int8]) -> Iterator[Finding]:
    for column in columns:
        if _n_values(column) < 2:
            continue  # it is reported as constant
        for role in Role:
            here = column.known & (roles == role)
            split = role.name.lower()
            if not here.any():
                yield Finding("few", column.name, f"{column.name} is known for no recording of the {split} split")
                continue
            if column.kind == "numbers":
                if here.sum() < FEW:
                    yield Finding("few", column.name, f"{column.name} is known for {here.sum()} recordings of {split}")
                continue
            positive = column.values[here].sum(axis=0)
            for name, count in zip(column.classes, positive.tolist(), strict=True):
                least = min(count, int(here.sum()) - count)
                if least < FEW:
                    what = "with" if least == count else "without"
                    label = name if name == column.name else f"{column.name}={name}"
                    yield Finding("few", column.name, f"{label}: {least:.0f} recordings {what} it in the {split} split")


def auroc(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve, ties counted half; both kinds must be there."""
    positives = int(truth.sum())
    ranks = float(rankdata(score)[truth].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(truth) - positives))


def _made_of(one: Column, other: Column, labels: Labels) -> bool:
    """Whether one is a condition on the other."""
    pairs = ((one.name, other.name), (other.name, one.name))
    return any(made in labels.conditions and of in labels.conditions[made].columns for made, of in pairs)


def _codes(column: Column) -> NDArray[np.float64]:
    """One number per row for what the label is there."""
    if column.values.shape[1] == 1:
        return column.values[:, 0].astype(np.float64)
    return np.unique(column.values, axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)


def _n_values(column: Column) -> int:
    return len(np.unique(_codes(column)[column.known]))


def _whole(column: Column) -> bool:
    values = column.values[column.known, 0].astype(np.float64)
    return bool((values == np.round(values)).all())


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    a, b = rankdata(x), rankdata(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
