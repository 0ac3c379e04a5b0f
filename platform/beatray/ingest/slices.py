"""The work of one ingest task: read the recordings of a slice, measure them, write their shard. No Ray here.

Contract: a recording is either in the shard or refused with a reason. The shard and the note about it in `staging/` are
a function of the recordings and of the recipe; only the note says that a slice is done.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from beatray.corpus import schema
from beatray.corpus.store import Store
from beatray.corpus.writer import write_shard
from beatray.dsp import analyse
from beatray.dsp.analyse import Detector
from beatray.ingest.canonical import to_windows
from beatray.ingest.patients import Salt, protect
from beatray.ingest.plan import Slice, stamp_of
from beatray.ingest.sources.registry import SOURCES, Item
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Reason, RecordError, Window

STAGING = "staging"


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What a task leaves: the shard, if anything was kept, and one row per refused recording."""

    shard: dict[str, Any] | None
    refused: list[dict[str, str]] = field(default_factory=list)
    read: int = 0
    stamp: str = ""  # of the files read, so that an interrupted ingest never takes older ones for them
    ids_dropped: int = 0  # recordings whose private patient id was not stored, for want of a salt


def convert_slice(store: Store, part: Slice, detector: Detector, salt: Salt | None = None) -> SliceResult:
    """The task: read every item, measure the windows, write the shard, leave the note."""
    stamp = stamp_of(part)
    tree = open_tree(part.location)
    windows: list[Window] = []
    refused: list[dict[str, str]] = []
    ids_dropped = 0
    for item in part.items:
        try:
            some, dropped = read_item(tree, part.source, item, salt)
            windows += some
            ids_dropped += dropped
        except RecordError as error:
            refused.append(
                {"source": part.source, "item": item.name, "reason": error.reason.value, "detail": error.detail}
            )
        except OSError:
            raise  # a disk or network fault is no property of the recording: Ray tries the slice again
        except Exception as error:  # a fault of the reader must cost one recording, not the ingest
            detail = f"the reader failed: {type(error).__name__} in {_where(error)}"  # its text may quote the file
            refused.append(
                {"source": part.source, "item": item.name, "reason": Reason.READER_FAULT.value, "detail": detail}
            )
    shard = None
    if windows:
        measured = analyse.analyse(
            np.stack([w.signal_uv for w in windows]),
            np.array([w.n_samples for w in windows], np.int32),
            np.array([w.lead_mask for w in windows], np.int16),
            detector=detector,
        )
        written = write_shard(store, f"{part.name}.parquet", part.source, schema.to_table(windows, measured))
        shard = asdict(written)
    result = SliceResult(shard, refused, len(part.items), stamp, ids_dropped)
    store.write(f"{STAGING}/{part.name}.json", json.dumps(asdict(result), sort_keys=True).encode())
    return result


def _where(error: Exception) -> str:
    """File and line where an exception came up, for a report."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def read_item(tree: Tree, source: str, item: Item, salt: Salt | None = None) -> tuple[list[Window], int]:
    """All windows of one item, and how many of its records lost a private patient id for want of a salt.

    RecordError if any part of the item cannot be trusted.
    """
    protected = [protect(record, salt) for record in SOURCES[source].read(tree, item)]
    windows = [window for record, _ in protected for window in to_windows(record)]
    return windows, sum(dropped for _, dropped in protected)
