"""Numbers from the text of strangers' files: plain decimal digits or a refusal, nothing that Python would also accept.

`float()` and `int()` take underscores, digits of other scripts, "inf" and "nan"; a header or an XML value may not.
Lists of samples are read into an array without an object per number, so that a long text costs no more memory than it
has bytes times eight.

Contract: raises `RecordError` with the caller's reason; messages quote at most 40 characters.
"""

from __future__ import annotations

import math
import re
import warnings
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from beatray.record import Reason, RecordError

MAX_COUNT = 2**31
_DECIMAL = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_LIST_OF = {
    " ": re.compile(r"\s*(?:[+-]?\d{1,18}(?:\s+|\Z))*+", re.ASCII),
    ",": re.compile(r"\s*(?:[+-]?\d{1,18}\s*(?:,\s*|\Z))*+", re.ASCII),  # devices may end with a comma
}


def decimal(text: str | None, reason: Reason, what: str) -> float:
    """A finite number. Raises RecordError(reason)."""
    cell = (text or "").strip()
    if not _DECIMAL.fullmatch(cell):
        raise RecordError(reason, f"{what} {cell[:40]!r} is not a plain number")
    value = float(cell)
    if not math.isfinite(value):
        raise RecordError(reason, f"{what} {cell[:40]!r} is not finite")
    return value


def exact(text: str | None, reason: Reason, what: str) -> Fraction:
    """A positive number as the fraction that its decimal digits say. Raises RecordError(reason)."""
    if decimal(text, reason, what) <= 0.0:
        raise RecordError(reason, f"{what} {(text or '').strip()[:40]!r} is not above zero")
    return Fraction((text or "").strip())


def whole(text: str | None, reason: Reason, what: str) -> int:
    """A whole number of at most 18 digits. Raises RecordError(reason)."""
    cell = (text or "").strip()
    if not _WHOLE.fullmatch(cell):
        raise RecordError(reason, f"{what} {cell[:40]!r} is not a whole number")
    return int(cell)


def maybe(text: str | None) -> float | None:
    """A finite number, or None for anything else: for values that only describe."""
    cell = (text or "").strip()
    return float(cell) if _DECIMAL.fullmatch(cell) and math.isfinite(float(cell)) else None


def whole_numbers(text: str, separator: str, what: str) -> NDArray[np.int64]:
    """A list of whole numbers, separated by blanks (" ") or by commas (","). Raises RecordError(FORMAT)."""
    # The grammar is checked here, because numpy reads a sign alone as 0.
    if not _LIST_OF[separator].fullmatch(text):
        raise RecordError(Reason.FORMAT, f"{what}: the list of samples holds other than whole numbers")
    text = text.strip().removesuffix(",")
    if not text:
        return np.empty(0, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy only warns of a text that it cannot read to the end
        try:
            values: NDArray[np.int64] = np.fromstring(text, np.int64, sep=separator)
        except (ValueError, DeprecationWarning) as error:
            raise RecordError(Reason.FORMAT, f"{what}: the list of samples holds other than whole numbers") from error
    if len(values) and (values.max() > MAX_COUNT or values.min() < -MAX_COUNT):
        raise RecordError(Reason.FORMAT, f"{what}: a sample beyond 32 bits")
    return values
