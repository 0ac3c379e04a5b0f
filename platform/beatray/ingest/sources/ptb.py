"""PTB Diagnostic ECG Database: 549 recordings of 290 people, twelve leads and the three Frank leads at 1000 Hz.

Contract: `find(tree)` lists every `.hea` file by path; the record id is `ptb/<record name>`. `read` gives one Record of
half a minute to two minutes with the Frank leads; the patient is the folder `patientNNN` (none where the record lies
elsewhere). Of the 47 fields in the header's comments only age, sex and the reason for admission (as the one label) are
kept; dates, history and free text are not. Raises RecordError.
Source: Bousseljot, Kreiseler, Schnabel, Biomedizinische Technik 40(s1):317 (1995); PhysioNet ptbdb 1.0.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from beatray.ingest.formats.people import age_in, labels_of, sex_of
from beatray.ingest.formats.wfdb_header import comment_fields
from beatray.ingest.formats.wfdb_record import read_twelve_leads, split_path
from beatray.ingest.sources.item import (
    Item,
    check_not_refused,
    name_problem,
    refuse_second_names,
)
from beatray.ingest.spelling import paths_with
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

NAME = "ptb"
LICENCE = "ODC-By 1.0"
ROWS = 12
_PATIENT = re.compile(r"patient\d{1,6}", re.ASCII)


def find(tree: Tree) -> list[Item]:
    """Every recording below the root, by path."""
    items: list[Item] = []
    for path, stem in paths_with(tree, ".hea"):
        name = stem.rpartition("/")[2]
        problem = name_problem(name)
        items.append(Item(name, path, {"refused": problem} if problem else {}, ROWS))
    if not items:
        raise RecordError(Reason.MISSING_FILE, f"no .hea file anywhere in {tree.location}")
    return refuse_second_names(items)


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path, by_window=True)
    fields = comment_fields(leads.header)
    folder = split_path(item.path)[0].rstrip("/").rpartition("/")[2]
    reason = fields.get("reason for admission", [""])[0]
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        patient_id=f"{NAME}/{folder}" if _PATIENT.fullmatch(folder) else None,
        labels=() if reason.lower() == "no" else labels_of([reason]),
        age=age_in(fields.get("age", [""])[0]),
        sex=sex_of(fields.get("sex", [""])[0]),
        notes=leads.notes,
        frank_mv=leads.frank_mv,
        gaps=leads.gaps,
    )
