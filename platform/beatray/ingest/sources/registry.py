"""The data sets that can be ingested, by the name a user types.

Contract: `SOURCES[name].find(tree)` lists the recordings of a tree, sorted and the same every time;
`SOURCES[name].read(tree, item)` yields the Records of one item or raises `RecordError` (several: `ingest.each_record`).
`others(tree)`, where a source has it, lists what else lies in the tree and why it is not listed. Where
`names_are_paths` an item's name is its path below the root; otherwise it is the data set's own number of the recording.
All are module functions, so a Source crosses process borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from beatray.ingest.sources import arrays, cinc, code15, cpsc, files, incart, ludb, mimic, ptb, ptbxl, wfdb_folder, zzu
from beatray.ingest.sources.item import Item, Unlisted
from beatray.ingest.tree import Tree
from beatray.record import Record

__all__ = ["SOURCES", "Item", "Source", "Unlisted"]


@dataclass(frozen=True, slots=True)
class Source:
    """One data set: how its recordings are listed and read, and under which licence it was published."""

    name: str
    find: Callable[[Tree], list[Item]]
    read: Callable[[Tree, Item], Iterator[Record]]
    licence: str
    others: Callable[[Tree], list[Unlisted]] | None = None
    names_are_paths: bool = False


SOURCES: dict[str, Source] = {
    module.NAME: Source(
        module.NAME,
        module.find,
        module.read,
        module.LICENCE,
        getattr(module, "others", None),
        module in (arrays, wfdb_folder, files),
    )
    for module in (ptbxl, ludb, cinc, mimic, code15, ptb, incart, zzu, cpsc, arrays, wfdb_folder, files)
}
