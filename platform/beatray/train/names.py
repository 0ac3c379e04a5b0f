"""From record keys back to record ids, for journals and messages: batches carry only 64-bit keys."""

from __future__ import annotations

from beatray.augment.draws import record_key
from beatray.corpus.reader import read_row_group
from beatray.errors import CorpusError
from beatray.train.stream import StreamSettings


def names_by_place(stream: StreamSettings) -> list[list[str]]:
    """Record ids of the usable rows of every row group; where a shard cannot be read, the place of the row."""
    found = []
    for group in stream.groups:
        try:
            table = read_row_group(stream.store, group.shard, group.group, ["record_id"])
        except CorpusError:
            found.append([f"row {row} of {group.shard.name}" for row in group.rows])
            continue
        found.append(table["record_id"].take(list(group.rows)).to_pylist())
    return found


def names_of_keys(stream: StreamSettings) -> dict[int, str]:
    """Record id of every key."""
    return {record_key(name): name for names in names_by_place(stream) for name in names}
