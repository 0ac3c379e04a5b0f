"""Embeddings at rest: Parquet files of one fixed shape, and `embeddings.json`, which makes them a whole.

    embeddings/
      recording/<shard>.parquet     record_id, source, fold, embedding
      beat/<shard>.parquet          record_id, beat, r_peak, source, fold, embedding
      embeddings.json               the commit, written last: what made them, widths, every file with rows and SHA-256
      staging/<shard>.json          notes of an unfinished run

`embedding` is a fixed-size list of float32, which every Parquet reader knows; `beat` is the beat's position among the
R-peaks of its corpus row, `r_peak` its sample in the window (500 Hz). One file per corpus shard, in the corpus's order.
Contract: bytes are a function of the corpus shard, the encoder and the settings; `read` returns what was written or
raises EmbeddingsError with the name of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beatray.corpus.writer import parquet_bytes
from beatray.storage.store import Store

FORMAT = "beatray-embeddings"
VERSION = 1
LISTING = "embeddings.json"
STAGING = "staging"
LEVELS = ("recording", "beat")
ROWS_PER_GROUP = 8192
AGAIN = "restore it from a copy, or run `beatray embed` again with overwrite=true"


class EmbeddingsError(ValueError):
    """Embeddings that are not there, not finished or damaged; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class VectorFile:
    """One finished file."""

    level: str
    name: str
    shard: str
    shard_sha256: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a finished folder holds. `made_by` holds all that decides the numbers, apart from the corpus."""

    made_by: dict[str, Any]
    corpus: dict[str, Any]
    widths: dict[str, int]
    parts: tuple[VectorFile, ...]

    def rows(self, level: str) -> int:
        """Vectors of one level."""
        return sum(part.rows for part in self.parts if part.level == level)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in memory; everything is indexed by vector."""

    vectors: NDArray[np.float32]  # (n, D)
    record_id: list[str]
    source: list[str]
    fold: NDArray[np.int8]  # -1 where the source publishes none
    beat: NDArray[np.int32] | None = None  # beat level only
    r_peak: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.record_id)


