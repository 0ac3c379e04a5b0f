"""PTB-XL: 12-lead, 10 s recordings with SCP-ECG statements, patients and published folds.

Contract: `find(tree)` lists every row of `ptbxl_database.csv` in the order of `ecg_id`, with the 500 Hz file where the
tree has it and the 100 Hz file otherwise. `read` gives one Record: labels are all SCP codes of the row in published
order (a likelihood of 0 means unknown, so it counts as present, as in the benchmark), fold is `strat_fold`, patient is
`ptbxl/<number>`, and the time is `recording_date`, which the authors moved. Ages of 300 (older than 89, masked for
privacy) become 90. Raises RecordError.
Source: Wagner et al., Scientific Data 7:154 (2020); Strodthoff et al., IEEE JBHI 25(5):1519 (2021).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from beatray.ingest.formats.numbers import maybe_whole, shown
from beatray.ingest.formats.people import age_in, id_problem, moment_of
from beatray.ingest.formats.wfdb_record import read_twelve_leads, split_path
from beatray.ingest.sources.item import Item, check_not_refused, find_table, read_table
from beatray.ingest.spelling import as_spelt
from beatray.ingest.tree import Tree
from beatray.record import Record

NAME = "ptbxl"
LICENCE = "CC BY 4.0"
INDEX = "ptbxl_database.csv"
WITHDRAWN = frozenset(
    (
        *(137, 139, 140, 141, 142, 143, 145, 456, 458, 459, 461, 462, 2506, 2511, 3795, 3798, 3800, 3801, 3832),
        *(5817, 7777, 7779, 7782, 9821, 9825, 9888, 11810, 11814, 11815, 11817, 11838, 13791, 13793, 13796),
        *(13797, 13799, 15742, 18150),
    )
)
"""The 38 records of release 1.0.1 (21,837) that 1.0.2 (21,799) no longer has: copies of others, or wrongly filed."""

_COLUMNS = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr")


def find(tree: Tree) -> list[Item]:
    """Every recording of the database table; rows that cannot be used carry the reason in `meta["refused"]`."""
    index = find_table(tree, INDEX)
    folder = split_path(index)[0]
    items: list[tuple[int, Item]] = []
    seen: set[int] = set()
    for line, row in enumerate(read_table(tree, index, _COLUMNS), start=1):
        ecg_id = maybe_whole(row["ecg_id"])
        meta, problem = _row_meta(row)
        if ecg_id is None:
            problem = _no_number("ecg_id", row)
        elif ecg_id in seen:
            problem = f"ecg_id {ecg_id} is in the table twice"
        elif ecg_id in WITHDRAWN:
            problem = "withdrawn by the authors after release 1.0.1"
        seen.add(ecg_id or 0)
        if problem:
            meta = {"refused": f"row {line} of {index}: {problem}"}
        path = folder + row["filename_hr"] + ".hea"
        if path not in tree:
            found = as_spelt(tree, path), as_spelt(tree, folder + row["filename_lr"] + ".hea")
            path = next((each for each in found if each in tree), path)
        name = f"row-{line}" if ecg_id is None else f"{ecg_id:05d}"
        items.append((ecg_id or 0, Item(name, path, meta, unnamed=ecg_id is None)))
    items.sort(key=lambda pair: (pair[0], pair[1].name))
    return [item for _, item in items]


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path)
    meta = item.meta
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        patient_id=meta["patient"],
        fold=int(meta["fold"]),
        labels=tuple(meta["labels"].split()),
        age=age_in(meta["age"]),
        sex=meta["sex"] or None,
        acquired=moment_of(meta["acquired"]),
        notes=leads.notes,
    )


def _row_meta(row: dict[str, str]) -> tuple[dict[str, str], str]:
    """Table cells in canonical form, and what is wrong with the row (empty if nothing)."""
    patient = maybe_whole(row["patient_id"])
    if patient is None:
        return {}, _no_number("patient_id", row)
    fold = maybe_whole(row["strat_fold"])
    if fold is None or not 1 <= fold <= 10:
        return {}, f"strat_fold {shown(row['strat_fold'])} is not 1 to 10"
    codes = _parse_codes(row["scp_codes"])
    if codes is None:
        return {}, f"scp_codes, {shown(row['scp_codes'])}, is not a table of codes"
    sex = {"0": "M", "1": "F", "0.0": "M", "1.0": "F"}.get(row["sex"].strip(), "")
    meta = {"patient": f"{NAME}/{patient}", "fold": str(fold), "labels": " ".join(codes), "age": row["age"], "sex": sex}
    return meta | {"acquired": row.get("recording_date", "")}, ""


def _no_number(column: str, row: dict[str, str]) -> str:
    return f"{column}: {id_problem(row[column]) or f'{shown(row[column])} is no number'}"


def _parse_codes(text: str) -> list[str] | None:
    """The keys of a Python dictionary literal of codes and likelihoods."""
    if len(text) > 4096:
        return None
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(codes, dict) or not all(isinstance(code, str) and code.isprintable() for code in codes):
        return None
    names = [code.strip() for code in codes]
    return None if any(not name or " " in name for name in names) else names
