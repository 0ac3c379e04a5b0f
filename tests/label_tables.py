"""A corpus' index in memory and tables of labels beside it, for the tests of label tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from beatray.corpus.label_settings import label_settings, split_label_overrides
from beatray.corpus.label_table import Labels, read_labels

RECORDS = (
    *("ptbxl/00001", "ptbxl/00002", "ptbxl/00017", "ludb/1", "ludb/90"),
    *("files/ward a/ecg1", "files/ward b/ecg1", "files/smith.2024", "mine/long#0", "mine/long#1"),
)
PATIENTS = ("ptbxl/15709", "ptbxl/15709", "ptbxl/200", "ludb/1", "ludb/90", None, None, None, "mine/p7", "mine/p7")


def index_of(records: Sequence[str] = RECORDS, patients: Sequence[str | None] = PATIENTS) -> pd.DataFrame:
    """The columns of a corpus index that keys and splits read."""
    return pd.DataFrame(
        {
            "record_id": list(records),
            "patient_id": pd.Series(list(patients), dtype=object),
            "source": [name.partition("/")[0] for name in records],
            "fold": [number % 10 + 1 if name.startswith("ptbxl") else -1 for number, name in enumerate(records)],
            "content_hash": [bytes([number % 256, number // 256]) for number in range(len(records))],
        }
    )


def many(n: int, source: str = "mine") -> pd.DataFrame:
    """n recordings of as many patients, called 1 to n, of ten folds."""
    index = index_of([f"{source}/{k + 1}" for k in range(n)], [f"{source}/p{k + 1}" for k in range(n)])
    index["fold"] = np.arange(n) % 10 + 1
    index["content_hash"] = [k.to_bytes(8, "little") for k in range(n)]
    return index


def written(folder: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    """A table in a file."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(
    table: Path | str,
    *overrides: str,
    index: pd.DataFrame | None = None,
    recipe: dict[str, Any] | None = None,
    acquired: Sequence[str] | None = None,
) -> Labels:
    """The labels that a command line with these words reads; `acquired` are the times of the rows of the index."""
    given, others = split_label_overrides([f"labels={table}", *overrides])
    assert not others
    index = index_of() if index is None else index
    times = np.array(["NaT"] * len(index) if acquired is None else list(acquired), "datetime64[s]")
    return read_labels(label_settings(given), index, recipe or {}, lambda: times)


def values(labels: Labels, name: str) -> list[Any]:
    """A label row by row: None where it is unknown, True or False, a number, or the set of classes."""
    column = next(each for each in labels.targets if each.name == name)
    found: list[Any] = []
    for row, known in zip(column.values, column.known, strict=True):
        if not known:
            found.append(None)
        elif column.kind == "numbers":
            found.append(float(row[0]))
        elif column.kind == "binary":
            found.append(bool(row[0]))
        else:
            found.append({name for name, here in zip(column.classes, row, strict=True) if here})
    return found
