"""`beatray ingest SOURCE=PATH ... --dry-run`: what an ingest would read, without writing anything or starting Ray.

Contract: per location of a source the recordings by format, how many the corpus knows already, what is not listed and
why, and the size that the new rows would take, from a few recordings that are really read. Raises CorpusError as an
ingest would for a wrong path or id key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from beatray.commands.console import say
from beatray.corpus import schema
from beatray.corpus.manifest import latest_number, read_manifest
from beatray.corpus.writer import parquet_bytes
from beatray.dsp import analyse
from beatray.ingest.formats.registry import FORMATS
from beatray.ingest.plan import IngestSettings, id_key_for, known_items, list_items
from beatray.ingest.slices import read_item
from beatray.ingest.sources.registry import Item
from beatray.ingest.tree import open_tree
from beatray.record import Window
from beatray.storage.store import Store

TRIED = 16
"""Recordings of each source that are read to estimate the size."""


def run(settings: IngestSettings) -> int:
    """Show what would be done; always 0, since nothing can be left undone."""
    store = Store(settings.out)
    manifest = read_manifest(store) if latest_number(store) is not None else None
    id_key_for(settings, manifest)
    known = known_items(store, manifest, retry_refused=settings.retry_refused)
    say(f"corpus {settings.out}: " + ("none yet" if manifest is None else f"manifest {manifest.number}"))
    total = 0.0
    for (source, location), (items, unlisted) in list_items(settings).items():
        fresh = [item for item in items if (source, item.name) not in known]
        say(f"{source}={location}")
        say(f"  recordings  {len(items):,} ({_formats(items)})")
        say(f"  known       {len(items) - len(fresh):,} in the corpus or refused before; {len(fresh):,} would be read")
        for other in unlisted:
            say(f"  not listed  {other.detail}")
        if fresh:
            n_bytes, basis = _estimate(location, source, fresh)
            total += n_bytes
            say(f"  size        about {n_bytes / 1e6:,.1f} MB ({basis})")
    say(f"nothing was written; an ingest would add about {total / 1e6:,.1f} MB")
    return 0


def _formats(items: Sequence[Item]) -> str:
    """How many recordings there are of each format."""
    counts = Counter(item.meta.get("format") or _by_suffix(item.path) for item in items)
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _by_suffix(path: str) -> str:
    fits = [entry.name for entry in FORMATS.values() if path.lower().endswith(entry.suffixes)]
    return fits[0] if len(fits) == 1 else "the source's own format"


def _estimate(location: str, source: str, items: Sequence[Item]) -> tuple[float, str]:
    """Bytes of all `items` by those of a few, and a sentence on what came of these."""
    tree = open_tree(location)
    chosen = np.unique(np.linspace(0, len(items) - 1, min(TRIED, len(items))).round().astype(int))
    windows: list[Window] = []
    refused: Counter[str] = Counter()
    for position in chosen:
        read = read_item(tree, source, items[position])
        windows += read.windows
        refused.update(row["reason"] for row in read.refused)
    basis = f"from {len(chosen)} recordings read: {len(windows)} rows"
    if refused:
        basis += ", refused " + ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
    if not windows:
        return 0.0, basis
    measured = analyse.analyse(
        np.stack([window.signal_uv for window in windows]),
        np.array([window.n_samples for window in windows], np.int32),
        np.array([window.lead_mask for window in windows], np.int16),
    )
    n_bytes = len(parquet_bytes(schema.to_table(windows, measured)))
    return n_bytes * len(items) / len(chosen), basis
