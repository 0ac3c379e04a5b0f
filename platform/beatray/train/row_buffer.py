"""The rows of a stream that were read and are not yet used up, in memory that is used again and again.

A shuffle window keeps thousands of rows for a while, of 120 kB each. Arrays of their own would be mapped, filled and
unmapped for every row group, and would stay whole until their last row is taken; here a row's slot is free for another
as soon as the row has been taken. `RowPool` is that memory; `HeldRows` knows which unit's rows lie where, and keeps
row groups for later epochs where the whole corpus fits. Contract: what is given out are copies; slots are valid until
`free`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.train.blocks import Arrays, Packed
from beatray.train.order import Step, Unit

Slots = NDArray[np.int64]


class RowPool:
    """One array for each name, `capacity` rows long at first; memory that no row has used costs nothing."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._arrays: Arrays = {}
        self._free: list[int] = list(range(capacity - 1, -1, -1))

    def put(self, arrays: Arrays) -> Slots:
        """Copy rows in; returns where they are."""
        count = len(next(iter(arrays.values())))
        if not self._arrays:
            self._arrays = {n: np.empty((self._capacity, *a.shape[1:]), a.dtype) for n, a in arrays.items()}
        if count > len(self._free):
            self._grow(max(count, self._capacity // 2))
        first = len(self._free) - count
        slots = np.array(self._free[first:][::-1], np.int64)
        del self._free[first:]
        for name, values in arrays.items():
            self._arrays[name][slots] = values
        return slots

    def get(self, slots: Slots) -> Arrays:
        """Copies of the rows in the given slots, in that order."""
        return {name: values.take(slots, axis=0) for name, values in self._arrays.items()}

    def free(self, slots: Sequence[int]) -> None:
        """Let other rows have these slots."""
        self._free.extend(slots)

    def _grow(self, more: int) -> None:
        for name, values in self._arrays.items():
            grown = np.empty((self._capacity + more, *values.shape[1:]), values.dtype)
            grown[: self._capacity] = values
            self._arrays[name] = grown
        self._free = list(range(self._capacity + more - 1, self._capacity - 1, -1)) + self._free
        self._capacity += more


class HeldRows:
    """Rows that were read and are not used up; with `keep`, row groups once read serve all later epochs."""

    def __init__(self, capacity: int, *, keep: bool) -> None:
        self._pool, self._keep = RowPool(capacity), keep
        self._slots: dict[int, Slots] = {}  # by unit: where its rows are, -1 for a row that was taken or never came
        self._left: dict[int, int] = {}
        self._kept: dict[int, Slots] = {}
        self._asked_for: set[int] = set()

    def to_read(self, units: Sequence[Unit]) -> list[Unit]:
        """The units that must be read, in order; the others will be here by the time they are needed."""
        if not self._keep:
            return list(units)
        fresh = []
        for unit in units:
            if unit.group not in self._asked_for:
                self._asked_for.add(unit.group)
                fresh.append(unit)
        return fresh

    def __contains__(self, number: int) -> bool:
        """True if the unit's rows are at hand."""
        return number in self._slots

    def reuse(self, unit: Unit) -> bool:
        """True if the rows of the unit's row group were kept; they are at hand now."""
        if unit.group in self._kept:
            self._slots[unit.number], self._left[unit.number] = self._kept[unit.group].copy(), unit.rows_used
        return unit.number in self._slots

    def add(self, unit: Unit, packed: Packed, rows: int) -> None:
        """Take in what was read for a unit of `rows` rows."""
        slots = np.full(rows, -1, np.int64) if packed.fault else self._pool.put(packed.arrays)
        self._slots[unit.number], self._left[unit.number] = slots, unit.rows_used
        if self._keep:
            self._kept[unit.group] = slots.copy()

    def take(self, step: Step) -> tuple[Arrays, NDArray[np.bool_]]:
        """The rows of a step that exist, in its order, and which of its rows these are."""
        slots = np.empty(len(step.unit), np.int64)
        for number in np.unique(step.unit).tolist():
            here = np.flatnonzero(step.unit == number)
            mine, rows = self._slots[number], step.row[here]
            slots[here] = mine[rows]
            mine[rows] = -1
            self._left[number] -= len(here)
            if self._left[number] == 0:
                if not self._keep:
                    self._pool.free(mine[mine >= 0].tolist())  # rows that only other ranks use
                del self._slots[number], self._left[number]
        there = slots >= 0
        arrays = self._pool.get(slots[there])
        if not self._keep:
            self._pool.free(slots[there].tolist())
        return arrays, there
