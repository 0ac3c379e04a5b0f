"""The data sets that can be ingested, by the word a user types.

Contract: `SOURCES[word].find(tree)` lists the recordings of a tree, sorted and the same every time;
`SOURCES[word].read(tree, item)` yields the Records of one item or raises `RecordError`. Both are module functions, so a
Source crosses process borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from beatray.ingest.sources import arrays, cinc, code15, cpsc, incart, ludb, mimic, ptb, ptbxl, wfdb_folder, zzu
from beatray.ingest.sources.item import Item
from beatray.ingest.tree import Tree
from beatray.record import Record

__all__ = ["SOURCES", "Item", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """One data set: how its recordings are listed and read, and under which licence it was published."""

    name: str
    find: Callable[[Tree], list[Item]]
    read: Callable[[Tree, Item], Iterator[Record]]
    licence: str


SOURCES: dict[str, Source] = {
    module.NAME: Source(module.NAME, module.find, module.read, module.LICENCE)
    for module in (ptbxl, ludb, cinc, mimic, code15, ptb, incart, zzu, cpsc, arrays, wfdb_folder)
}
