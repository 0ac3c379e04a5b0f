"""Turns recordings into a corpus with Ray tasks: read, measure, write one shard per slice, commit a manifest.

A slice is a run of items of one source; its shard is a deterministic function of those items and of the recipe, and
so is its name. A finished slice leaves a note in `staging/`, so an interrupted ingest continues where it stopped; the
manifest is written last. Recordings already in the corpus are not read again; new ones become new shards under the
next manifest. Contract: a recording is either in the corpus or in the quarantine table with a reason, never neither.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from beatray.corpus.id_key import IdKey
from beatray.corpus.manifest import Manifest, Shard, latest_number, read_manifest, write_manifest
from beatray.corpus.reader import Corpus
from beatray.corpus.summary import statistics_of, tally_of
from beatray.corpus.tally import merge_all
from beatray.corpus.writer import FOLDER, QUARANTINE_SCHEMA, parquet_bytes
from beatray.dsp.analyse import AnalysisSettings
from beatray.errors import CorpusError
from beatray.ingest.lock import only_ingest
from beatray.ingest.plan import (
    IngestSettings,
    Listed,
    Slice,
    id_key_for,
    known_items,
    list_items,
    plan,
    read_quarantine,
    recipe_of,
    stamp_of,
)
from beatray.ingest.progress_board import ProgressReader
from beatray.ingest.slices import STAGING, SliceResult, convert_slice
from beatray.storage.store import Store

UNLISTED = "(not listed)"
WORTH_TELLING = 256
"""Rows of an ingest that takes long enough to be watched: below, no actor is started for that."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """The committed snapshot; how many listed recordings it knew before (by source and name), and how many lost a
    private patient id since there is no id key."""

    manifest: Manifest
    known: int
    ids_dropped: int = 0


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
    before = read_manifest(store) if latest_number(store) is not None else None
    id_key = id_key_for(settings, before)
    recipe = recipe_of(settings, id_key)
    if before and before.recipe != recipe:
        differing = sorted(key for key in {*recipe, *before.recipe} if before.recipe.get(key) != recipe.get(key))
        raise CorpusError(
            f"the corpus at {settings.out} was made by another recipe (different: {', '.join(differing)}). "
            "Choose another --out, or pass --overwrite to make it anew."
        )
    for below in (FOLDER, STAGING, ""):  # what a killed ingest was writing
        store.clear_temporary(below)
    if before:
        _clear_committed(store, before)
    listed = list_items(settings) if listed is None else listed
    known = known_items(store, before, retry_refused=settings.retry_refused)
    slices = list(plan(settings, recipe, listed, known))
    n_known = sum(len(items) for items, _ in listed.values()) - sum(len(part.items) for part in slices)
    if not slices:
        if before is None:
            raise CorpusError("the sources hold no recordings; nothing was written")
        return Ingested(before, n_known)
    results = _run(store, slices, settings.analysis(), id_key, on_progress)
    ids_dropped = sum(result.ids_dropped for result in results.values())
    return Ingested(_commit(store, before, recipe, slices, results, listed), n_known, ids_dropped)


def _run(
    store: Store,
    slices: list[Slice],
    analysis: AnalysisSettings,
    id_key: IdKey | None,
    on_progress: Callable[[Progress], None],
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
    worth_it = sum(item.rows for part in waiting for item in part.items) >= WORTH_TELLING
    reader = ProgressReader() if worth_it else None
    task = ray.remote(num_cpus=1, max_retries=3, retry_exceptions=[OSError])(convert_slice)
    at_once = max(2 * int(ray.cluster_resources().get("CPU", 1)), 2)
    running: dict[Any, Slice] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            part = waiting.pop(0)
            reporter = None if reader is None else reader.reporter(part.name)
            running[task.remote(store, part, analysis, id_key, reporter)] = part
        done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        for reference in done:
            results[running.pop(reference).name] = ray.get(reference)
        read, refused = (0, 0) if reader is None else reader.counts(part.name for part in running.values())
        read += sum(result.read for result in results.values())
        on_progress(Progress(read, total, refused + sum(len(result.refused) for result in results.values())))
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


def _commit(
    store: Store,
    before: Manifest | None,
    recipe: dict[str, Any],
    slices: list[Slice],
    results: dict[str, SliceResult],
    listed: Listed,
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
    tried |= _files_that_open(earlier, listed)
    sources = {source for source, _ in listed}
    refused = [row for row in earlier if not _is_decided_anew(row, tried, sources)]
    refused += [row for part in slices for row in results[part.name].refused]
    refused += [
        {"source": source, "item": UNLISTED, "reason": other.reason.value, "detail": other.detail}
        for (source, _), (_, others) in listed.items()
        for other in others
    ]
    quarantine: dict[str, Any] = {}
    if refused:
        data = parquet_bytes(pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA))
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"quarantine-{number}-{sha256[:8]}.parquet"  # of this manifest alone, also where two are made at once
        store.write(name, data)
        quarantine = {"name": name, "rows": len(refused), "sha256": sha256}
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


def _files_that_open(refused: Sequence[Mapping[str, str]], listed: Listed) -> set[tuple[str, str]]:
    """Of what was refused earlier, by source, the files that give recordings now: such a file had one refusal for all
    it holds, and its recordings have names of their own."""
    names = {(source, item.name) for (source, _), (items, _) in listed.items() for item in items}
    files = {(row["source"], row["item"]) for row in refused} - names
    last_parts = {(source, name.rpartition("/")[2]) for source, name in files}
    paths = {
        (source, item.path)
        for (source, _), (items, _) in listed.items()
        for item in items
        if "refused" not in item.meta and (source, item.path.rpartition("/")[2]) in last_parts
    }
    return {
        (source, name)
        for source, name in files
        if any(of == source and f"/{path}".endswith(f"/{name}") for of, path in paths)
    }


def _is_decided_anew(row: Mapping[str, str], tried: Collection[tuple[str, str]], listed: Collection[str]) -> bool:
    """Whether an earlier refusal is of what this ingest has tried (or of another rhythm of that file), or counts what
    was not listed of a source that has been listed again."""
    if row["item"] == UNLISTED:
        return row["source"] in listed
    file = re.sub(r"/rhythm-\d+$", "", row["item"])
    return (row["source"], row["item"]) in tried or (row["source"], file) in tried


def _clear_committed(store: Store, manifest: Manifest) -> None:
    """Remove the notes of slices that are in the manifest: an ingest that was killed after its commit left them."""
    committed = {shard.name for shard in manifest.shards}
    for name in store.names(STAGING):
        try:
            shards = json.loads(store.read(f"{STAGING}/{name}"))["shards"]
            in_manifest = committed.issuperset(shard["name"] for shard in shards)
        except (ValueError, KeyError, TypeError):
            in_manifest = True  # half written: of no use to anybody
        if in_manifest:
            store.delete(f"{STAGING}/{name}")


def _clear_staging(store: Store, slices: list[Slice]) -> None:
    for part in slices:
        store.delete(f"{STAGING}/{part.name}.json")
