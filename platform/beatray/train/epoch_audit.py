"""Verifies, epoch by epoch, that every recording was seen once: none left out, none doubled.

Counted over all ranks: the rows and the sum of their keys modulo 2^64. At the end of an epoch both must be those of the
corpus. The running audit is part of a checkpoint, so the proof holds across restarts and any number of ranks.
Batches carry only 64-bit keys; the way back to record ids, for journals and messages, is here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.corpus.reader import read_row_group
from beatray.errors import CorpusError
from beatray.train.stream_settings import StreamSettings

TWO_64 = 1 << 64


def key_sum(keys: Iterable[int] | NDArray[np.int64]) -> int:
    """Sum of record keys modulo 2^64, as a signed 64-bit number: the order does not matter, every key does."""
    values = np.fromiter(keys, np.int64) if not isinstance(keys, np.ndarray) else keys.astype(np.int64)
    with np.errstate(over="ignore"):
        return int(values.sum(dtype=np.int64))


@dataclass(slots=True)
class EpochAudit:
    """What one epoch has seen so far, over all ranks; `dropped` are rows of shards that could not be read."""

    rows: int = 0
    keys: int = 0
    dropped: int = 0

    def add(self, rows: int, keys: int, dropped: int) -> None:
        """Count one global step."""
        self.rows += rows
        self.keys = signed(self.keys + keys)
        self.dropped += dropped

    def holds(self, rows: int, keys: int) -> bool:
        """True if the epoch saw exactly the corpus: `rows` of them with this sum of keys."""
        if self.rows + self.dropped != rows:
            return False
        return self.dropped > 0 or self.keys == keys


def signed(value: int) -> int:
    """`value` modulo 2^64 as a signed 64-bit number, as an all-reduce of int64 gives it."""
    value %= TWO_64
    return value - TWO_64 if value >= TWO_64 // 2 else value


def difference(seen: Sequence[int], expected: Sequence[int], names: Mapping[int, str], most: int = 20) -> str:
    """As text: which recordings are missing and which came more than once."""
    have, want = Counter(seen), Counter(expected)
    parts = []
    for what, counted in (("missing", want - have), ("seen too often or not asked for", have - want)):
        if counted:
            listed = sorted(names.get(key, f"key {key}") for key in counted)
            more = f" and {len(listed) - most} more" if len(listed) > most else ""
            parts.append(f"{what}: {', '.join(listed[:most])}{more}")
    return "; ".join(parts) or "the same recordings since the last start; the difference lies before it"


def names_by_row_group(stream: StreamSettings) -> list[list[str]]:
    """Record ids of the usable rows of every row group; where a shard cannot be read, the position of the row."""
    found = []
    for group in stream.groups:
        try:
            table = read_row_group(stream.store, group.shard, group.group, ["record_id"])
        except CorpusError:
            found.append([f"row {row} of {group.shard.name}" for row in group.rows])
            continue
        found.append(table["record_id"].take(list(group.rows)).to_pylist())
    return found


def names_of_keys(stream: StreamSettings) -> dict[int, str]:
    """Record id of every key."""
    return {record_key(name): name for names in names_by_row_group(stream) for name in names}
