"""The manifest: what a corpus consists of, and the commit that makes it so.

`manifest-<n>.json` names every shard with its rows, row groups, bytes and SHA-256, the recipe by which the rows were
made and the statistics of the whole. It is written last and only if its number is free; readers take the highest
number and see one immutable snapshot. It carries the SHA-256 of its own content, so that a flipped bit is found, and
no clock time, so that the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from beatray.errors import CorpusError
from beatray.storage.store import Store

FORMAT = "beatray-corpus"
NAME = re.compile(r"manifest-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Shard:
    """One immutable Parquet file of the corpus."""

    name: str
    source: str
    rows: int
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str
    footer_bytes: int
    footer_sha256: str
    chunk_crc32: str  # of every column chunk, see corpus.chunks


@dataclass(frozen=True, slots=True)
class Manifest:
    """One snapshot of a corpus."""

    number: int
    recipe: dict[str, Any]
    shards: tuple[Shard, ...]
    quarantine: dict[str, Any]  # name, rows, sha256 of the quarantine table; empty when nothing was refused
    statistics: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def hash(self) -> str:
        """SHA-256 of the content: the identity of this snapshot in runs and checkpoints."""
        return _digest(_content(self))


def _content(manifest: Manifest) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(manifest)}


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def name_of(number: int) -> str:
    """File name of manifest `number`."""
    return f"manifest-{number}.json"


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Commit; FileExistsError if another writer took the number."""
    content = _content(manifest)
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1, sort_keys=True, allow_nan=False)
    store.create(name_of(manifest.number), text.encode())


def latest_number(store: Store) -> int | None:
    """The highest committed number, or None where there is no corpus."""
    numbers = [int(match[1]) for name in store.names() if (match := NAME.fullmatch(name))]
    return max(numbers, default=None)


def read_manifest(store: Store, number: int | None = None) -> Manifest:
    """The snapshot `number` (default: the latest), checked against its own SHA-256."""
    number = latest_number(store) if number is None else number
    if number is None:
        raise CorpusError(f"no corpus at {store.where()}: there is no manifest. Make one with `beatray ingest`.")
    where = store.where(name_of(number))
    try:
        content = json.loads(store.read(name_of(number)))
        claimed = content.pop("sha256")
        if content.pop("format") != FORMAT:
            raise CorpusError(f"{where} is not a {FORMAT} manifest")
        manifest = Manifest(
            number=content["number"],
            recipe=content["recipe"],
            shards=tuple(Shard(**{**s, "row_groups": tuple(s["row_groups"])}) for s in content["shards"]),
            quarantine=content["quarantine"],
            statistics=content["statistics"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(
            f"{where} is damaged, or of another version ({error}): restore it, use an older manifest or ingest again"
        ) from error
    if manifest.hash != claimed or manifest.number != number:
        raise CorpusError(f"{where} is damaged: its content does not match its SHA-256; restore it from a copy")
    return manifest
