"""What a source lists: one entry per recording, small enough to hold a million of them.

Contract: an `Item` names a recording and where its header lies in the tree; `meta` carries what the source's own table
says about it. An item that the table itself rules out carries the reason in `meta["refused"]`, so that reading it gives
a quarantine row instead of a silent gap.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field

from beatray.ingest.tree import Tree
from beatray.record import Reason, RecordError

MAX_TABLE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One recording of a source: its name, the tree path of its header file, and text from the source's table."""

    name: str
    path: str
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Files of a tree that are no items: how many, and why, in one sentence."""

    reason: Reason
    count: int
    detail: str


def check_not_refused(item: Item) -> None:
    """Raise RecordError(METADATA) for an item that its source's table rules out."""
    refused = item.meta.get("refused")
    if refused:
        raise RecordError(Reason.METADATA, f"{item.name}: {refused}")


def name_problem(name: str) -> str:
    """Why a recording of this name cannot be listed; empty if it can."""
    return "the name holds a '#', which marks the windows of a recording" if "#" in name else ""


def find_table(tree: Tree, file_name: str) -> str:
    """The path of the shallowest file called `file_name`.

    Raises RecordError: MISSING_FILE where there is none, METADATA where two lie equally deep.
    """
    found = [name for name in tree.names() if name == file_name or name.endswith("/" + file_name)]
    if not found:
        raise RecordError(
            Reason.MISSING_FILE,
            f"no {file_name} anywhere in {tree.location}: is this the right data set, and is it complete?",
        )
    found.sort(key=lambda name: (name.count("/"), name))
    if len(found) > 1 and found[0].count("/") == found[1].count("/"):
        raise RecordError(Reason.METADATA, f"two tables in {tree.location}: {found[0]} and {found[1]}")
    return found[0]


def read_table(tree: Tree, path: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line, which must have `columns`. Raises RecordError(METADATA)."""
    text = tree.read(path, MAX_TABLE_BYTES).decode("utf-8-sig", errors="replace")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise RecordError(Reason.METADATA, f"{path} has no column {', '.join(missing)}")
        return list(reader)
    except csv.Error as error:
        raise RecordError(Reason.METADATA, f"{path} is not a CSV table: {error}") from error


def parse_age(text: str) -> float | None:
    """Years from a table cell; None where there is no usable number.

    Both ">89" (LUDB) and 300 (PTB-XL) are published for people older than 89 and become 90.
    """
    cell = text.strip()
    if cell == ">89":
        return 90.0
    try:
        age = float(cell)
    except ValueError:
        return None
    if age == 300.0:
        return 90.0
    return age if 0.0 <= age <= 125.0 else None


def parse_sex(text: str) -> str | None:
    """ "F" or "M" from the spellings that published headers and tables use; None otherwise."""
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get(text.strip().lower())
