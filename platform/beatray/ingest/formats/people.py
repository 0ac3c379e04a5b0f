"""The two things about a person that may leave a reader: age in years and sex.

Ages above 89 become 90, as in the public data sets: exact high ages point to single people. Dates of birth are only
ever turned into ages here; a day that is no day gives None. Nothing in this file raises or quotes what it was given.
"""

from __future__ import annotations

from datetime import date

OLDEST = 90.0
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_YEARS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25, "h": 1 / 8766}


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


def age_between(born: str | None, taken: str | None) -> float | None:
    """Whole years, at most 90, between two days written as YYYYMMDD or YYYY-MM-DD, with anything after."""
    first, second = _day(born), _day(taken)
    if first is None or second is None:
        return None
    years = second.year - first.year - ((second.month, second.day) < (first.month, first.day))
    return age_of(float(years))


def _day(text: str | None) -> date | None:
    digits = (text or "").strip().replace("-", "")[:8]
    if len(digits) != 8 or not digits.isdigit() or not digits.isascii():
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
