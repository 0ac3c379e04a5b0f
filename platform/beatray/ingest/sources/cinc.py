"""The PhysioNet/CinC Challenge sets of 2020 and 2021: WFDB headers with SNOMED CT codes over MATLAB level 4 signals.

Contract: `find(tree)` lists every `.hea` file below the root, at any depth. `read` gives one Record: labels are the
codes of the `Dx` comments in published order, each once; there are no patients and no folds. Records whose name starts
with HR are PTB-XL under another name and carry the note `ptbxl_overlap`; splits find them by content hash. Those of the
INCART and PTB parts are long, 30 and 2 minutes: a lead that fails for a while is left out of the windows in question
only. Raises RecordError.
Source: Perez Alday et al., Physiological Measurement 41:124003 (2020); Reyna et al., CinC 2021.
"""

from __future__ import annotations

from collections.abc import Iterator

from beatray.ingest.formats.people import age_in, labels_of, sex_of
from beatray.ingest.formats.wfdb_header import comment_fields
from beatray.ingest.formats.wfdb_record import read_twelve_leads
from beatray.ingest.sources.item import Item, check_not_refused, name_problem
from beatray.ingest.spelling import paths_with
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

NAME = "cinc"
LICENCE = "CC BY 4.0"
PTBXL_PREFIX = "HR"
ROWS_OF_PREFIX = {"I": 180, "S": 12}
"""Expected rows of a recording of the INCART and PTB parts, I0001 and S0001 onwards."""


def find(tree: Tree) -> list[Item]:
    """Every recording below the root by path; a name that comes a second time is refused, not lost."""
    seen: dict[str, str] = {}
    items: list[Item] = []
    for path, stem in paths_with(tree, ".hea"):
        name = stem.rpartition("/")[2]
        problem = f"{path} has the record name of {seen[name]}" if name in seen else name_problem(name)
        seen.setdefault(name, path)
        rows = ROWS_OF_PREFIX.get(name[:1], 1) if name[1:].isdigit() else 1
        items.append(Item(name, path, {"refused": problem} if problem else {}, rows))
    if not items:
        raise RecordError(Reason.MISSING_FILE, f"no .hea file anywhere in {tree.location}")
    return items


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path, by_window=True)
    fields = comment_fields(leads.header)
    codes = (code for line in fields.get("dx", ()) for code in line.split(","))
    notes = leads.notes + (("ptbxl_overlap",) if item.name.startswith(PTBXL_PREFIX) else ())
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        labels=labels_of(codes),
        age=age_in(fields.get("age", [""])[0]),
        sex=sex_of(fields.get("sex", [""])[0]),
        notes=notes,
        gaps=leads.gaps,
    )
