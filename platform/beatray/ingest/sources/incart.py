"""St Petersburg INCART 12-lead Arrhythmia Database: 75 half hours of Holter recordings of 32 people at 257 Hz.

Contract: `find(tree)` lists every `.hea` file by path; the record id is `incart/<record name>`. `read` gives one Record
of half an hour, which becomes windows of 10 s; leads that are at the converter's limit or off for a while are left out
of the windows in question only. The patient is the number in the published table `files-patients-diagnoses.txt`, or in
the header's comments where the table is missing; where both are there and differ, the recording is refused. Age, sex
and diagnoses come from the comments; findings in free text and the beat annotations are not read. Raises RecordError.
Source: Goldberger et al., Circulation 101:e215 (2000); PhysioNet incartdb 1.0.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from beatray.ingest.formats.people import age_in, labels_of, sex_of
from beatray.ingest.formats.wfdb_record import read_twelve_leads
from beatray.ingest.sources.item import (
    Item,
    check_not_refused,
    find_table,
    name_problem,
    refuse_second_names,
)
from beatray.ingest.spelling import paths_with
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

NAME = "incart"
LICENCE = "ODC-By 1.0"
TABLE = "files-patients-diagnoses.txt"
ROWS = 180
MAX_TABLE_BYTES = 1024 * 1024
_PATIENT = re.compile(r"patient\s+(\d{1,4})", re.ASCII | re.IGNORECASE)
_RECORD = re.compile(r"\bI\d{2}\b", re.ASCII)
_PERSON = re.compile(
    r"<age>:\s*(?P<age>\S*)\s*<sex>:\s*(?P<sex>\S*)\s*(?:<diagnoses>:?\s*(?P<diagnoses>.*))?", re.ASCII
)


def find(tree: Tree) -> list[Item]:
    """Every recording below the root, by path, with its patient where the table is there."""
    patients = _patients(tree)
    items: list[Item] = []
    for path, stem in paths_with(tree, ".hea"):
        name = stem.rpartition("/")[2]
        problem = name_problem(name)
        meta = {"refused": problem} if problem else {"patient": patients.get(name, "")}
        items.append(Item(name, path, meta, ROWS))
    if not items:
        raise RecordError(Reason.MISSING_FILE, f"no .hea file anywhere in {tree.location}")
    return refuse_second_names(items)


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path, by_window=True)
    person: dict[str, str] = {}
    patient = ""
    for comment in leads.header.comments:
        if match := _PERSON.match(comment):
            person = {key: value or "" for key, value in match.groupdict().items()}
        elif match := _PATIENT.fullmatch(comment):
            patient = match[1]
    listed = item.meta.get("patient", "")
    if patient and listed and int(patient) != int(listed):
        raise RecordError(
            Reason.METADATA, f"{item.name} belongs to patient {patient} by its header, to {listed} by {TABLE}"
        )
    number = patient or listed
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        patient_id=f"{NAME}/{int(number)}" if number else None,
        labels=labels_of(person.get("diagnoses", "").split(",")),
        age=age_in(person.get("age", "")),
        sex=sex_of(person.get("sex", "")),
        notes=leads.notes,
        gaps=leads.gaps,
    )


def _patients(tree: Tree) -> dict[str, str]:
    """Record name to patient number from the published table: `patient N`, then the names of its records."""
    if not any(name.rpartition("/")[2] == TABLE for name in tree.names()):
        return {}
    path = find_table(tree, TABLE)
    patients: dict[str, str] = {}
    number = ""
    for line in tree.read(path, MAX_TABLE_BYTES).decode("utf-8", errors="replace").splitlines():
        match = _PATIENT.match(line.strip())
        rest = line
        if match:
            number, rest = match[1], line[line.index(match[0]) + len(match[0]) :]
        for name in _RECORD.findall(rest):
            if number and patients.setdefault(name, number) != number:
                raise RecordError(Reason.METADATA, f"{path} gives {name} to patients {patients[name]} and {number}")
    return patients
