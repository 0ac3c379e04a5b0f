"""ZZU pECG: 14,190 recordings of 11,643 children in hospital, twelve or nine leads, 5 to 120 s at 500 Hz.

Contract: `find(tree)` lists every row of `AttributesDictionary.csv` in its order, with the WFDB record below
`Child_ecg/` or beside the table; the record id is `zzu/<ECG_ID>`, the patient `zzu/<Patient_ID>`. `read` gives one
Record; a recording of nine leads (without V2, V4 and V6) comes with these absent. Labels are the findings in the AHA
vocabulary as `aha:<code>`, where the table gives no code in words, and the discharge diagnoses as `icd10:<code>`; the
two share spellings, hence the prefixes. The age is published in days and becomes years of 365 days, as in the paper.
Dates and quality indices are not read. Raises RecordError.
Source: Tan et al., Scientific Data 12 (2025), doi:10.1038/s41597-025-05225-z; figshare 27078763.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from beatray.ingest.formats.people import age_in, id_of, id_problem, is_unknown, sex_of
from beatray.ingest.formats.wfdb_record import read_twelve_leads, split_path
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
from beatray.record import Record

NAME = "zzu"
LICENCE = "CC BY 4.0"
INDEX = "AttributesDictionary.csv"
ROWS = 2
DAYS_IN_YEAR = 365.0
_COLUMNS = ("Filename", "ECG_ID", "Patient_ID", "Age", "Gender", "AHA_code", "ICD-10 code")
_DAYS = re.compile(r"(\d{1,6})d", re.ASCII)
_PATIENT = re.compile(r"\w{1,40}", re.ASCII)


def find(tree: Tree) -> list[Item]:
    """Every recording of the table."""
    index = find_table(tree, INDEX)
    folder = split_path(index)[0]
    items: list[Item] = []
    for line, cells in enumerate(read_columns(tree, index, _COLUMNS), start=1):
        file_name, name, patient, age, sex, findings, diagnoses = (cell.strip() for cell in cells)
        problem = name_problem(name)
        why = id_problem(name) or id_problem(patient)
        patient = "" if why else id_of(patient) or ""
        unnamed = bool(why) or is_unknown(name) or not name.isprintable() or not _PATIENT.fullmatch(patient)
        if unnamed:
            name, problem = f"row-{line}", f"row {line} of {INDEX}: {why or 'ECG_ID or Patient_ID cannot be used'}"
        paths = [as_spelt(tree, f"{folder}{below}{file_name}.hea") for below in ("Child_ecg/", "")]
        path = next((path for path in paths if path in tree), paths[-1])
        labels = [f"aha:{code}" for code in _entries(findings)] + [f"icd10:{code}" for code in _entries(diagnoses)]
        days = _DAYS.fullmatch(age)
        meta = {
            "patient": f"{NAME}/{patient}",
            "age": str(int(days[1]) / DAYS_IN_YEAR) if days else "",
            "sex": sex.strip("'"),
            "labels": "\n".join(dict.fromkeys(labels)),
        }
        items.append(Item(name, path, {"refused": problem} if problem else meta, ROWS, unnamed))
    return refuse_second_names(items)


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path, by_window=True)
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        patient_id=item.meta["patient"],
        labels=tuple(item.meta["labels"].splitlines()),
        age=age_in(item.meta["age"]),
        sex=sex_of(item.meta["sex"]),
        notes=leads.notes,
        gaps=leads.gaps,
    )


def _entries(cell: str) -> list[str]:
    """C21 and D31 from `'C21';'D31'`."""
    parts = [part.strip().strip("'").strip() for part in cell.split(";")]
    return [part for part in parts if part.isprintable() and not is_unknown(part)]
