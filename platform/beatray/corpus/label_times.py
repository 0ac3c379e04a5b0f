"""Which rows of a table are about a recording of their patient: by time.

Hospitals know patients and days, not names of recordings: a potassium of 14:05, an admission from Monday to Friday. A
row holds at a moment, for a whole day (a date alone), or from one time to another (two columns). It labels the
recordings of its patient that began no later than `window` after it and no earlier than `window` before it; of several
the nearest one in which a label is known, and of two as near the earlier, which was known when the recording was made.

Contract: times are those of the clock where they were taken. Where the corpus hashed its patients, it has moved their
times, and the rows of the table are moved alike (`id_key`). LabelError where nothing can be read or nothing is near,
and where rows that are as near as each other have different values; no message shows a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_columns import Column, unknown_values
from beatray.corpus.label_file import Table
from beatray.corpus.label_settings import LabelSettings, reach_of
from beatray.errors import LabelError, SettingsError

DAY_S = 86_400
PAIRS_AT_ONCE = 1 << 21
"""Rows and recordings that are compared in memory at a time."""

Numbers = NDArray[np.int64]
Clash = tuple[int, int, int, int]
"""A recording, the position of a label, and two rows of the table that are as near as each other and differ in it."""
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Spans:
    """When each row of a table holds, in seconds since 1970, both ends included; `known` (n,)."""

    start: Numbers
    end: Numbers
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest row of each recording, -1 for none: for each label one in which it is known, and at all."""

    of_label: tuple[Numbers, ...]
    of_any: Numbers


@dataclass(frozen=True, slots=True)
class TimeCounts:
    """How a table with times fits a corpus. Recordings are those of the patients that it names."""

    columns: tuple[str, ...]
    before_s: float
    after_s: float
    rows_without_time: int
    rows_near_none: int
    recordings: int
    recordings_without_time: int
    recordings_labelled: int


def read_spans(table: Table, settings: LabelSettings) -> Spans:
    """When each row holds, by the columns that `labels.time` names."""
    ends = [_moments(table, name, settings) for name in settings.time]
    (start, length, known), (last, more, also) = ends[0], ends[-1]
    spans = Spans(start, last + more if len(ends) > 1 else start + length, known & also)
    backwards = np.flatnonzero(spans.known & (spans.end < spans.start))
    if len(backwards):
        raise LabelError(
            f"{table.location}: {len(backwards):,} rows end before they begin (e.g. row {int(backwards[0]) + 1}): is "
            f"it labels.time=[{settings.time[1]},{settings.time[0]}]?"
        )
    if not spans.known.any():
        raise LabelError(f"{table.location}: no row has a time in {' and '.join(map(repr, settings.time))}")
    return spans


