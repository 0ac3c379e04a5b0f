"""What an ingest will read: the recipe, the recordings the corpus does not know yet, and how they are cut into slices.

No Ray here. Contract: the slices, and their names, are a function of the listed recordings, of what the corpus knows
and of the recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beatray.corpus import schema
from beatray.corpus.id_key import RECIPE_KEY, IdKey, read_id_key
from beatray.corpus.manifest import Manifest
from beatray.corpus.reader import Corpus
from beatray.dsp import features
from beatray.dsp.analyse import DEFAULT, AnalysisSettings, Detector, Hrv, Quality
from beatray.errors import CorpusError
from beatray.ingest.each_record import PART
from beatray.ingest.locations import Locations, each_name_once, locations_of, refuse_shared_paths
from beatray.ingest.member_checks import passed_over_text
from beatray.ingest.patients import other_id_key
from beatray.ingest.sources.registry import SOURCES, Item, Unlisted
from beatray.ingest.tree import Tree, is_remote, open_tree
from beatray.ingest.web_file import is_web, size_of
from beatray.record import LEADS, RATE_HZ, WINDOW_SAMPLES, RecordError
from beatray.storage.store import Store

T = TypeVar("T")

SAMPLE = Path(__file__).parent.parent / "sample"
"""Where the bundled recordings lie: NAME-sample.zip by source."""

VERSION = "2"
"""Changes when the same input would give other rows."""


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """What to read, where to write and how."""

    sources: Mapping[str, Locations]  # source name -> folder, archive or URI, or several of them
    out: str
    detector: Detector = "beatray"  # who finds R-peaks and waves: `analyse.DETECTORS`
    quality: Quality = "beatray"  # whose judgement of the signal becomes flags
    hrv: Hrv = "none"  # measures of heart rate variability among the record features
    items_per_shard: int = (
        1024  # counted in expected rows, so that a task of long recordings is not a hundred times longer
    )
    limit: int | None = None  # at most so many items of each source, evenly spaced
    retry_refused: bool = False  # read recordings again that an earlier ingest refused
    id_key_file: str | None = None  # secret with which patient ids are hashed

    def analysis(self) -> AnalysisSettings:
        """Who measures what."""
        return AnalysisSettings(self.detector, self.quality, self.hrv)


Listed = dict[tuple[str, str], tuple[Sequence[Item], Sequence[Unlisted]]]
"""By source and location: its items, and what of its tree is not listed. A name is there once in a source."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The work of one task."""

    source: str
    location: str
    items: tuple[Item, ...]
    name: str


def recipe_of(settings: IngestSettings, id_key: IdKey | None = None) -> dict[str, Any]:
    """Everything that decides the numbers in a row, apart from the recording itself, and the id key's fingerprint."""
    analysis = settings.analysis()
    more = {"quality": analysis.quality, "hrv": analysis.hrv}  # only where they are chosen: older corpora lack them
    of_key = {} if id_key is None else {RECIPE_KEY: id_key.fingerprint}
    return (
        of_key
        | {key: value for key, value in more.items() if value != getattr(DEFAULT, key)}
        | {
            "schema_version": schema.VERSION,
            "ingest_version": VERSION,
            "rate_hz": RATE_HZ,
            "window_samples": WINDOW_SAMPLES,
            "unit": "1 uV, int16, unfiltered",
            "leads": list(LEADS),
            "resampling": "polyphase, scipy.signal.resample_poly",
            "detector": analysis.detector,
            "dsp_version": analysis.version(),
            "beat_features": list(features.BEAT_FEATURES),
            "record_features": list(analysis.record_features()),
        }
    )


def id_key_for(settings: IngestSettings, manifest: Manifest | None) -> IdKey | None:
    """The id key that the settings name. Raises CorpusError where it cannot be read or is not that of the corpus."""
    id_key = None if settings.id_key_file is None else read_id_key(settings.id_key_file)
    made_with = manifest.recipe.get(RECIPE_KEY) if manifest is not None else None
    if manifest is not None and made_with != (id_key.fingerprint if id_key else None):
        raise CorpusError(other_id_key(settings.out, made_with, id_key))
    return id_key


def list_items(settings: IngestSettings) -> Listed:
    """By source and location: its items, and what of its tree is not listed (links, paths that lead outside, other
    formats, names that another location of the source gives).

    Raises CorpusError that names the source and the location when it cannot be read or holds no recordings, or when two
    locations share a path that is the only name of their recordings.
    """
    found: dict[str, dict[str, tuple[Tree, list[Item], list[Unlisted]]]] = {}
    for source, location in locations_of(settings.sources):
        if source not in SOURCES:
            raise CorpusError(f"unknown source '{source}'; the sources are {', '.join(sorted(SOURCES))}")
        found.setdefault(source, {})[location] = _list_location(source, location)
    listed: Listed = {}
    for source, by_location in found.items():
        trees = [(tree, items) for tree, items, _ in by_location.values()]
        if SOURCES[source].names_are_paths:
            refuse_shared_paths(source, trees)
        once = each_name_once(trees)
        everything = [
            (location, item) for location, (items, _) in zip(by_location, once, strict=True) for item in items
        ]
        chosen: dict[str, list[Item]] = {location: [] for location in by_location}
        for location, item in _spaced(everything, settings.limit):
            chosen[location].append(item)
        for (location, (_, _, unlisted)), (_, elsewhere) in zip(by_location.items(), once, strict=True):
            listed[source, location] = (chosen[location], [*unlisted, *elsewhere])
    return listed


