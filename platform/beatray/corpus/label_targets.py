"""Yes or no out of numbers: `lvef < 40`, `age >= 18 and lvef < 40`.

A condition is comparisons of a column with a number (<, <=, >, >=, ==, !=), joined by `and` and `or`, where `and`
binds tighter; there are no brackets, and nothing is ever evaluated as a program. What is unknown stays unknown, by the
three-valued logic of Kleene: `and` is no where one side is known to be no, `or` is yes where one side is known to be
yes, and else both sides must be known.

Contract: `parse` raises LabelError with the name of the target; `holds` gives (n,) bool and what of it is known.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_columns import Column
from beatray.errors import LabelError

Truth = NDArray[np.bool_]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
GRAMMAR = "COLUMN < NUMBER, with <, <=, >, >=, == or !=, and such comparisons joined by and, or"

_COMPARISON = re.compile(
    r"\s*(?P<column>.+?)\s*(?P<sign><=|>=|==|!=|<|>)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column against a number."""

    column: str
    sign: str
    number: float


@dataclass(frozen=True, slots=True)
class Condition:
    """Comparisons, joined by `and` within a tuple and by `or` between them."""

    text: str
    either: tuple[tuple[Comparison, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, each once."""
        return tuple(dict.fromkeys(each.column for some in self.either for each in some))


def parse(name: str, text: str) -> Condition:
    """The condition that a target is defined by."""
    either = []
    for some in re.split(r"\s+or\s+", text.strip()):
        found = []
        for each in re.split(r"\s+and\s+", some):
            match = _COMPARISON.fullmatch(each)
            if match is None or any(sign in match["column"] for sign in "<>=!"):
                raise LabelError(f"labels.targets.{name}: {each.strip()!r} is no comparison; write {GRAMMAR}")
            found.append(Comparison(match["column"], match["sign"], float(match["number"])))
        either.append(tuple(found))
    return Condition(text.strip(), tuple(either))


def target(name: str, condition: Condition, columns: Mapping[str, Column]) -> Column:
    """The binary label that a condition makes of columns of numbers, or of 0 and 1."""
    truth, known = holds(condition, columns)
    return Column(name, "binary", (name,), truth[:, None], known)


def holds(condition: Condition, columns: Mapping[str, Column]) -> tuple[Truth, Truth]:
    """Where the condition is known to hold, and where it is known whether it does."""
    yes, known = _all_of([_compared(each, columns) for each in condition.either[0]])
    for some in condition.either[1:]:
        also, also_known = _all_of([_compared(each, columns) for each in some])
        known = (known & also_known) | yes | also
        yes = yes | also
    return yes, known


def _all_of(sides: list[tuple[Truth, Truth]]) -> tuple[Truth, Truth]:
    yes, known = sides[0]
    for also, also_known in sides[1:]:
        known = (known & also_known) | (known & ~yes) | (also_known & ~also)
        yes = yes & also
    return yes, known


def _compared(comparison: Comparison, columns: Mapping[str, Column]) -> tuple[Truth, Truth]:
    column = columns[comparison.column]
    with np.errstate(invalid="ignore"):
        yes = OPERATORS[comparison.sign](column.values[:, 0].astype(np.float64), comparison.number)
    return np.asarray(yes & column.known, np.bool_), column.known
