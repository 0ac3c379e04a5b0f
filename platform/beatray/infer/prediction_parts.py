"""Predictions for a part of the recordings, at rest until the run ends: one file for each shard or slice.

A part file is the SHA-256 of an Arrow stream and the stream, which names what it was made by and of: an interrupted run
continues from there and takes nothing that is damaged or would be different now. Contract: `read_part` gives what
`write_part` was given, or None.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from beatray.infer.windows import Part
from beatray.infer.worker import packed, unpacked
from beatray.storage.store import Store

SUFFIX = ".part"
_ABOUT = b"beatray.part"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of a part's windows (predictor.py), and what was refused of it."""

    answers: pa.Table
    refused: list[dict[str, str]]


def write_part(store: Store, folder: str, made_by: str, part: Part, answered: Answered) -> None:
    """Keep the answers of a part."""
    about = {"made_by": made_by, "stamp": part.stamp, "refused": answered.refused}
    data = packed(answered.answers.replace_schema_metadata({_ABOUT: json.dumps(about)}))
    store.write(_name(folder, part), hashlib.sha256(data).digest() + data)


def read_part(store: Store, folder: str, made_by: str, part: Part) -> Answered | None:
    """The answers of a part that are there already; None where there are none, or damaged, or of something else."""
    try:
        content = store.read(_name(folder, part))
    except FileNotFoundError:
        return None
    data = content[_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != content[:_DIGEST_BYTES]:
        return None
    table = unpacked(data)
    about = json.loads(table.schema.metadata[_ABOUT])
    if about["made_by"] != made_by or about["stamp"] != part.stamp:
        return None
    return Answered(table.replace_schema_metadata(None), about["refused"])


def any_part(store: Store, folder: str) -> bool:
    """Whether some part is there, of whatever recordings."""
    return any(name.endswith(SUFFIX) for name in store.names(folder))


def joined(parts: Sequence[Answered]) -> Answered:
    """All parts as one, in order."""
    tables = [part.answers for part in parts]
    return Answered(pa.concat_tables(tables), [row for part in parts for row in part.refused])


def _name(folder: str, part: Part) -> str:
    return f"{folder}/{part.name}{SUFFIX}"
