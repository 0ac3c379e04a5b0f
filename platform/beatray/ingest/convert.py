"""Turns recordings into a corpus with Ray tasks: read, measure, write one shard per slice, commit a manifest.

A slice is a run of items of one source; its shard is a deterministic function of those items and of the recipe, and
so is its name. A finished slice leaves a note in `staging/`, so an interrupted ingest goes on where it stopped; the
manifest is written last. Recordings already in the corpus are not read again; new ones become new shards under the
next manifest. Contract: a recording is either in the corpus or in the quarantine table with a reason, never neither.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from beatray.corpus import schema
from beatray.corpus.manifest import CorpusError, Manifest, Shard, latest_number, read_manifest, write_manifest
from beatray.corpus.reader import Corpus
from beatray.corpus.store import Store
from beatray.corpus.summary import statistics_of, tally_of
from beatray.corpus.tally import Tally, merge_all, tally_recordings, tally_rows
from beatray.corpus.writer import FOLDER, QUARANTINE_SCHEMA, ShardWriter, parquet_bytes
from beatray.dsp import analyse
from beatray.dsp.analyse import Detector
from beatray.dsp.quality import Flag
from beatray.ingest.canonical import WindowFlag
from beatray.ingest.lock import only_ingest
from beatray.ingest.long_record import windows_of
from beatray.ingest.plan import (
    IngestSettings,
    Listed,
    Slice,
    known_items,
    list_items,
    plan,
    read_quarantine,
    recipe_of,
    stamp_of,
)
from beatray.ingest.sources.registry import SOURCES, Item
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Reason, RecordError, Window

STAGING = "staging"
UNLISTED = "(not listed)"
FLAG_NAMES = {flag.value: str(flag.name).lower() for flag in (*Flag, *WindowFlag)}


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What a task leaves: the shards, if anything was kept, their tally, and one row per refused recording."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=dict)
    read: int = 0
    stamp: str = ""  # of the files read, so that an interrupted ingest never takes older ones for them


@dataclass(frozen=True, slots=True)
class Ingested:
    """The committed snapshot, and how many listed recordings it knew before (by source and name)."""

    manifest: Manifest
    known: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest is."""

    done: int
    total: int
    refused: int


def ingest(
    settings: IngestSettings,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    listed: Listed | None = None,
) -> Ingested:
    """Read all sources into the corpus at `settings.out` and commit; `listed` spares listing them again.

    Needs an open Ray session. Raises CorpusError when the corpus there was made by another recipe, when another ingest
    is writing to it, when a source holds no recordings, or when every recording was refused.
    """
    store = Store(settings.out)
    with only_ingest(store):
        return _ingest(store, settings, on_progress, listed)


def _ingest(
    store: Store, settings: IngestSettings, on_progress: Callable[[Progress], None], listed: Listed | None
) -> Ingested:
    recipe = recipe_of(settings)
    before = read_manifest(store) if latest_number(store) is not None else None
    if before and before.recipe != recipe:
        differing = sorted(key for key in recipe if before.recipe.get(key) != recipe[key])
        raise CorpusError(
            f"the corpus at {settings.out} was made by another recipe (different: {', '.join(differing)}). "
            "Choose another --out, or pass --overwrite to make it anew."
        )
    store.clear_temporary(FOLDER)
    store.clear_temporary()
    listed = list_items(settings) if listed is None else listed
    known = known_items(store, before, retry_refused=settings.retry_refused)
    slices = list(plan(settings, recipe, listed, known))
    n_known = sum(len(items) for items, _ in listed.values()) - sum(len(part.items) for part in slices)
    if not slices:
        if before is None:
            raise CorpusError("the sources hold no recordings; nothing was written")
        return Ingested(before, n_known)
    results = _run(store, slices, settings.detector, on_progress)
    unlisted = {source: refused for source, (_, refused) in listed.items() if refused}
    return Ingested(_commit(store, before, recipe, slices, results, unlisted), n_known)


def _run(
    store: Store, slices: list[Slice], detector: Detector, on_progress: Callable[[Progress], None]
) -> dict[str, SliceResult]:
    """Convert the slices with Ray, a bounded number at a time, reusing what an interrupted ingest finished."""
    results: dict[str, SliceResult] = {}
    waiting = []
    for part in slices:
        finished = _staged(store, part)
        if finished:
            results[part.name] = finished
        else:
            waiting.append(part)
    total = sum(len(part.items) for part in slices)
    task = ray.remote(num_cpus=1, max_retries=3, retry_exceptions=[OSError])(convert_slice)
    at_once = max(2 * int(ray.cluster_resources().get("CPU", 1)), 2)
    running: dict[Any, Slice] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            part = waiting.pop(0)
            running[task.remote(store, part, detector)] = part
        done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        for reference in done:
            results[running.pop(reference).name] = ray.get(reference)
        on_progress(
            Progress(sum(r.read for r in results.values()), total, sum(len(r.refused) for r in results.values()))
        )
    return results


