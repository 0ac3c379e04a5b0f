"""What the values of a column mean: yes or no, one class, several classes, or a number.

The guess is made from the distinct values alone, in this order: 0/1, true/false, yes/no is binary; a separator (bar or
semicolon, or the one that was set) in at least one cell makes several labels; numbers are numbers, with a decimal
point or a decimal comma; few values that come again are classes. Dates, free text, structs, bytes and empty columns
are no labels. What is nearly numbers, or numbers in two ways of writing, is refused: a wrong reading would cost more
than a question.

Contract: `read_column` gives a Column, or NoLabel with the reason where the kind was not set; it raises LabelError
with the column, a count, an example and a remedy. Unknown cells are masked, never read as no.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_file import TextColumn
from beatray.corpus.label_parquet import IN_LISTS
from beatray.corpus.label_settings import UNKNOWN, LabelSettings
from beatray.errors import LabelError

MAX_CLASSES = 50
"""More distinct values than these are taken for free text, unless they are set to be classes."""
MOST_CLASSES = 2000
MANY_ROWS = 20
"""From so many known rows on, values most of which come once are free text."""
SEPARATORS = ("|", ";")

YES = ("1", "true", "yes", "y")
NO = ("0", "false", "no", "n")

_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d+,\d+")
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_WHOLE_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")
_WHOLE = re.compile(r"(0|[1-9]\d*)(\.0)?")
_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4})"
    r"|\d{1,2}[-. ]+[A-Za-z]{3,4}([-. ]+(\d{2}|\d{4}))?|[A-Za-z]{3,4}[-. ]+\d{2,4})"
    r"([T ]\d{1,2}:\d{2}.*)?"
)


@dataclass(frozen=True, slots=True)
class Column:
    """One label over n rows. `values` is (n, len(classes)) bool, or (n, 1) float64 for numbers; `known` (n,) bool.

    Where it is not known, values are False, or NaN. A binary column has one class, called as the column.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    values: NDArray[np.bool_] | NDArray[np.float64]
    known: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> Column:
        """The label of other rows: `rows` are positions, -1 where there is none, which is unknown."""
        there = rows >= 0
        known = there & self.known[rows]
        values = self.values[rows].copy()
        values[~known] = np.nan if self.kind == "numbers" else False
        return Column(self.name, self.kind, self.classes, values, known)


@dataclass(frozen=True, slots=True)
class NoLabel:
    """A column that is left out, and why."""

    name: str
    why: str


def read_column(name: str, column: TextColumn, settings: LabelSettings, kind: str | None = None) -> Column | NoLabel:
    """The label that a column is; `kind` overrides the guess."""
    if column.other_type:
        return NoLabel(name, f"its values are {column.other_type}, neither text nor numbers")
    set_kind = kind or settings.types.get(name)
    unknown = unknown_values(settings)
    numbers = {_number_of(value) for value in unknown if _is_one_number(value)}
    is_known = np.array(
        [
            value.lower() not in unknown and not (numbers and _is_one_number(value) and _number_of(value) in numbers)
            for value in column.distinct
        ],
        np.bool_,
    )
    counts = np.bincount(column.codes, minlength=len(column.distinct))
    seen = [value for value, known, count in zip(column.distinct, is_known, counts, strict=True) if known and count]
    if not seen:
        return NoLabel(name, "no row has a value")
    known = is_known[column.codes]
    guess = set_kind or _guess(name, seen, int(known.sum()), settings)
    if isinstance(guess, NoLabel):
        return guess
    if guess == "numbers":
        table = np.array(
            [_number_of(w) if k else np.nan for w, k in _numbers(name, column, is_known, seen)], np.float64
        )
        return Column(name, guess, (), table[column.codes][:, None], known)
    if guess == "binary":
        wrong = [value for value in seen if _truth(value) is None]
        if wrong:
            raise LabelError(f"column {name!r} is no binary one: {_some(wrong)}; set labels.types.{name}=classes")
        truth = np.array([bool(k and _truth(w)) for w, k in zip(column.distinct, is_known, strict=True)], np.bool_)
        return Column(name, guess, (name,), truth[column.codes][:, None], known)
    separator = _separator(name, seen, settings) if guess == "multilabel" else ""
    parts = [_parts(value, separator) if k else () for value, k in zip(column.distinct, is_known, strict=True)]
    _refuse_doubtful_values(name, column, parts, unknown, settings)
    if all(_WHOLE.fullmatch(part) for each in parts for part in each):  # numbers as a spreadsheet writes them
        parts = [tuple(dict.fromkeys(whole_number(part) for part in each)) for each in parts]
    classes = tuple(sorted({part for each in parts for part in each}))
    if len(classes) > MOST_CLASSES:
        raise LabelError(f"column {name!r} has {len(classes):,} classes, more than {MOST_CLASSES:,}: is it text?")
    number = {each: position for position, each in enumerate(classes)}
    hot = np.zeros((len(parts), len(classes)), np.bool_)
    for row, each in enumerate(parts):
        hot[row, [number[part] for part in each]] = True
    return Column(name, guess, classes, hot[column.codes], known)


def unknown_values(settings: LabelSettings) -> set[str]:
    """What a cell holds, in lower case, where nothing is known."""
    return {"", *(value.strip().lower() for value in settings.unknown)}


def whole_number(value: str) -> str:
    """1234 for 1234, 1234.0 and 01234: the one spelling of a whole number; any other value as it is."""
    if not value[:1].isdigit() or not value.isascii():
        return value
    digits = _WHOLE_NUMBER.fullmatch(value)
    return digits[1] if digits else value


