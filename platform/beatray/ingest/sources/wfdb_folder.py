"""Any folder or archive of 12-lead WFDB records, without a table of its own.

Contract: `find(tree)` lists every `.hea` file below the root; the record id is `wfdb/<path without suffix>`. `read`
gives one Record without labels, patient or fold: header comments can hold names and are not copied. Raises RecordError.
Source: WFDB Applications Guide, header(5).
"""

from __future__ import annotations

from collections.abc import Iterator

from beatray.ingest.formats.wfdb_record import read_twelve_leads
from beatray.ingest.sources.item import Item, check_not_refused, name_problem, refuse_second_names
from beatray.ingest.spelling import paths_with
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

NAME = "wfdb"
LICENCE = "as the data set's own"


def find(tree: Tree) -> list[Item]:
    """Every recording below the root, by path."""
    items: list[Item] = []
    for path, name in paths_with(tree, ".hea"):
        problem = name_problem(path)
        items.append(Item(name, path, {"refused": problem} if problem else {}))
    if not items:
        raise RecordError(Reason.MISSING_FILE, f"no .hea file anywhere in {tree.location}")
    return refuse_second_names(items)


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path)
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        notes=leads.notes,
    )