def _list_location(source: str, location: str) -> tuple[Tree, list[Item], list[Unlisted]]:
    """What one location of a source lists. Raises CorpusError."""
    besides = ""
    try:
        tree = open_tree(location)
        besides = passed_over_text(tree.passed_over)
        items = SOURCES[source].find(tree)
        others = SOURCES[source].others
        unlisted = list(others(tree)) if others is not None else []
    except RecordError as error:
        raise CorpusError(f"{source}: {besides}; {error.detail}" if besides else f"{source}: {error.detail}") from error
    except (ValueError, OSError) as error:
        raise CorpusError(f"{source}: {error}") from error
    if not items:
        raise CorpusError(f"{source}={location}: {besides + '; ' if besides else ''}no recordings found")
    unlisted += [Unlisted(cause.reason, count, cause.text(count)) for cause, count in tree.passed_over.items()]
    return tree, items, unlisted


def plan(
    settings: IngestSettings,
    recipe: dict[str, Any],
    listed: Listed,
    known: set[tuple[str, str]],
) -> Iterator[Slice]:
    """The slices of all items that the corpus does not know yet, in source, location and item order; a slice reads
    one location."""
    identity = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=8)
    planned: Counter[str] = Counter()
    for (source, location), (items, _) in listed.items():
        fresh = [item for item in items if (source, item.name) not in known]
        for part in _parts(fresh, settings.items_per_shard):
            number = planned[source]
            planned[source] += 1
            digest = identity.copy()
            for item in part:
                digest.update(f"{item.name}\0{item.path}\0{sorted(item.meta.items())}\0".encode())
            yield Slice(source, location, part, f"{source}-{number:05d}-{digest.hexdigest()}")


def _parts(items: Sequence[Item], rows_per_part: int) -> Iterator[tuple[Item, ...]]:
    """Consecutive items that together give about `rows_per_part` rows; one at least."""
    part: list[Item] = []
    rows = 0
    for item in items:
        if part and rows + item.rows > rows_per_part:
            yield tuple(part)
            part, rows = [], 0
        part.append(item)
        rows += item.rows
    if part:
        yield tuple(part)


def _spaced(items: Sequence[T], limit: int | None) -> Sequence[T]:
    if limit is None or limit >= len(items):
        return items
    return [items[position] for position in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def known_items(store: Store, manifest: Manifest | None, *, retry_refused: bool) -> set[tuple[str, str]]:
    """(source, item) of everything the corpus holds and, unless they are to be tried again, has refused.

    An item whose first recording was refused and a later one kept is not tried again: that one would come twice.
    """
    if manifest is None:
        return set()
    known: set[tuple[str, str]] = set()
    for record_id in Corpus(store, manifest).index["record_id"]:
        source, _, name = str(record_id).partition("#")[0].partition("/")
        known.add((source, name))
    refused = {(row["source"], row["item"]) for row in read_quarantine(store, manifest)}
    in_part = {(source, name.rpartition(PART)[0]) for source, name in known}
    return known | (refused & in_part if retry_refused else refused)


def read_quarantine(store: Store, manifest: Manifest) -> list[dict[str, str]]:
    """The refused recordings of a snapshot: source, item, reason, detail."""
    if not manifest.quarantine:
        return []
    return list(pq.read_table(pa.BufferReader(store.read(manifest.quarantine["name"]))).to_pylist())


def stamp_of(part: Slice) -> str:
    """Path, sizes and times of what a slice reads: the archive, or each item's file and those of WFDB beside it."""
    if is_web(part.location):
        return hashlib.blake2b(f"{part.location}\0{size_of(part.location)}".encode(), digest_size=16).hexdigest()
    if is_remote(part.location):
        store = Store(part.location)
        sizes = [store.size("")] if part.location.partition("?")[0].endswith(".zip") else []
        sizes += [store.size(item.path) for item in part.items] if not sizes else []
        return hashlib.blake2b(f"{part.location}\0{sizes}".encode(), digest_size=16).hexdigest()
    root = Path(part.location.removeprefix("file://"))
    paths = [root]
    if not root.is_file():
        named = dict.fromkeys(root / item.path for item in part.items)  # thousands of recordings can share one file
        paths = [path for name in named for path in (name, *_beside(name))]
    digest = hashlib.blake2b(part.location.encode(), digest_size=16)
    for path in paths:
        try:
            about = path.stat()
            digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
        except OSError:
            digest.update(f"{path}\0-\0".encode())
    return digest.hexdigest()


def _beside(path: Path) -> list[Path]:
    """The signal files that a WFDB header commonly has beside it."""
    if path.suffix.lower() != ".hea":
        return []
    usual = (".dat", ".mat", ".xyz")
    return [path.with_suffix(suffix if path.suffix == ".hea" else suffix.upper()) for suffix in usual]
