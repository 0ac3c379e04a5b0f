"""A corpus in memory, for tests of what reads one: no shard is written."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from beatray.corpus.reader import Rows


class RowsOfCorpus:
    """The part of `corpus.reader.Corpus` that the evaluation uses, over rows in memory."""

    def __init__(self, rows: Rows) -> None:
        self.recipe: dict[str, Any] = {}
        self._rows = rows
        hashes = [hashlib.blake2b(signal.tobytes(), digest_size=16).digest() for signal in rows.signal_uv]
        self.index = pd.DataFrame(
            {
                "record_id": rows.record_id, "patient_id": rows.patient_id, "source": rows.source,
                "fold": rows.fold.astype(int), "content_hash": hashes,
            }
        )  # fmt: skip

    def acquired(self) -> np.ndarray:
        return np.full(len(self._rows), "NaT", "datetime64[s]")

    def rows(self, positions: np.ndarray) -> Rows:
        return self._rows.take(positions)
