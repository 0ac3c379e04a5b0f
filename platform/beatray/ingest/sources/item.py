"""What a source lists: one entry per recording, small enough to hold a million of them.

Contract: an `Item` names a recording and where its header lies in the tree; `meta` carries what the source's own table
says about it. An item that the table itself rules out carries the reason in `meta["refused"]`, and its category in
`meta["reason"]` where that is not METADATA, so that reading it gives a quarantine row instead of a silent gap. `rows`
is about how many rows of a corpus it will give: work is divided by it, nothing else.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from beatray.ingest.tree import Tree
from beatray.record import Reason, RecordError

MAX_TABLE_BYTES = 256 * 1024 * 1024
NOWHERE = 1 << 30
"""The position of a column that is not there."""


@dataclass(frozen=True, slots=True)
class Item:
    """One recording of a source: its name, the tree path of its header file, and text from the source's table.

    `unnamed`: of a row or a part in which no recording's own name could be read; it is refused under that of the row.
    """

    name: str
    path: str
    meta: dict[str, str] = field(default_factory=dict)
    rows: int = 1
    unnamed: bool = False


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Files of a tree that are no items: how many, and why, in one sentence."""

    reason: Reason
    count: int
    detail: str


def check_not_refused(item: Item) -> None:
    """Raise RecordError, METADATA unless the item has another reason, for an item that its source's table rules out."""
    refused = item.meta.get("refused")
    if refused:
        raise RecordError(Reason(item.meta.get("reason", Reason.METADATA.value)), f"{item.name}: {refused}")


def name_problem(name: str) -> str:
    """Why a recording of this name cannot be listed; empty if it can."""
    return "the name holds a '#', which marks the windows of a recording" if "#" in name else ""


def refuse_second_names(items: list[Item]) -> list[Item]:
    """The same items; those whose name an earlier one has get a name of their own and are refused, not lost."""
    seen: dict[str, Item] = {}
    unique: list[Item] = []
    for item in items:
        first = seen.setdefault(item.name, item)
        if first is not item:
            number = 2
            while f"{item.name} ({number})" in seen:
                number += 1
            problem = f"{item.path} has the record name of {first.path}"
            item = Item(f"{item.name} ({number})", item.path, {"refused": problem})
            seen[item.name] = item
        unique.append(item)
    return unique


def find_table(tree: Tree, file_name: str) -> str:
    """The path of the shallowest file called `file_name`, in any case of letters if in none as written.

    Raises RecordError: MISSING_FILE where there is none, METADATA where two lie equally deep.
    """
    found = [name for name in tree.names() if name.rpartition("/")[2].lower() == file_name.lower()]
    found = [name for name in found if name.rpartition("/")[2] == file_name] or found
    if not found:
        path = Path(tree.location.removeprefix("file://"))
        remedy = "is this the right data set, and is it complete?"
        if path.is_file() and (path.parent / file_name).is_file():
            remedy = "one lies beside it: unpack the archive, and put the table into the folder where its paths begin"
        raise RecordError(Reason.MISSING_FILE, f"no {file_name} anywhere in {tree.location}: {remedy}")
    found.sort(key=lambda name: (name.count("/"), name))
    if len(found) > 1 and found[0].count("/") == found[1].count("/"):
        raise RecordError(Reason.METADATA, f"two tables in {tree.location}: {found[0]} and {found[1]}")
    return found[0]


def read_table(tree: Tree, path: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line, which must have `columns`. Raises RecordError(METADATA)."""
    text = tree.read(path, MAX_TABLE_BYTES).decode("utf-8-sig", errors="replace")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=_delimiter(text, columns))
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise RecordError(Reason.METADATA, f"{path} has no column {', '.join(missing)}")
        return list(reader)
    except csv.Error as error:
        raise RecordError(Reason.METADATA, f"{path} is not a CSV table: {error}") from error


def _delimiter(text: str, columns: tuple[str, ...]) -> str:
    """What separates the cells: a comma, or what a spreadsheet writes where that stands in numbers."""
    first = text.partition("\n")[0].rstrip("\r")
    for mark in (",", ";", "\t"):
        if set(columns) <= {name.strip('"') for name in first.split(mark)}:
            return mark
    return ","


def read_columns(
    tree: Tree, path: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The named cells of each line of a CSV file with a header line, a line at a time: for tables of many columns.

    Those of an `optional` column come behind the others, empty where there is no such column. A table of a folder may
    have any size. Raises RecordError(METADATA).
    """
    with tree.open_random(path) as file:
        text = io.TextIOWrapper(io.BufferedReader(file, 1 << 16), "utf-8-sig", errors="replace", newline="")
        try:
            first = text.readline()
            delimiter = _delimiter(first, columns)
            lines = csv.reader(itertools.chain([first], text), delimiter=delimiter)
            header = next(lines, [])
            missing = [column for column in columns if header.count(column) != 1]
            if missing:
                raise RecordError(Reason.METADATA, f"{path} has no column {', '.join(missing)}, or has it twice")
            positions = [header.index(column) for column in columns]
            positions += [header.index(column) if column in header else NOWHERE for column in optional]
            for cells in lines:
                if cells:
                    yield tuple(cells[position] if position < len(cells) else "" for position in positions)
        except csv.Error as error:
            raise RecordError(Reason.METADATA, f"{path} is not a CSV table: {error}") from error
