"""The recordings of one item or file, each read or refused for itself: one that cannot be used costs no other.

Contract: a reader gives an iterator of Records. One of several recordings that cannot be used makes `next` raise
RecordError, and the one after it comes with the next call, as `map` does it; a generator is at its end once it has
raised. `each_record` gives the number of each, from 1, with the Record or the RecordError; `part_name` is what the
recording of that number is called. A fault of the reader itself is a RecordError here, too (READER_FAULT); OSError, of
a disk or a network, is no property of a recording and is raised.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from beatray.record import Reason, Record, RecordError

PART = "/rhythm-"
"""Stands before the number of a second recording of an item, and of those after it."""


def part_name(name: str, number: int) -> str:
    """The name of the recording `number`, from 1, of the item `name`."""
    return name if number == 1 else f"{name}{PART}{number}"


def each_record(read: Callable[[], Iterator[Record]]) -> Iterator[tuple[int, Record | RecordError]]:
    """See the module's contract; `read` begins to read."""
    records: Iterator[Record] = iter(())
    for number in count(1):
        try:
            records = read() if number == 1 else records
            found: Record | RecordError = next(records)
        except StopIteration:
            return
        except Exception as error:
            found = refusal_of(error)
        yield number, found


def refusal_of(error: Exception) -> RecordError:
    """Why a recording is refused that cannot be read or cut into windows. Raises OSError where `error` is one."""
    if isinstance(error, RecordError):
        return error
    if isinstance(error, OSError):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"  # and not its text, which may quote the file
    return RecordError(Reason.READER_FAULT, f"the reader failed: {type(error).__name__} in {where}")
