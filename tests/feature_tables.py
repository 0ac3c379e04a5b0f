"""Feature statistics of any values, the way a corpus measures them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from beatray.corpus.tally import describe
from beatray.objectives.statistics import FeatureTable


def table_of(names: Sequence[str], values: ArrayLike) -> FeatureTable:
    """Statistics of values (n, F), NaN where missing."""
    return FeatureTable.from_dict(describe(np.asarray(values, np.float32).reshape(-1, len(names)), tuple(names)))
