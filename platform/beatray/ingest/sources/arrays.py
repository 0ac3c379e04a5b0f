"""A plain folder of arrays, `.npy`, `.npz` or Parquet, explained by a `recordings.yaml` (see `sources.arrays_plan`).

Contract: `find(tree)` lists one recording per array, per entry of a stack, or per row of a Parquet file, in the order
of files and rows. The record id is `arrays/<id>`, or `arrays/<path without suffix>[/<row>]` where no column gives an
id; an id that comes a second time is refused, not lost. `read` gives one Record, with the values of the columns; the
patient is marked private, since a folder of arrays is mostly a user's own. Raises RecordError.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_parquet import IN_LISTS
from beatray.ingest.formats.named_leads import twelve_from_array
from beatray.ingest.formats.npy import npy_layout, npz_member, read_part
from beatray.ingest.formats.numbers import maybe_whole, shown
from beatray.ingest.formats.parquet_table import ParquetTable, open_table, read_signal, read_texts
from beatray.ingest.formats.people import age_in, id_of, id_problem, is_unknown, labels_of, moment_of, sex_of
from beatray.ingest.formats.wfdb_record import split_path
from beatray.ingest.member_checks import is_one_line
from beatray.ingest.random_file import RandomFile
from beatray.ingest.sources.arrays_plan import FILE_NAME, MAX_BYTES, ArraysPlan, read_plan
from beatray.ingest.sources.item import (
    Item,
    check_not_refused,
    find_table,
    name_problem,
    read_columns,
    refuse_second_names,
)
from beatray.ingest.spelling import as_spelt
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

NAME = "arrays"
LICENCE = "as the data set's own"
MAX_RECORDINGS = 10_000_000
Rows = list[tuple[str, int | None, dict[str, str]]]
"""File, row and cells of each recording."""


def find(tree: Tree) -> list[Item]:
    """Every recording that the plan's files hold. Raises RecordError."""
    plan_path = find_table(tree, FILE_NAME)
    plan = read_plan(tree.read(plan_path, MAX_BYTES))
    folder = split_path(plan_path)[0]
    names = [name.removeprefix(folder) for name in tree.names() if name.startswith(folder)]
    files = sorted({name for name in names if any(_fits(name, pattern) for pattern in plan.files)})
    if not files:
        raise RecordError(Reason.MISSING_FILE, f"{plan_path}: no file is called {' or '.join(plan.files)}")
    items: list[Item] = []
    table = _table(tree, folder, plan, files)
    for file in files:
        try:
            rows = _rows(tree, folder + file, plan)
        except RecordError as error:
            about = {"refused": error.detail, "reason": error.reason.value}
            items.append(Item(file, folder + file, about))
            continue
        for row, cells in rows:
            items.append(_item(plan_path, folder, file, row, {**cells, **table.pop((file, row), {})}, plan))
    for (file, row), _ in table.items():
        where = file if row is None else f"{file} row {row}"
        items.append(Item(f"table/{where}", plan_path, {"refused": f"{plan.table} names {where}, which is not there"}))
    return refuse_second_names(items)


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    plan = _plan(tree, item.meta["plan"])
    row = int(item.meta["row"]) if "row" in item.meta else None
    values = _values(tree, item.path, row, plan)
    notes: list[str] = []
    signal_mv, mask = twelve_from_array(values, plan.leads, plan.mv_per_unit, plan.rate_hz, notes)
    about = item.meta
    patient = id_of(about.get("patient"))
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=signal_mv,
        rate_hz=plan.rate_hz,
        lead_mask=mask,
        patient_id=None if patient is None else f"{NAME}/{patient}",
        fold=maybe_whole(about.get("fold")),
        labels=labels_of(_entries(about.get("labels", ""), plan.separator)),
        age=age_in(about.get("age", "")),
        sex=sex_of(about.get("sex", "")),
        notes=tuple(dict.fromkeys(notes)),
        patient_is_private=True,
        acquired=moment_of(about.get("time"), with_zone=False),
    )


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern names a file; a suffix may be written in capitals."""
    stem, dot, suffix = name.rpartition(".")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(stem + dot + suffix.lower(), pattern)


def _item(plan_path: str, folder: str, file: str, row: int | None, cells: dict[str, str], plan: ArraysPlan) -> Item:
    stem = file.rpartition(".")[0]
    default_name = stem if row is None else f"{stem}/{row}"
    if "refused" in cells:
        return Item(default_name, folder + file, cells)
    name = id_of(cells.get("id")) or default_name
    problem = name_problem(name) or ("" if is_one_line(name) and len(name) <= 200 else "its id cannot be printed")
    fold = cells.get("fold", "")
    if not is_unknown(fold) and not 0 <= (-1 if (number := maybe_whole(fold)) is None else number) <= 127:
        problem = f"fold {shown(fold)} is not 0 to 127"
    if problem:
        return Item(default_name, folder + file, {"refused": problem})
    meta = {key: value for key, value in cells.items() if key != "id" and value}
    if row is not None:
        meta["row"] = str(row)
    return Item(name, folder + file, {**meta, "plan": plan_path})


def _rows(tree: Tree, path: str, plan: ArraysPlan) -> list[tuple[int | None, dict[str, str]]]:
    """The recordings of one file by row (None: the file is one), and its own columns for each."""
    with tree.open_random(path) as file:
        if path.lower().endswith(".parquet"):
            table = open_table(file)
            columns = {key: name for key, name in plan.columns.items() if key not in ("file", "row")}
            if plan.table is not None or not columns:
                return [(row, {}) for row in range(table.n_rows)]
            rows = read_texts(table, list(dict.fromkeys(columns.values())))
            named = ({key: _cell(key, cells[name]) for key, name in columns.items()} for cells in rows)
            return [(row, _with_ids(f"row {row}", cells)) for row, cells in enumerate(named)]
        if not plan.stacked:
            return [(None, {})]
        with _array_file(file, plan) as array:
            layout = npy_layout(array)
        if len(layout.shape) != 3 or layout.shape[0] > MAX_RECORDINGS:
            raise RecordError(Reason.HEADER, f"{path} has shape {layout.shape}, no stack of recordings")
        return [(row, {}) for row in range(layout.shape[0])]


def _table(tree: Tree, folder: str, plan: ArraysPlan, files: list[str]) -> dict[tuple[str, int | None], dict[str, str]]:
    """The cells of the table, by file and row. Raises RecordError(METADATA)."""
    if plan.table is None:
        return {}
    if "file" not in plan.columns and len(files) > 1:
        raise RecordError(Reason.METADATA, f"{FILE_NAME}: columns.file is needed, there are {len(files)} files")
    rows = {file for file in files if plan.stacked or file.lower().endswith(".parquet")}
    if rows and len(files) > 1 and "row" not in plan.columns:
        raise RecordError(Reason.METADATA, f"{FILE_NAME}: columns.row is needed, there are {len(files)} files")
    file_of = _by_name(files)
    keys = list(plan.columns)
    found: dict[tuple[str, int | None], dict[str, str]] = {}
    lines = read_columns(tree, as_spelt(tree, folder + plan.table), tuple(plan.columns.values()))
    for number, values in enumerate(lines):
        cells = {key: value.strip() for key, value in zip(keys, values, strict=True)}
        name = cells.pop("file", files[0])
        file, text = file_of(name), cells.pop("row", str(number))
        if file is None:
            raise RecordError(
                Reason.METADATA, f"{plan.table} line {number + 1}: {name[:80]!r} may be several files: write the path"
            )
        row = maybe_whole(text) if file in rows else None
        if file in rows and row is None:
            raise RecordError(Reason.METADATA, f"{plan.table} line {number + 1}: row {shown(text)} is no number")
        key = (file, row)
        if key in found:
            raise RecordError(Reason.METADATA, f"{plan.table} line {number + 1} names {name[:80]!r} a second time")
        found[key] = _with_ids(f"{plan.table} line {number + 1}", cells)
    return found


def _cell(key: str, text: str) -> str:
    """What a row says of `key`: several entries only where they are labels."""
    return text if key == "labels" else text.removesuffix(IN_LISTS).replace(IN_LISTS, ";")


def _entries(labels: str, separator: str) -> list[str]:
    """The labels of a cell; those of a list are whole, whatever stands in them."""
    return labels.split(IN_LISTS if IN_LISTS in labels else separator)


def _with_ids(where: str, cells: dict[str, str]) -> dict[str, str]:
    """The cells of a row; only the refusal, where an id in it is not unique."""
    for key in ("id", "patient"):
        if problem := id_problem(cells.get(key)):
            return {"refused": f"{where}, {key}: {problem}"}
    return cells


def _by_name(files: list[str]) -> Callable[[str], str | None]:
    """The file that a table's cell means, by path or name, with or without suffix; None where it may mean several.

    What is written exactly so goes first, then what differs in case only, as in `spelling.as_spelt`; a path goes before
    a name. A name that no file has stands for itself.
    """
    forms: tuple[dict[str, str | None], ...] = ({}, {}, {}, {})
    lower: dict[str, str | None] = {}
    for file in files:
        name = file.rpartition("/")[2]
        spellings = (file, file.rpartition(".")[0], name, name.rpartition(".")[0])
        for form, spelling in zip(forms, spellings, strict=True):
            form[spelling] = None if spelling in form else file
        for low in {spelling.lower() for spelling in spellings}:
            lower[low] = None if low in lower else file

    def file_of(name: str) -> str | None:
        for form in forms:
            if name in form:
                return form[name]
        return lower.get(name.lower(), name[:80])

    return file_of


def _values(tree: Tree, path: str, row: int | None, plan: ArraysPlan) -> NDArray[Any]:
    """The array of one recording as (leads, samples)."""
    if path.lower().endswith(".parquet"):
        return _parquet_values(_kept_table(tree, path), row or 0, plan)
    with tree.open_random(path) as file, _array_file(file, plan) as array:
        layout = npy_layout(array)
        values = read_part(array, layout, row)
    if values.ndim != 2:
        raise RecordError(Reason.HEADER, f"{path}: an array of shape {values.shape} is no recording")
    return values if plan.axes[-2:] == ("leads", "samples") else values.T


def _parquet_values(table: ParquetTable, row: int, plan: ArraysPlan) -> NDArray[Any]:
    dtype = None if plan.dtype is None else np.dtype(plan.dtype).newbyteorder("<").str
    flat, inner = read_signal(table, plan.array or "", row, dtype)
    n_leads, n_samples = len(plan.leads), flat.size // len(plan.leads)
    shape = (n_leads, n_samples) if plan.axes[-2:] == ("leads", "samples") else (n_samples, n_leads)
    if flat.size != n_leads * n_samples or inner not in (None, shape[1]):
        lists = "" if inner is None else f" in lists of {inner}"
        raise RecordError(Reason.HEADER, f"{table.file.member}: {flat.size} numbers{lists} are not {n_leads} leads")
    values = flat.reshape(shape)
    return values if plan.axes[-2] == "leads" else values.T


def _array_file(file: RandomFile, plan: ArraysPlan) -> RandomFile:
    """The `.npy` itself, or the member of the `.npz`."""
    return npz_member(file, plan.array or "") if file.member.lower().endswith(".npz") else file


def _plan(tree: Tree, plan_path: str) -> ArraysPlan:
    return _parsed_plan(tree.read(plan_path, MAX_BYTES))


_parsed_plan = lru_cache(maxsize=4)(read_plan)
_kept: dict[tuple[Any, ...], ParquetTable] = {}


def _kept_table(tree: Tree, path: str) -> ParquetTable:
    """The Parquet file at `path`, open since the last read if it is still the same; one is kept per process."""
    file = tree.open_random(path)
    key = (os.getpid(), tree.location, path, *file.identity)
    table = _kept.get(key)
    if table is not None:
        file.close()
        return table
    table = open_table(file)
    _kept.clear()
    _kept[key] = table
    return table
