"""Rows of many row groups in memory that is used again and again.

A shuffle window keeps thousands of rows for a while, of 120 kB each. Arrays of their own would be mapped, filled and
unmapped for every row group, and would stay whole until their last row is taken; here a row's place is free for another
as soon as the row has been taken. Contract: `get` returns copies; slots are valid until `free`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.train.blocks import Arrays

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