def _guess(name: str, seen: Sequence[str], n_known: int, settings: LabelSettings) -> str | NoLabel:
    if all(_truth(value) is not None for value in seen):
        return "binary"
    if settings.separator and any(settings.separator in value for value in seen):
        return "multilabel"  # before numbers: 1,2 is none where the comma was said to separate labels
    numbers = [value for value in seen if _is_number(value)]
    separators = (settings.separator,) if settings.separator else SEPARATORS
    if len(numbers) == len(seen):
        return "numbers"
    dates = [value for value in seen if _DATE.fullmatch(value) and not _is_number(value)]
    if len(dates) == len(seen):
        return NoLabel(name, "dates")
    if 2 * len(numbers) > len(seen):
        wrong = [value for value in seen if not _is_number(value)]
        for mark in (IN_LISTS, *separators):
            if all(mark in value and all(map(_is_number, _parts(value, mark))) for value in wrong):
                return "multilabel"  # codes, some rows with several
        raise LabelError(
            f"column {name!r} holds numbers and {_some(wrong)}: make these empty where they mean unknown, or set "
            f"labels.types.{name}=classes if the numbers are codes"
        )
    for mark in (IN_LISTS, *separators):
        if any(mark in value for value in seen):
            parts = {part for value in seen for part in _parts(value, mark)}
            if mark == IN_LISTS or not _is_text(len(parts), n_known):
                return "multilabel"
    if _is_text(len(seen), n_known):
        return NoLabel(
            name, f"free text, {len(seen):,} different values (labels.types.{name}=classes if they are classes)"
        )
    return "classes"


def _is_text(n_values: int, n_known: int) -> bool:
    return n_values > MAX_CLASSES or (n_known >= MANY_ROWS and 2 * n_values > n_known)


def _separator(name: str, seen: Sequence[str], settings: LabelSettings) -> str:
    if any(IN_LISTS in value for value in seen):
        return IN_LISTS
    if settings.separator:
        return settings.separator
    found = [mark for mark in SEPARATORS if any(mark in value for value in seen)]
    if len(found) > 1:
        raise LabelError(f"column {name!r} holds both | and ;: set the one between labels, labels.separator='|'")
    return found[0] if found else SEPARATORS[0]


def _parts(value: str, separator: str) -> tuple[str, ...]:
    """The labels of a cell; a separator alone gives none."""
    pieces = value.split(separator) if separator else [value]
    return tuple(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))


def _refuse_doubtful_values(
    name: str, column: TextColumn, parts: Sequence[Sequence[str]], unknown: set[str], settings: LabelSettings
) -> None:
    """Among classes, none may be one of them; and what is unknown cannot stand beside what is known."""
    mixed = [value for value, each in zip(column.distinct, parts, strict=True) if {p.lower() for p in each} & unknown]
    if mixed:
        raise LabelError(
            f"column {name!r}: {mixed[0]!r} holds a value for unknown beside a class: make such cells empty, or set "
            "labels.unknown=[...] without that value"
        )
    if settings.unknown == UNKNOWN and any(value.lower() == "none" for value in column.distinct):
        raise LabelError(
            f"column {name!r} has classes and the value none, which may be one of them or mean unknown: set "
            "labels.unknown=[NA] or labels.unknown=[NA,none]"
        )


def _truth(value: str) -> bool | None:
    plain = whole_number(value.lower())
    return True if plain in YES else False if plain in NO else None


def _is_number(value: str) -> bool:
    return bool(_POINT.fullmatch(value) or _COMMA.fullmatch(value) or _GROUPS.fullmatch(value))


def _is_one_number(value: str) -> bool:
    """A number as `_number_of` reads it: several commas separate thousands, which is refused."""
    return _is_number(value) and value.count(",") < 2


def _number_of(value: str) -> float:
    return float(value.replace(",", "."))


def _numbers(
    name: str, column: TextColumn, is_known: NDArray[np.bool_], seen: Sequence[str]
) -> Sequence[tuple[str, bool]]:
    """The values and whether they are known, once they are numbers in one way of writing."""
    wrong = [value for value in seen if not _is_number(value)]
    if wrong:
        raise LabelError(f"column {name!r} is set to hold numbers, and holds {_some(wrong)}: make these empty")
    with_comma = [value for value in seen if "," in value]
    with_point = [value for value in seen if "." in value]
    if with_comma and with_point:
        raise LabelError(
            f"column {name!r} has numbers with a comma ({with_comma[0]}) and with a point ({with_point[0]}): write all "
            "of them one way"
        )
    if with_comma and (all(map(_GROUPS.fullmatch, with_comma)) or any(value.count(",") > 1 for value in with_comma)):
        grouped = next((value for value in with_comma if value.count(",") > 1), None)
        if grouped is not None:
            raise LabelError(f"column {name!r}: write {grouped.replace(',', '')} instead of {grouped}")
        raise LabelError(
            f"column {name!r}: {with_comma[0]} may be a thousand or a fraction; write {with_comma[0].replace(',', '')} "
            f"or {with_comma[0].replace(',', '.')}"
        )
    infinite = [value for value in seen if not np.isfinite(_number_of(value))]
    if infinite:
        raise LabelError(f"column {name!r} holds {_some(infinite)}, which is larger than any number: make it empty")
    return list(zip(column.distinct, is_known.tolist(), strict=True))


def _some(values: Sequence[str]) -> str:
    """How many other values, and up to three of them."""
    shown = ", ".join(repr(value[:30]) for value in values[:3])
    return f"{len(values):,} other value{'s' if len(values) > 1 else ''} ({shown}{', ...' if len(values) > 3 else ''})"
