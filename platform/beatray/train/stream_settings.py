"""Which rows of a corpus one run reads, in which order, and how: what the stream is built from. No Ray here.

Contract: small and picklable; a `RunSpec` carries it to every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beatray.corpus.manifest import Shard
from beatray.storage.store import Store
from beatray.train.order import OrderSettings
from beatray.train.targets import TargetTable

ON_BAD_SHARD = ("stop", "skip")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of the corpus and the rows of it that may be used."""

    shard: Shard
    group: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Where the rows come from and how they are read."""

    store: Store
    groups: tuple[RowGroup, ...]
    order: OrderSettings
    arrays: tuple[str, ...]
    clusters: dict[str, Any] | None = None
    readers: int = 2
    cpus_per_reader: float = 0.25
    chunk_steps: int = 1024
    open_ahead: int = 8  # units left in a chunk when the next one is opened
    cache_mb: int = 1024  # a corpus that fits is read once and kept decoded by every rank
    targets: TargetTable | None = None  # of an objective that learns from labels
    on_bad_shard: str = "stop"  # or skip: go on without its rows, counted

    def __post_init__(self) -> None:
        if self.on_bad_shard not in ON_BAD_SHARD:
            raise ValueError(f"on_bad_shard={self.on_bad_shard} is not one of {', '.join(ON_BAD_SHARD)}")

    @property
    def sizes(self) -> list[int]:
        """Usable rows of each row group."""
        return [len(group.rows) for group in self.groups]
