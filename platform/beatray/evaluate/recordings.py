"""Recordings and their windows: what is counted, where a long recording has given several rows of a corpus.

A row of a corpus is a window of up to 10 s, `ID#0`, `ID#1`, ... of a longer recording. Scores are of rows;
numbers of recordings, to train on, to test on or with a class, are of recordings.

Contract: ids are those of rows; a recording counts once whatever its windows, and has a class if one of them has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beatray.evaluate.metrics import Truth


def recording_of(record_id: str) -> str:
    """The recording of a row."""
    return record_id.partition("#")[0]


def count(ids: Sequence[str]) -> int:
    """How many recordings the rows belong to."""
    return len(set(map(recording_of, ids)))


def count_text(ids: Sequence[str], what: str = "") -> str:
    """`12 test recordings`, and of how many windows where these are more."""
    recordings = count(ids)
    windows = f" (in {len(ids):,} windows of up to 10 s)" if len(ids) != recordings else ""
    return f"{recordings:,} {what + ' ' if what else ''}recordings{windows}"


def positives(ids: Sequence[str], truth: Truth) -> tuple[int, ...]:
    """How many recordings have each class; `truth` (n, c) of the rows."""
    numbers = np.unique([recording_of(each) for each in ids], return_inverse=True)[1]
    has = np.zeros((int(numbers.max(initial=-1)) + 1, truth.shape[1]), bool)
    np.logical_or.at(has, numbers, truth == 1)
    return tuple(int(each) for each in has.sum(axis=0))
