"""LUDB: 200 recordings whose P, QRS and T boundaries were marked by cardiologists on each of the twelve leads.

Contract: `find(tree)` lists the rows of `ludb.csv` by number. `read` gives one Record with the waves of all twelve
annotation files (`data/N.i` .. `data/N.v6`) in lead order and labels as published (rhythm, axis, diagnoses). Each
recording is its own patient. Release 1.0.0, whose annotation files have other names and whose gains are wrong, is
refused as MISSING_FILE. Raises RecordError.
Source: Kalyakulina et al., IEEE Access 8:186181 (2020), release 1.0.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from beatray.ingest.formats.numbers import maybe_whole, shown
from beatray.ingest.formats.people import age_in, labels_of, sex_of
from beatray.ingest.formats.wfdb_annotation import MAX_ANNOTATION_BYTES, parse_annotations, waves_of_lead
from beatray.ingest.formats.wfdb_record import read_twelve_leads, split_path
from beatray.ingest.sources.item import Item, check_not_refused, find_table, read_table
from beatray.ingest.spelling import as_spelt, read_any_case
from beatray.ingest.tree import Tree
from beatray.record import LEADS, Record, Wave

NAME = "ludb"
LICENCE = "ODC-By 1.0"
INDEX = "ludb.csv"
_NOT_LABELS = ("ID", "Sex", "Age")


def find(tree: Tree) -> list[Item]:
    """Every recording of the table, in the order of its number."""
    index = find_table(tree, INDEX)
    folder = split_path(index)[0]
    items: dict[int, Item] = {}
    unusable: list[Item] = []
    for line, row in enumerate(read_table(tree, index, ("ID", "Sex", "Age", "Rhythms")), start=1):
        if not any(cell.strip() for cell in row.values() if isinstance(cell, str)):
            continue  # spreadsheets leave empty rows behind
        number = maybe_whole(row["ID"])
        if number is None or number in items:
            why = f"row {line} of {index}: ID {shown(row['ID'])} is " + (
                "no number" if number is None else "there twice"
            )
            unusable.append(Item(f"row-{line}", index, {"refused": why}, unnamed=True))
            continue
        cells = [cell for column, cell in row.items() if column not in _NOT_LABELS and isinstance(cell, str)]
        labels = labels_of(line for cell in cells for line in cell.splitlines())
        meta = {"age": row["Age"], "sex": row["Sex"].strip(), "labels": "\n".join(labels)}
        items[number] = Item(str(number), as_spelt(tree, f"{folder}data/{number}.hea"), meta)
    return [*(items[number] for number in sorted(items)), *unusable]


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item, with its waves. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path)
    stem = item.path.rpartition(".")[0]
    name = split_path(stem)[1]
    waves: list[Wave] = []
    for lead, lead_name in enumerate(LEADS):
        marks = parse_annotations(read_any_case(tree, f"{stem}.{lead_name.lower()}", name, MAX_ANNOTATION_BYTES))
        waves += waves_of_lead(marks, lead, leads.header.n_samples)
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        patient_id=f"{NAME}/{item.name}",
        labels=tuple(item.meta["labels"].splitlines()),
        waves=tuple(waves),
        age=age_in(item.meta["age"]),
        sex=sex_of(item.meta["sex"]),
        notes=leads.notes,
    )
