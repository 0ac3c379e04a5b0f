"""Numbers from the text of strangers' files: plain decimal digits or a refusal, nothing that Python would also accept.

`float()` and `int()` take underscores, digits of other scripts, "inf" and "nan"; a header or an XML value may not.
Lists of samples are read into an array without an object per number, so that a long text costs no more memory than it
has bytes times eight.

Contract: raises `RecordError` with the caller's reason. Messages show a value only through `shown`, since in a damaged
file a name or a number of a person can stand where a technical value should.
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
MAX_LIST_CHARS = 2 * 1024 * 1024
"""Longest list of samples of one lead, as text."""

_DECIMAL = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_WHOLE_CELL = re.compile(r"(\d{1,18})(?:\.0+)?", re.ASCII)
_SHORT = re.compile(r"[+-]?[\d.]{1,6}(?:[eE][+-]?\d{1,3})?|[+-]?inf|nan", re.ASCII)
_SHORT_UID = re.compile(r"[\d.]{1,40}", re.ASCII)
_WORDS = {
    *("nv", "uv", "mv", "v", "mmhg", "mm[hg]", "degc", "c", "%", "bpm", "hz", "s", "ms", "us", "min", "h"),
    *("xli", "zip", "gzip", "lzw", "base64", "plain", "none", "hex", "commaseparate", "true", "false"),
    *("ss", "sb", "ub", "mb", "ab", "sl", "ul", "slist_int", "slist_ts", "glist_pq", "glist_ts", "ivl_ts"),
}
_LIST_OF = {
    " ": re.compile(r"\s*(?:[+-]?\d{1,18}(?:\s+|\Z))*+", re.ASCII),
    ",": re.compile(r"\s*(?:[+-]?\d{1,18}\s*(?:,\s*|\Z))*+", re.ASCII),  # devices may end with a comma
}


def shown(text: str | None) -> str:
    """A value for a message: quoted if it is a short number or a technical term, otherwise only its length."""
    cell = (text or "").strip()
    if not cell:
        return "nothing"
    is_uid = cell.startswith("1.2.840.10008.") and bool(_SHORT_UID.fullmatch(cell))  # of the standard itself
    if is_uid or _SHORT.fullmatch(cell) or cell.lower() in _WORDS:
        return repr(cell)
    return f"a text of {len(cell)} characters"


def decimal(text: str | None, reason: Reason, what: str) -> float:
    """A finite number. Raises RecordError(reason)."""
    cell = (text or "").strip()
    if not _DECIMAL.fullmatch(cell):
        raise RecordError(reason, f"{what} is {shown(cell)}, not a plain number")
    value = float(cell)
    if not math.isfinite(value):
        raise RecordError(reason, f"{what} is {shown(cell)}, not finite")
    return value


def exact(text: str | None, reason: Reason, what: str) -> Fraction:
    """A positive number as the fraction that its decimal digits give. Raises RecordError(reason)."""
    if decimal(text, reason, what) <= 0.0:
        raise RecordError(reason, f"{what} is {shown(text)}, not above zero")
    return Fraction((text or "").strip())


def whole(text: str | None, reason: Reason, what: str) -> int:
    """A whole number of at most 18 digits. Raises RecordError(reason)."""
    cell = (text or "").strip()
    if not _WHOLE.fullmatch(cell):
        raise RecordError(reason, f"{what} is {shown(cell)}, not a whole number")
    return int(cell)


def maybe(text: str | None) -> float | None:
    """A finite number, or None for anything else: for values that only describe."""
    cell = (text or "").strip()
    return float(cell) if _DECIMAL.fullmatch(cell) and math.isfinite(float(cell)) else None


def maybe_whole(text: str | None) -> int | None:
    """A whole number from zero on as tables write it, 15709 or 15709.0; None for anything else."""
    found = _WHOLE_CELL.fullmatch((text or "").strip())
    return int(found[1]) if found else None


def whole_numbers(text: str, separator: str, what: str) -> NDArray[np.int64]:
    """A list of whole numbers, separated by blanks (" ") or by commas (",").

    Raises RecordError: FORMAT for anything else in it, ABSURD_SIZE for more than `MAX_LIST_CHARS`.
    """
    if len(text) > MAX_LIST_CHARS:
        raise RecordError(Reason.ABSURD_SIZE, f"{what}: a list of {len(text)} characters, limit {MAX_LIST_CHARS}")
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