def _moments(table: Table, name: str, settings: LabelSettings) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Seconds since 1970 of each row, how long a value lasts (a day, or no time), and where it is known."""
    column, unknown = table.columns[name], unknown_values(settings)
    if column.other_type:
        raise LabelError(f"{table.location}: column {name!r} is read as times, and its values are {column.other_type}")
    at = np.zeros((len(column.distinct), 2), np.int64)
    known = np.array([value.lower() not in unknown for value in column.distinct], np.bool_)
    for position in np.flatnonzero(known).tolist():
        value = column.distinct[position]
        try:
            moment, is_day = _read(value, settings.time_format)
        except ValueError as error:
            looks = re.sub(r"\w", lambda sign: "9" if sign[0].isdigit() else "x", value[:40])
            how = f"labels.time_format={settings.time_format}" if settings.time_format else "as 2024-02-17 10:15:00"
            raise LabelError(
                f"{table.location}: column {name!r} is read as times ({how}), and {looks!r} is none, where 9 is any "
                "digit and x any letter: write all in one way, and set it, as labels.time_format='%d.%m.%Y %H:%M'"
            ) from error
        if moment.tzinfo is not None:
            raise LabelError(
                f"{table.location}: column {name!r} has times with a zone, and recordings have those of the clock "
                "where they were made: write them as local times, without a zone"
            )
        whole = moment.replace(microsecond=0)  # as recordings have them
        at[position] = round((whole - _EPOCH).total_seconds()), DAY_S - 1 if is_day else 0
    midnight = known & (at[:, 0] % DAY_S == 0)
    if 2 * midnight.sum() > known.sum():
        at[midnight, 1] = DAY_S - 1  # days that a spreadsheet or a data frame wrote with 00:00:00
    return at[column.codes, 0], at[column.codes, 1], known[column.codes]


def _read(text: str, time_format: str) -> tuple[datetime, bool]:
    """A moment, and whether it stands for a day. Raises ValueError."""
    if time_format:
        return datetime.strptime(text, time_format), not re.search("%[HIcXTRs]", time_format)
    return datetime.fromisoformat(text), ":" not in text and "T" not in text and len(text) <= len("2024-02-17")


def near_rows(
    table: Table,
    columns: Sequence[Column],
    settings: LabelSettings,
    patient_of_row: Numbers,
    spans: Spans,
    patient_of_recording: Numbers,
    acquired: NDArray[np.datetime64],
) -> tuple[Near, TimeCounts]:
    """What labels each recording. Patients are numbers, -1 for one that the other side does not have; `acquired` is NaT
    where it is not known."""
    before_s, after_s = reach_of(settings)
    own = (patient_of_recording >= 0) & np.isin(patient_of_recording, patient_of_row)
    timed = own & ~np.isnat(acquired)
    if not timed.any():
        raise LabelError(
            f"no recording of the patients in {table.location} has a time in the corpus: times are kept beside patient "
            "ids (--id-key-file), since version 0.2, where files or tables have day and time of day. Ingest it anew "
            "(--overwrite, or another --out), or use recordings as keys"
        )
    recordings, rows = np.flatnonzero(timed), np.flatnonzero((patient_of_row >= 0) & spans.known)
    rows = rows[np.lexsort((spans.start[rows], patient_of_row[rows]))]
    labels = (*columns, None)
    best = np.full((len(labels), len(acquired)), -1, np.int64)
    clashes: list[Clash] = []
    for some, first, count in _reachable(
        patient_of_row[rows],
        spans.start[rows],
        int((spans.end - spans.start)[rows].max(initial=0)),
        patient_of_recording[recordings],
        acquired[recordings].astype(np.int64),
        (before_s, after_s),
    ):
        of = np.repeat(recordings[some], count)
        row = rows[np.repeat(first, count) + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)]
        at = acquired[of].astype(np.int64)
        early, late = at - spans.end[row], spans.start[row] - at
        reached = (early <= before_s) & (late <= after_s)
        rank = 2 * np.maximum(np.maximum(early, late), 0) + (late > 0)
        for number, column in enumerate(labels):
            kept = np.flatnonzero(reached if column is None else reached & column.known[row])
            kept = kept[np.lexsort((row[kept], rank[kept], of[kept]))]
            nearest = kept[np.flatnonzero(np.diff(of[kept], prepend=-1))]
            best[number, of[nearest]] = row[nearest]
            if column is not None:
                clashes += _clashes(number, column, of[kept], rank[kept], row[kept])
    if clashes:
        raise _clash(table, columns, clashes)
    counts = TimeCounts(
        settings.time,
        before_s,
        after_s,
        int((~spans.known).sum()),
        len(rows) - len(np.intersect1d(rows, best)),
        int(own.sum()),
        int((own & ~timed).sum()),
        int((best[:-1] >= 0).any(axis=0).sum()),
    )
    if not counts.recordings_labelled:
        raise LabelError(
            f"no row of {table.location} with a label lies near a recording of its patient: labels.window reaches "
            f"{before_s / DAY_S:g} days before a recording and {after_s / DAY_S:g} after it. Are both times of one "
            "clock, and neither moved?"
        )
    return Near(tuple(best[:-1]), best[-1]), counts


def _reachable(
    patients: Numbers,
    starts: Numbers,
    longest: int,
    whose: Numbers,
    at: Numbers,
    reach: tuple[float, float],
) -> Sequence[tuple[Numbers, Numbers, Numbers]]:
    """For some recordings at a time: their positions, and the first and the number of the rows that may be near.

    Rows are ordered by patient and start.
    """
    origin = int(starts.min(initial=0))
    width = int(starts.max(initial=0)) - origin + 3  # a place below the first and above the last start of a patient
    place = patients * width + (starts - origin + 1)
    from_s = np.clip(at - round(reach[0]) - longest - origin + 1, 0, width - 1)
    to_s = np.clip(at + round(reach[1]) - origin + 1, 0, width - 1)
    first = np.searchsorted(place, whose * width + from_s, "left")
    count = np.searchsorted(place, whose * width + to_s, "right") - first
    part = np.cumsum(count) // PAIRS_AT_ONCE
    groups = np.split(np.arange(len(at)), np.flatnonzero(np.diff(part)) + 1)
    return [(some, first[some], count[some]) for some in groups]


def _clashes(number: int, column: Column, of: Numbers, rank: Numbers, row: Numbers) -> list[Clash]:
    """For each recording whose nearest rows differ; pairs come by recording and rank."""
    begins = np.flatnonzero(np.diff(of, prepend=-1))
    nearest = np.repeat(begins, np.diff(begins, append=len(of)))
    as_near = np.flatnonzero(rank == rank[nearest])
    one, other = row[nearest[as_near]], row[as_near]
    differ = (column.values[one] != column.values[other]).any(axis=1)
    found, firsts = np.unique(of[as_near[differ]], return_index=True)
    rows = zip(found.tolist(), one[differ][firsts].tolist(), other[differ][firsts].tolist(), strict=True)
    return [(recording, number, first, second) for recording, first, second in rows]


def _clash(table: Table, columns: Sequence[Column], clashes: Sequence[Clash]) -> LabelError:
    _, number, one, other = clashes[0]
    recordings = len({clash[0] for clash in clashes})
    return LabelError(
        f"{table.location}: {recordings:,} recordings have two rows as near as each other with different values (e.g. "
        f"{columns[number].name} in rows {one + 1} and {other + 1}): keep one row of a patient for each time, and "
        "periods that do not overlap"
    )


def refuse_missing_window(settings: LabelSettings) -> None:
    """Raise SettingsError where times cannot be compared for want of a setting."""
    for name in ("window", "time_format"):
        if getattr(settings, name) and not settings.time:
            raise SettingsError(f"labels.{name} needs labels.time=COLUMN, the column with the time of each row")
    if len(settings.time) == 1 and not settings.window:
        raise SettingsError(
            f"labels.time={settings.time[0]}: how near must a row be to a recording? Set labels.window=24h or 30d, or "
            "[7d,30d]: at most 7 days before the recording and 30 after it"
        )


def moved(spans: Spans, patient_of_row: Numbers, moved_by_s: Callable[[int], int]) -> Spans:
    """The rows where the corpus has moved the times of their patients; `moved_by_s` by the number of a patient."""
    patients, which = np.unique(patient_of_row, return_inverse=True)
    by = np.array([moved_by_s(patient) if patient >= 0 else 0 for patient in patients.tolist()], np.int64)[which]
    return Spans(spans.start + by, spans.end + by, spans.known)
