"""What is known of a person, in one reading for all sources and formats: id, age in years, sex, labels, and when.

A cell for the unknown (empty, NA, nan, None, unknown ...) gives nothing: it is no id that people share
and no label. A whole number that a spreadsheet or a data frame wrote as 1234.0 is the id 1234; zeros in front stay,
since they can be part of an id. Ages above 89 become 90, as in the public data sets: exact high ages point to single
people. Dates of birth are only ever turned into ages here; a day that is no day gives None. A time is that of the clock
where it was taken, in whole seconds; a day alone is no time, since it may be a day off, and neither is the first second
of 1900 or 1970, which clocks show that nobody has set, or a year in which nothing was recorded.

Contract: only `id_of` raises, RecordError(METADATA), for an id that a spreadsheet has rounded or that is too long: cut
short, either would stand for several people. Nothing in this file quotes what it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from beatray.corpus.label_settings import UNKNOWN
from beatray.record import Reason, RecordError

OLDEST = 90.0
MASKED = 300.0
"""The age that PTB-XL publishes for people older than 89."""
MAX_ID_CHARS = 128
NO_PATIENT = frozenset((*UNKNOWN, "anonymous", "anonymized", "anonymised", "anon"))
"""Values of a patient's id that name nobody, in lower case."""

_SEXES = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
_WHOLE_AS_DECIMAL = re.compile(r"(\d+)\.0+", re.ASCII)
_ROUNDED = re.compile(r"\d{1,3}(?:[.,]\d+)?[eE]\+\d{1,3}", re.ASCII)
"""As spreadsheets and data frames write large numbers: 1.23457E+11, 1,23457E+11, 1E+11, 123.5E+9."""
_AGE = re.compile(
    r"(\d{1,6}(?:\.\d*)?|\.\d+)\s*(y|yr|yrs|year|years|m|month|months|w|week|weeks|d|day|days)?", re.ASCII
)
_OVER_89 = re.compile(r">\s*89|>=\s*90|(89|90)\s*\+", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4})([-./]?)(\d\d)\2(\d\d)[T ]?(\d\d):?(\d\d)(?::?(\d\d)(?:\d{3}|[.,]\d+)?)?"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)
_NEVER_SET = (datetime(1900, 1, 1), datetime(1970, 1, 1))
_YEARS_OF_ECGS = range(1900, 2400)
"""MIMIC has moved its recordings to the years from 2100 on; 9999 stands for none."""
_YEARS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25, "h": 1 / 8766}


def is_unknown(text: Any) -> bool:
    """Whether a cell means unknown."""
    return text is None or str(text).strip().lower() in UNKNOWN


def id_of(text: Any) -> str | None:
    """An id as one line of at most 128 characters; None where there is none. Raises RecordError(METADATA)."""
    if problem := id_problem(text):
        raise RecordError(Reason.METADATA, problem)
    cell = "".join(ch for ch in str("" if text is None else text) if ch.isprintable()).strip()
    if cell.lower() in NO_PATIENT:
        return None
    whole = _WHOLE_AS_DECIMAL.fullmatch(cell)
    return whole[1] if whole else cell


def id_problem(text: Any) -> str:
    """Why a cell is no unique id, and the remedy; empty if nothing is wrong with it."""
    cell = str("" if text is None else text).strip()
    if len(cell) > MAX_ID_CHARS:
        return f"an id of {len(cell)} characters: give one of at most {MAX_ID_CHARS}"
    if _ROUNDED.fullmatch(cell):
        return "a spreadsheet has rounded an id, as in 1.23457E+11: write the ids as text"
    return ""


def labels_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Labels in their order, each once, without those that mean none."""
    return tuple(dict.fromkeys(text.strip() for text in texts if not is_unknown(text)))


def sex_of(text: str | None) -> str | None:
    """ "F", "M" or None from what devices write."""
    return _SEXES.get((text or "").strip().lower())


def age_of(value: float | None, unit: str = "y") -> float | None:
    """Years, at most 90, from a number of years, months, weeks, days or hours (`unit`, by its first letter)."""
    per_unit = _YEARS.get(unit.strip().lower()[:1])
    if value is None or per_unit is None:
        return None
    years = value * per_unit
    return round(min(years, OLDEST), 2) if 0.0 <= years <= 125.0 else None


def age_in(text: str | None) -> float | None:
    """Years, at most 90, from a cell of a table or a header: 63, 63.0, 63Y, 18 months, >89.

    300, as PTB-XL writes for people older than 89, becomes 90; None where there is no usable number.
    """
    cell = (text or "").strip().lower()
    if _OVER_89.fullmatch(cell):
        return OLDEST
    found = _AGE.fullmatch(cell)
    if not found:
        return None
    value, unit = float(found[1]), found[2]
    if unit is not None:
        return age_of(value, unit)
    if value == MASKED:
        return OLDEST
    return min(value, OLDEST) if value <= 125.0 else None


def age_between(born: str | None, taken: str | None) -> float | None:
    """Whole years, at most 90, between two days written as YYYYMMDD or YYYY-MM-DD, with anything after."""
    first, second = _day(born), _day(taken)
    if first is None or second is None:
        return None
    years = second.year - first.year - ((second.month, second.day) < (first.month, first.day))
    return age_of(float(years))


def moment_of(text: str | None, *, with_zone: bool = True) -> datetime | None:
    """The time that devices and tables write as 20240217101500, 2024-02-17 10:15:00 or the like.

    A device writes the clock where it stands and how far that is from UTC, which is left out. Without `with_zone`, a
    time with a zone is none: what tables and data frames write is often that of UTC.
    """
    found = _MOMENT.fullmatch((text or "").strip())
    if not found or (found["zone"] and not with_zone):
        return None
    year, _, month, day, hour, minute, second, _ = found.groups("0")
    try:
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
    except ValueError:
        return None
    return None if moment in _NEVER_SET or moment.year not in _YEARS_OF_ECGS else moment


def _day(text: str | None) -> date | None:
    digits = (text or "").strip().replace("-", "")[:8]
    if len(digits) != 8 or not digits.isdigit() or not digits.isascii():
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
