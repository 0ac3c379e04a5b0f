"""Statistics of a corpus: what `corpus show` prints and what objectives need to scale features.

Contract: `statistics_of` is a function of the shards' merged tally and of the shards, in manifest order; plain JSON
without NaN. It reads two light columns of every shard and beat features of a bounded number of row groups.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.corpus.clusters import fit_clusters
from beatray.corpus.manifest import Manifest
from beatray.corpus.reader import Corpus
from beatray.corpus.schema import beat_features_of
from beatray.corpus.splits import of_one_person
from beatray.corpus.tally import Tally
from beatray.dsp.features import BEAT_FEATURES
from beatray.record import BLANK, RATE_HZ

CLUSTER_GROUPS = 128
"""Row groups, evenly spaced over the corpus, whose beats the clusters are fitted on."""


def statistics_of(corpus: Corpus, tally: Tally) -> dict[str, Any]:
    """The manifest's description of the whole corpus."""
    sources = tally["sources"]
    flags: Counter[str] = Counter()
    for about in sources.values():
        flags.update(about["flags"])
    totals = {key: sum(about[key] for about in sources.values()) for key in ("recordings", "rows", "beats", "samples")}
    return {
        "recordings": totals["recordings"],
        "rows": totals["rows"],
        **_identities(corpus),
        "beats": totals["beats"],
        "hours": round(totals["samples"] / RATE_HZ / 3600, 4),
        "by_source": {source: about["recordings"] for source, about in sources.items()},
        "flags": dict(sorted(flags.items())),
        "beat_clusters": fit_clusters(_some_beats(corpus), BEAT_FEATURES),
        **tally,
    }


def tally_of(manifest: Manifest) -> Tally:
    """The tally that a manifest's statistics hold, to be merged with that of new shards."""
    return {key: manifest.statistics[key] for key in ("sources", "record_features", "beat_features")}


def _identities(corpus: Corpus) -> dict[str, int]:
    """Distinct patients (a recording without one counts as its own), and rows whose signal is that of another row.

    Both are kept as 64-bit digests: those of ten million rows take 160 MB.
    """
    patients: list[NDArray[np.uint64]] = []
    signals: list[NDArray[np.uint64]] = []
    for shard in corpus.manifest.shards:
        table = corpus.columns(shard, ["record_id", "patient_id", "content_hash"])
        people = of_one_person(pd.Series(table["record_id"].to_pylist(), dtype=object))
        names = zip(table["patient_id"].to_pylist(), people, strict=True)
        digests = {_digest(patient or person) for patient, person in names}
        patients.append(np.fromiter(digests, np.uint64, len(digests)))
        hashes = b"".join(each for each in table["content_hash"].to_pylist() if each != BLANK)
        signals.append(np.frombuffer(hashes, "<u8").reshape(-1, 2)[:, 0])
    if not patients:
        return {"patients": 0, "duplicates": 0}
    _, counts = np.unique(np.concatenate(signals), return_counts=True)
    return {"patients": len(np.unique(np.concatenate(patients))), "duplicates": int(counts[counts > 1].sum())}


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _some_beats(corpus: Corpus) -> NDArray[np.float32]:
    positions = [
        (number, group) for number, s in enumerate(corpus.manifest.shards) for group in range(len(s.row_groups))
    ]
    step = -(-len(positions) // CLUSTER_GROUPS) or 1
    tables = [corpus.row_group(*position, ["beat_features"]) for position in positions[::step]]
    parts = [beat_features_of(raw) for table in tables for raw in table["beat_features"].to_pylist()]
    return np.concatenate(parts) if parts else np.empty((0, len(BEAT_FEATURES)), np.float32)


def show(manifest: Manifest) -> dict[str, Any]:
    """The public summary of a corpus, as `corpus show --json` prints it."""
    keys = (
        *("recordings", "quarantined", "patients", "duplicates", "beats", "hours", "by_source", "quarantine_reasons"),
        *("flags", "sources"),
    )
    return {
        **{key: manifest.statistics[key] for key in keys},
        "rows": manifest.rows,
        "manifest": manifest.number,
        "manifest_hash": manifest.hash,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "recipe": manifest.recipe,
    }
