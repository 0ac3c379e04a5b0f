"""CODE-15%: 345,779 telehealth recordings of 233,770 patients at 400 Hz, in 18 HDF5 parts of some gigabytes each.

Rows are read in place, in the order in which they lie. Every part ends with a filler row of exam 0; short recordings
are centred in 4096 samples between zeros, which are taken off to the sample (published lengths are 7 and 10 s; stored
are mostly 2,934 and 4,096 samples). The unit is the millivolt: the set's own page names none, and the remark "scale
1e-4 V, multiply by 1000" of a sister set contradicts itself; amplitudes on real recordings fit 1 mV and exclude 0.1 mV
(tests/accuracy/test_two_formats.py). Recordings of 10.24 s come out larger than those of other sets; see the test.

Contract: `find(tree)` lists the exams of `exams.csv` by part and row; a part that is missing or cannot be opened is one
refused item that states it. The record id is `code15/<exam_id>`, the patient `code15/<patient_id>`. `read` gives one
Record; labels are the columns 1dAVb, RBBB, LBBB, SB, ST, AF and normal_ecg that are true. No label does not mean
normal. Predicted age and mortality are not read. Raises RecordError.
Source: Ribeiro et al., Nature Communications 11:1760 (2020); Zenodo 4916206.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.hdf5 import Array, open_hdf5, plain_array, read_rows
from beatray.ingest.formats.named_leads import twelve_from_array
from beatray.ingest.formats.numbers import maybe_whole
from beatray.ingest.formats.people import age_in, id_problem
from beatray.ingest.formats.wfdb_record import split_path
from beatray.ingest.member_checks import is_plain_path
from beatray.ingest.random_file import RandomFile
from beatray.ingest.sources.item import (
    Item,
    check_not_refused,
    find_table,
    read_columns,
    refuse_second_names,
)
from beatray.ingest.tree import Tree
from beatray.record import LEADS, Reason, Record, RecordError

NAME = "code15"
LICENCE = "CC BY 4.0"
INDEX = "exams.csv"
RATE = 400.0
MV_PER_UNIT = 1.0
LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "normal_ecg")
MAX_EXAMS = 1_000_000
MAX_SAMPLES = 1 << 16
_COLUMNS = ("exam_id", "patient_id", "age", "is_male", "trace_file", *LABELS)
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


@dataclass(slots=True)
class TraceFile:
    """One open HDF5 part: `exam_id` (n) and `tracings` (n, samples, 12)."""

    file: RandomFile
    hdf5: Any
    exams: Array
    tracings: Array


def find(tree: Tree) -> list[Item]:
    """Every exam of the table; what cannot be used carries the reason in `meta["refused"]`."""
    index = find_table(tree, INDEX)
    folder = split_path(index)[0]
    listed: dict[str, dict[int, dict[str, str]]] = {}
    items: list[Item] = []
    for line, cells in enumerate(read_columns(tree, index, _COLUMNS), start=1):
        exam, patient = maybe_whole(cells[0]), maybe_whole(cells[1])
        if exam is None or patient is None or not is_plain_path(cells[4].strip()):
            why = id_problem(cells[0]) or id_problem(cells[1]) or "exam_id, patient_id or trace_file cannot be used"
            problem = f"row {line} of {INDEX}: {why}"
            items.append(Item(f"row-{line}", index, {"refused": problem}, unnamed=True))
            continue
        exams = listed.setdefault(cells[4].strip(), {})
        if exam in exams:
            items.append(Item(str(exam), folder + cells[4], {"refused": f"exam {exam} is in {INDEX} twice"}))
            continue
        flags = [cell.strip().lower() in _TRUE for cell in cells[5:]]
        sex = {**dict.fromkeys(_TRUE, "M"), **dict.fromkeys(_FALSE, "F")}.get(cells[3].strip().lower(), "")
        labels = " ".join(label for label, flag in zip(LABELS, flags, strict=True) if flag)
        exams[exam] = {"patient": f"{NAME}/{patient}", "age": cells[2], "sex": sex, "labels": labels}
    if listed and not any(folder + name in tree for name in listed):
        zipped = " (unpack exams_part*.zip first)" if any(name.endswith(".zip") for name in tree.names()) else ""
        raise RecordError(Reason.MISSING_FILE, f"none of the HDF5 parts lies beside {index}{zipped}")
    ordered: list[Item] = []
    for name in sorted(listed, key=_part_order):
        ordered += _items_of_part(tree, folder + name, listed[name])
    return refuse_second_names([*ordered, *items])


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    part = _kept_part(tree, item.path)
    row = int(item.meta["row"])
    if int(read_rows(part.exams, row, row + 1)[0]) != int(item.name):
        raise RecordError(Reason.METADATA, f"row {row} of {item.path} is no longer exam {item.name}")
    notes: list[str] = []
    values = without_padding(read_rows(part.tracings, row, row + 1)[0])
    signal_mv, mask = twelve_from_array(values.T, LEADS, MV_PER_UNIT, RATE, notes)
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=signal_mv,
        rate_hz=RATE,
        lead_mask=mask,
        patient_id=item.meta["patient"],
        labels=tuple(item.meta["labels"].split()),
        age=age_in(item.meta["age"]),
        sex=item.meta["sex"] or None,
        notes=tuple(dict.fromkeys(notes)),
    )


def without_padding(tracing: NDArray[Any]) -> NDArray[Any]:
    """(samples, 12) without the rows at both ends in which every lead is exactly zero. Raises RecordError(FLAT)."""
    filled = np.flatnonzero(np.any(tracing != 0, axis=1))
    if not filled.size:
        raise RecordError(Reason.FLAT, "the tracing holds nothing but zeros")
    return tracing[filled[0] : filled[-1] + 1]


def _part_order(name: str) -> tuple[int, str]:
    """exams_part2 before exams_part10."""
    numbers = re.findall(r"[0-9]{1,9}", name.removesuffix(".hdf5"))
    return (int(numbers[-1]) if numbers else 0, name)


def _items_of_part(tree: Tree, path: str, exams: dict[int, dict[str, str]]) -> list[Item]:
    name = split_path(path)[1]
    try:
        part = _kept_part(tree, path)
        numbers: list[int] = read_rows(part.exams, 0, part.exams.shape[0]).tolist()
    except RecordError as error:
        about = {"refused": f"its {len(exams)} exams: {error.detail}", "reason": error.reason.value}
        return [Item(name, path, about, unnamed=True)]
    items: list[Item] = []
    seen: set[int] = set()
    for row, exam in enumerate(numbers):
        if exam == 0 and exam not in exams:
            continue  # the filler row
        if exam not in exams or exam in seen:
            problem = f"exam {exam} of {name} is " + ("in it twice" if exam in seen else f"not in {INDEX}")
            items.append(Item(f"{name}-row-{row}", path, {"refused": problem}))
            continue
        seen.add(exam)
        items.append(Item(str(exam), path, {**exams[exam], "row": str(row)}))
    items += [Item(str(exam), path, {"refused": f"{name} does not hold it"}) for exam in exams if exam not in seen]
    return items


def _open_part(file: RandomFile) -> TraceFile:
    hdf5 = open_hdf5(file)
    exams, tracings = plain_array(file, hdf5, "exam_id"), plain_array(file, hdf5, "tracings")
    n = exams.shape[0]
    if len(exams.shape) != 1 or exams.dtype.kind not in "iu" or n > MAX_EXAMS:
        raise RecordError(Reason.FORMAT, f"{file.member}: exam_id of shape {exams.shape} and type {exams.dtype}")
    shape = tracings.shape
    if len(shape) != 3 or shape[0] != n or shape[1] > MAX_SAMPLES or shape[2] != 12 or tracings.dtype.kind != "f":
        raise RecordError(Reason.FORMAT, f"{file.member}: tracings of shape {shape} and type {tracings.dtype}")
    return TraceFile(file, hdf5, exams, tracings)


_kept: dict[tuple[Any, ...], TraceFile] = {}


def _kept_part(tree: Tree, path: str) -> TraceFile:
    """The part at `path`, open since the last read if the file is still the same; one is kept per process."""
    file = tree.open_random(path)
    key = (os.getpid(), tree.location, path, *file.identity)
    part = _kept.get(key)
    if part is not None:
        file.close()
        return part
    try:
        part = _open_part(file)
    except BaseException:
        file.close()
        raise
    _kept.clear()
    _kept[key] = part
    return part