def _staged(store: Store, part: Slice) -> SliceResult | None:
    try:
        result = SliceResult(**json.loads(store.read(f"{STAGING}/{part.name}.json")))
    except (OSError, ValueError, TypeError):
        return None  # not there or half written: the slice is simply done again
    if result.stamp != stamp_of(part):
        return None
    whole = all(store.size(f"{FOLDER}/{shard['name']}") == shard["bytes"] for shard in result.shards)
    return result if whole else None


def convert_slice(store: Store, part: Slice, detector: Detector) -> SliceResult:
    """The task: read every item, measure the windows, write the shards, leave the note."""
    stamp = stamp_of(part)
    tree = open_tree(part.location)
    writer = ShardWriter(store, part.name, part.source)
    windows: list[Window] = []  # of the row group being filled: a slice of long recordings must fit in memory too
    refused: list[dict[str, str]] = []
    tallies: list[Tally] = []

    def write_group() -> None:
        group = windows[: schema.ROWS_PER_GROUP]
        del windows[: schema.ROWS_PER_GROUP]
        measured = _measure(group, detector)
        writer.add_group(schema.to_table(group, measured))
        tallies.append(tally_rows(part.source, group, measured, FLAG_NAMES))

    for item in part.items:
        try:
            records, fresh = read_item(tree, part.source, item)
        except RecordError as error:
            refused.append(
                {"source": part.source, "item": item.name, "reason": error.reason.value, "detail": error.detail}
            )
            continue
        except OSError:
            raise  # a disk or network fault is no property of the recording: Ray tries the slice again
        except Exception as error:  # a fault of the reader must cost one recording, not the ingest
            detail = f"the reader failed: {type(error).__name__}: {error}"
            refused.append(
                {"source": part.source, "item": item.name, "reason": Reason.READER_FAULT.value, "detail": detail}
            )
            continue
        tallies.append(records)
        windows += fresh
        while len(windows) >= schema.ROWS_PER_GROUP:
            write_group()
    if windows:
        write_group()
    shards = [asdict(shard) for shard in writer.finish()]
    result = SliceResult(shards, refused, merge_all(tallies), len(part.items), stamp)
    store.write(f"{STAGING}/{part.name}.json", json.dumps(asdict(result), sort_keys=True).encode())
    return result


def _measure(windows: list[Window], detector: Detector) -> analyse.Analysis:
    return analyse.analyse(
        np.stack([w.signal_uv for w in windows]),
        np.array([w.n_samples for w in windows], np.int32),
        np.array([w.lead_mask for w in windows], np.int16),
        detector=detector,
    )


def read_item(tree: Tree, source: str, item: Item) -> tuple[Tally, list[Window]]:
    """The tally and all windows of one item; RecordError if any part of it cannot be trusted."""
    records = list(SOURCES[source].read(tree, item))
    return tally_recordings(source, records), [window for record in records for window in windows_of(record)]


def _commit(
    store: Store,
    before: Manifest | None,
    recipe: dict[str, Any],
    slices: list[Slice],
    results: dict[str, SliceResult],
    unlisted: dict[str, int],
) -> Manifest:
    number = before.number + 1 if before else 0
    fresh = [
        Shard(**{**shard, "row_groups": tuple(shard["row_groups"])})
        for part in slices
        for shard in results[part.name].shards
    ]
    shards = (*(before.shards if before else ()), *fresh)
    if not shards:
        rows = [row for part in slices for row in results[part.name].refused]
        _clear_staging(store, slices)
        examples = "\n".join(f"  {row['item']}: {row['reason']}: {row['detail']}" for row in rows[:5])
        raise CorpusError(f"every recording was refused, there is no corpus; of {len(rows)}, for example:\n{examples}")
    tried = {(part.source, item.name) for part in slices for item in part.items}
    earlier = read_quarantine(store, before) if before else []
    refused = [row for row in earlier if (row["source"], row["item"]) not in tried and row["item"] != UNLISTED]
    refused += [row for part in slices for row in results[part.name].refused]
    for source, count in sorted(unlisted.items()):
        detail = f"{count} entries are links or lead outside the folder or archive and were not read"
        refused.append({"source": source, "item": UNLISTED, "reason": Reason.UNSAFE_PATH.value, "detail": detail})
    quarantine: dict[str, Any] = {}
    if refused:
        data = parquet_bytes(pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA))
        name = f"quarantine-{number}.parquet"  # one per manifest: an older snapshot keeps its own
        store.write(name, data)
        quarantine = {"name": name, "rows": len(refused), "sha256": hashlib.sha256(data).hexdigest()}
    draft = Manifest(number, recipe, shards, quarantine, {})
    tallies = [tally_of(before)] if before else []
    tally = merge_all([*tallies, *(results[part.name].tally for part in slices)])
    statistics = statistics_of(Corpus(store, draft), tally)
    statistics["quarantined"] = len(refused)
    statistics["quarantine_reasons"] = dict(sorted(Counter(row["reason"] for row in refused).items()))
    manifest = Manifest(number, recipe, shards, quarantine, statistics)
    try:
        write_manifest(store, manifest)
    except FileExistsError as error:
        raise CorpusError("another ingest committed meanwhile; run the same command again") from error
    _clear_staging(store, slices)
    return manifest


def _clear_staging(store: Store, slices: list[Slice]) -> None:
    for part in slices:
        store.delete(f"{STAGING}/{part.name}.json")
