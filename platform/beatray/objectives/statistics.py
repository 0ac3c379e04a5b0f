"""What the features of a corpus look like: mean, spread and range of each, for imputation and scaling.

Soft targets compare feature vectors. A feature that could not be measured on one record (NaN) takes the mean over the
corpus, and range-scaled distances need the range; both must be the same on every rank and after a resume, so they
are measured once, stored with the corpus, and handed to the objective.

Contract: arrays are float64 of shape (F,), in the units that the names carry. A feature that was never measured has
mean, spread and range 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Statistics of one kind of feature vectors: names and (F,) arrays."""

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]

    def __post_init__(self) -> None:
        for field in ("mean", "sd", "min", "max"):
            values = getattr(self, field)
            if values.shape != (len(self.names),) or not np.isfinite(values).all():
                raise ValueError(f"{field} must hold one finite number for each of the {len(self.names)} features")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, ready for JSON; floats survive the way there and back."""
        numbers = {field: getattr(self, field).tolist() for field in ("mean", "sd", "min", "max")}
        return {"names": list(self.names), **numbers}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FeatureTable:
        """The table that `to_dict` wrote."""
        numbers = {field: np.asarray(stored[field], np.float64) for field in ("mean", "sd", "min", "max")}
        return cls(tuple(stored["names"]), **numbers)


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Statistics of the record features and of the beat features of one corpus."""

    record: FeatureTable
    beat: FeatureTable

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, ready for JSON."""
        return {"record": self.record.to_dict(), "beat": self.beat.to_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FeatureStatistics:
        """What `to_dict` wrote."""
        return cls(FeatureTable.from_dict(stored["record"]), FeatureTable.from_dict(stored["beat"]))
