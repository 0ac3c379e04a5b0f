"""China Physiological Signal Challenge 2018 in its original form: MATLAB structs and a table of labels.

The same recordings, as 16-bit WFDB files with SNOMED CT codes, are part of the Challenge sets (source `cinc`). The
original keeps voltages as doubles and the order of the labels, and names neither leads, units nor rate: those are
published facts of the set, so this source is not for other MATLAB files.

Contract: `find(tree)` lists every `.mat` file by path; the record id is `cpsc/<file name without suffix>`. `read` gives
one Record at 500 Hz, leads I, II, III, aVR, aVL, aVF, V1 to V6 in millivolts from `ECG.data` (12, n), with age and sex
of the struct. Labels are the class names of `REFERENCE.csv` in published order, first label first; none where the table
is missing. There are no patients and no folds. Raises RecordError.
Source: Liu et al., Journal of Medical Imaging and Health Informatics 8:1368 (2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.mat5 import read_mat5
from beatray.ingest.formats.named_leads import twelve_from_array
from beatray.ingest.formats.numbers import maybe_whole
from beatray.ingest.formats.people import age_in, is_unknown, sex_of
from beatray.ingest.sources.item import (
    Item,
    check_not_refused,
    find_table,
    name_problem,
    read_columns,
    refuse_second_names,
)
from beatray.ingest.spelling import paths_with
from beatray.ingest.tree import Tree
from beatray.record import LEADS, Reason, Record, RecordError

NAME = "cpsc"
LICENCE = "CC BY 4.0"
TABLE = "REFERENCE.csv"
RATE = 500.0
ROWS = 2
MAX_MAT_BYTES = 64 * 1024 * 1024
CLASSES = ("Normal", "AF", "I-AVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE")
"""Names of the published classes 1 to 9."""


def find(tree: Tree) -> list[Item]:
    """Every recording below the root, by path, with its labels where the table is there."""
    table = _labels(tree)
    items: list[Item] = []
    for path, stem in paths_with(tree, ".mat"):
        name = stem.rpartition("/")[2]
        labels = table.get(name, "")
        problem = name_problem(name) or ("" if labels is not None else f"{TABLE} gives it twice, or no class")
        items.append(Item(name, path, {"refused": problem} if problem else {"labels": labels or ""}, ROWS))
    if not items:
        raise RecordError(Reason.MISSING_FILE, f"no .mat file anywhere in {tree.location}")
    return refuse_second_names(items)


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    struct = read_mat5(tree.read(item.path, MAX_MAT_BYTES)).get("ECG")
    if not isinstance(struct, dict):
        raise RecordError(Reason.FORMAT, f"{item.path} holds no struct ECG")
    values = struct.get("data")
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise RecordError(Reason.FORMAT, f"{item.path}: ECG.data is not an array of voltages")
    notes: list[str] = []
    signal_mv, mask = twelve_from_array(values, LEADS, 1.0, RATE, notes)
    sex = struct.get("sex")
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=signal_mv,
        rate_hz=RATE,
        lead_mask=mask,
        labels=tuple(item.meta["labels"].split()),
        age=_age(struct.get("age")),
        sex=sex_of(sex) if isinstance(sex, str) else None,
        notes=tuple(dict.fromkeys(notes)),
    )


def _labels(tree: Tree) -> dict[str, str | None]:
    """Record name to its class names; None for one whose row cannot be used."""
    if not any(name.rpartition("/")[2] == TABLE for name in tree.names()):
        return {}
    path = find_table(tree, TABLE)
    table: dict[str, str | None] = {}
    for name, *cells in read_columns(tree, path, ("Recording", "First_label", "Second_label", "Third_label")):
        numbers = [maybe_whole(cell) or 0 for cell in cells if not is_unknown(cell)]
        good = bool(numbers) and all(1 <= number <= len(CLASSES) for number in numbers) and name.strip() not in table
        table[name.strip()] = " ".join(CLASSES[number - 1] for number in numbers) if good else None
    return table


def _age(value: NDArray[Any] | str | dict[str, Any] | None) -> float | None:
    return age_in(str(float(value.ravel()[0]))) if isinstance(value, np.ndarray) and value.size == 1 else None
