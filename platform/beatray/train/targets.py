"""The targets of recordings: one row of targets for each recording that has any, found by its record key.

Labels are no columns of a corpus: they come from a label space, from marked waves or from a user's own table. So
they travel beside the stream's settings, and a reader lays them beside the rows it reads, as one more array.

Contract: `keys` (n,) int64 are sorted and each occurs once; `values` (n, ...) have any type. A recording that is not in
the table gets `nothing` throughout: -1 for classes and masks, NaN for numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TargetTable:
    """Targets by record key; see the module text."""

    keys: NDArray[np.int64]
    values: NDArray[Any]
    nothing: float = -1

    @classmethod
    def of(cls, keys: NDArray[np.int64], values: NDArray[Any], nothing: float = -1) -> TargetTable:
        """A table from keys in any order. ValueError for a key that occurs twice."""
        unique, first = np.unique(keys, return_index=True)
        if len(unique) != len(keys):
            raise ValueError(f"{len(keys) - len(unique)} record keys occur twice")
        return cls(unique, np.ascontiguousarray(values[first]), nothing)

    def rows(self, keys: NDArray[np.int64]) -> NDArray[Any]:
        """The targets of the recordings with these keys: (B,) -> (B, ...)."""
        found: NDArray[Any] = np.full((len(keys), *self.values.shape[1:]), self.nothing, self.values.dtype)
        if len(self.keys):
            position = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            there = self.keys[position] == keys
            found[there] = self.values[position[there]]
        return found

    def sha256(self) -> str:
        """Equal for equal targets of the same recordings: what a run that is continued must find again."""
        shape = f"{self.values.dtype.str}{self.values.shape}{self.nothing}".encode()
        return hashlib.sha256(shape + self.keys.tobytes() + self.values.tobytes()).hexdigest()