def schema_of(level: str, width: int) -> pa.Schema:
    """The columns of one level."""
    of_beats = [pa.field("beat", pa.int32(), nullable=False), pa.field("r_peak", pa.int32(), nullable=False)]
    return pa.schema(
        [
            pa.field("record_id", pa.string(), nullable=False),
            *(of_beats if level == "beat" else []),
            pa.field("source", pa.string(), nullable=False),
            pa.field("fold", pa.int8()),
            pa.field("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), width), nullable=False),
        ],
        metadata={
            b"beatray.embeddings": f"{FORMAT} {VERSION}, {level} level, {width} x float32".encode(),
            b"beatray.r_peak": b"sample of the corpus window, 500 Hz",
        },
    )


def table_of(level: str, vectors: NDArray[np.float32], columns: dict[str, Any]) -> pa.Table:
    """Vectors (n, D) and the other columns as one table of the level's schema."""
    schema = schema_of(level, vectors.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
    given = {**columns, "embedding": embedding}
    return pa.Table.from_arrays(
        [_as_array(given[name], schema.field(name).type) for name in schema.names], schema=schema
    )


def _as_array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def write_part(store: Store, level: str, shard: str, shard_sha256: str, table: pa.Table) -> VectorFile:
    """Write one file; it appears whole or not at all."""
    name = f"{level}/{shard}"
    data = parquet_bytes(table, ROWS_PER_GROUP)
    store.write(name, data)
    return VectorFile(level, name, shard, shard_sha256, table.num_rows, len(data), hashlib.sha256(data).hexdigest())


def write_note(store: Store, made_by: str, shard: str, parts: Sequence[VectorFile]) -> None:
    """Leave a note that a shard is done, so that an interrupted run continues from there."""
    content = {"made_by": made_by, "parts": [asdict(part) for part in parts]}
    store.write(f"{STAGING}/{shard}.json", json.dumps(content, sort_keys=True).encode())


def read_note(store: Store, made_by: str, shard: str) -> tuple[VectorFile, ...]:
    """The files of a shard that an interrupted run has finished; empty if there are none of this kind."""
    try:
        content = json.loads(store.read(f"{STAGING}/{shard}.json"))
        return tuple(VectorFile(**part) for part in content["parts"]) if content["made_by"] == made_by else ()
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()  # not there or of another version: the shard is simply done again


def is_note(store: Store, name: str) -> bool:
    """Whether a file in `staging` is a note, of whatever run."""
    try:
        return name.endswith(".json") and {"made_by", "parts"} <= set(json.loads(store.read(f"{STAGING}/{name}")))
    except (ValueError, TypeError):
        return False


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 of JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_listing(store: Store, listing: Listing) -> None:
    """Commit, replacing an older listing in one step."""
    content = {"format": FORMAT, "version": VERSION, **asdict(listing)}
    content["parts"] = [asdict(part) for part in listing.parts]
    text = json.dumps({**content, "sha256": digest_of(content)}, indent=1, sort_keys=True, allow_nan=False)
    store.write(LISTING, text.encode())


def read_listing(store: Store) -> Listing:
    """The listing, checked against its own SHA-256; EmbeddingsError where there is none."""
    try:
        content = json.loads(store.read(LISTING))
        claimed = content.pop("sha256")
        whole = digest_of(content) == claimed and content["format"] == FORMAT
        parts = tuple(VectorFile(**part) for part in content["parts"])
        listing = Listing(content["made_by"], content["corpus"], content["widths"], parts)
    except FileNotFoundError as error:
        unfinished = (
            " (an unfinished run lies there: the same `beatray embed` continues it)" if store.names(STAGING) else ""
        )
        raise EmbeddingsError(f"no finished embeddings at {store.where()}{unfinished}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingsError(f"{store.where(LISTING)} is damaged ({error}); {AGAIN}") from error
    if not whole:
        raise EmbeddingsError(f"{store.where(LISTING)} is damaged: its SHA-256 differs; {AGAIN}")
    return listing


def read(path: str, level: str | None = None) -> Embeddings:
    """All vectors of one level (default: recording, or beat where there is nothing else), every file checked.

    Raises EmbeddingsError if there are none, if the level was not made or if a file is damaged.
    """
    store = Store(str(path))
    listing = read_listing(store)
    made = [name for name in LEVELS if name in listing.widths]
    level = made[0] if level is None else level
    if level not in made:
        raise EmbeddingsError(f"{store.where()} holds the level {' and '.join(made)}, not {level!r}")
    tables = [_read_part(store, part, listing.widths[level]) for part in listing.parts if part.level == level]
    table = pa.concat_tables([schema_of(level, listing.widths[level]).empty_table(), *tables]).combine_chunks()
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Embeddings(
        vectors=np.array(flat, np.float32).reshape(-1, listing.widths[level]),
        record_id=table["record_id"].to_pylist(),
        source=table["source"].to_pylist(),
        fold=np.array([-1 if fold is None else fold for fold in table["fold"].to_pylist()], np.int8),
        beat=table["beat"].to_numpy() if level == "beat" else None,
        r_peak=table["r_peak"].to_numpy() if level == "beat" else None,
    )


def _read_part(store: Store, part: VectorFile, width: int) -> pa.Table:
    try:
        data = store.read(part.name)
    except FileNotFoundError as error:
        raise EmbeddingsError(f"{store.where(part.name)} is missing; {AGAIN}") from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise EmbeddingsError(f"{store.where(part.name)} is damaged: its SHA-256 is not the one in {LISTING}; {AGAIN}")
    table = pq.read_table(pa.BufferReader(data))
    return table.select(schema_of(part.level, width).names).cast(schema_of(part.level, width))
