"""The work of one ingest task: read the recordings of a slice, measure them, write their shards. No Ray here.

Contract: a recording is either in a shard or refused with a reason. The shards and the note about it in `staging/` are
a function of the recordings and of the recipe; only the note marks a slice as done.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus import schema
from beatray.corpus.id_key import IdKey
from beatray.corpus.tally import Tally, merge_all, tally_recordings, tally_rows
from beatray.corpus.writer import ShardWriter
from beatray.dsp import analyse
from beatray.dsp.quality import Flag
from beatray.ingest.canonical import WindowFlag
from beatray.ingest.each_record import each_record, part_name, refusal_of
from beatray.ingest.long_record import windows_of
from beatray.ingest.patients import protect
from beatray.ingest.plan import Slice, stamp_of
from beatray.ingest.sources.registry import SOURCES, Item
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Record, RecordError, Window
from beatray.storage.store import Store

if TYPE_CHECKING:
    from beatray.ingest.progress_board import ProgressReporter

STAGING = "staging"
FLAG_NAMES = {flag.value: str(flag.name).lower() for flag in (*Flag, *WindowFlag)}


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What a task leaves: the shards, if anything was kept, their tally, and one row per refused recording."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=dict)
    read: int = 0
    stamp: str = ""  # of the files read, so that an interrupted ingest never takes older ones for them
    ids_dropped: int = 0  # recordings whose private patient id was not stored, since there is no id key


def convert_slice(
    store: Store,
    part: Slice,
    analysis: analyse.AnalysisSettings,
    id_key: IdKey | None = None,
    reporter: ProgressReporter | None = None,
) -> SliceResult:
    """The task: read every item, measure the windows, write shards and note; `reporter` gets the progress."""
    stamp = stamp_of(part)
    tree = open_tree(part.location)
    writer = ShardWriter(store, part.name, part.source)
    windows: list[Window] = []  # of the row group being filled: a slice of long recordings must fit in memory too
    refused: list[dict[str, str]] = []
    tallies: list[Tally] = []
    ids_dropped = 0
    stack = schema.Stack()

    def write_group() -> None:
        group = windows[: schema.ROWS_PER_GROUP]
        del windows[: schema.ROWS_PER_GROUP]
        signals = stack.of(group)
        measured = _measure(group, signals, analysis)
        writer.add_group(schema.to_table(group, measured, signals))
        tallies.append(tally_rows(part.source, group, measured, FLAG_NAMES))

    for number, item in enumerate(part.items, start=1):
        read = read_item(tree, part.source, item, id_key)
        refused += read.refused
        if read.windows:
            tallies.append(read.tally)
        windows += read.windows
        ids_dropped += read.ids_dropped
        while len(windows) >= schema.ROWS_PER_GROUP:
            write_group()
        if reporter is not None:
            reporter.report(number, len(refused))
    if windows:
        write_group()
    shards = [asdict(shard) for shard in writer.finish()]
    result = SliceResult(shards, refused, merge_all(tallies), len(part.items), stamp, ids_dropped)
    store.write(f"{STAGING}/{part.name}.json", json.dumps(asdict(result), sort_keys=True).encode())
    return result


def _measure(windows: list[Window], signals: NDArray[np.int16], settings: analyse.AnalysisSettings) -> analyse.Analysis:
    return analyse.analyse(
        signals,
        np.array([w.n_samples for w in windows], np.int32),
        np.array([w.lead_mask for w in windows], np.int16),
        settings,
    )


@dataclass(slots=True)
class ItemRead:
    """What one item gave: the windows of its recordings and their tally, how many of these lost a private patient id
    since there is no id key, and one row per recording that cannot be trusted."""

    windows: list[Window] = field(default_factory=list)
    tally: Tally = field(default_factory=dict)
    ids_dropped: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)


def read_item(tree: Tree, source: str, item: Item, id_key: IdKey | None = None) -> ItemRead:
    """All recordings of one item, each for itself: one that cannot be trusted is refused and costs no other.

    A fault of the reader is a refusal, too; OSError is raised for a disk or network fault, which is no property of the
    recording: the task is tried again.
    """
    found = ItemRead()
    kept: list[Record] = []
    for number, record in each_record(lambda: SOURCES[source].read(tree, item)):
        try:
            if isinstance(record, RecordError):
                raise record
            protected, dropped = protect(record, id_key)
            found.windows += windows_of(protected)
        except Exception as error:
            why = refusal_of(error)
            row = {"source": source, "item": part_name(item.name, number)}
            found.refused.append({**row, "reason": why.reason.value, "detail": why.detail})
            continue
        kept.append(protected)
        found.ids_dropped += dropped
    found.tally = tally_recordings(source, kept)
    return found
