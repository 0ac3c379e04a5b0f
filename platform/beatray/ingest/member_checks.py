"""What is asked of a member of any tree before it is listed or given out: a plain name inside the root, a bounded size.

A name is plain if it stays inside the root, can be stored as UTF-8 and printed on one line: letters, marks and spaces
of any script are, control characters, line separators and the characters that turn the direction of a text are not.
Hidden entries (a dot in front) and what file managers leave behind are no recordings, whatever their suffix.

Contract: `problem_of` gives the Cause for which a member is not listed, or None; `check_plain_path` and `check_size`
raise RecordError, UNSAFE_PATH for a name and the reason that the reader names for a size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from enum import Enum

from beatray.record import Reason, RecordError

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Most bytes of one file that anything here will read."""

LEFT_BY_PROGRAMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_TURNS_TEXT = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Cause(Enum):
    """Why entries of a tree are not listed: the reason under which they are counted, and the message."""

    LINK = (Reason.UNSAFE_PATH, "links, which are not followed")
    OUTSIDE = (Reason.UNSAFE_PATH, "paths that lead outside the folder or archive")
    NAME = (Reason.UNSAFE_PATH, "names with control characters or a backslash (rename them)")
    NOT_UTF8 = (
        Reason.UNSAFE_PATH,
        "names that are not UTF-8 (convmv -r -f latin1 -t utf8 --notest renames them)",
    )
    SECOND = (Reason.UNSAFE_PATH, "members with the name of an earlier one")
    SPECIAL = (Reason.UNSAFE_PATH, "pipes, sockets, devices or sparse members")
    HIDDEN = (Reason.HIDDEN, "hidden (a dot in front) or left by a file manager")
    NO_ENTRY = (Reason.MISSING_FILE, "folders that may not be opened (permission denied)")
    TOO_LARGE = (Reason.ABSURD_SIZE, "members of more than 256 MiB in a compressed tar (unpack it)")
    ENCRYPTED = (Reason.FORMAT, "encrypted members (unpack the archive with its password)")
    BZIP2 = (Reason.FORMAT, "members compressed by bzip2 (unpack the archive, or pack it with Deflate)")
    DEFLATE64 = (Reason.FORMAT, "members compressed by Deflate64 (unpack the archive, or pack it with Deflate)")
    COMPRESSION = (Reason.FORMAT, "members compressed by a rare method (unpack the archive, or pack it with Deflate)")

    @property
    def reason(self) -> Reason:
        return self.value[0]

    def text(self, count: int) -> str:
        """That there are so many."""
        return f"{self.value[1]}: {count:,}"


def passed_over_text(passed_over: Mapping[Cause, int]) -> str:
    """What a tree does not list, in one line; empty where it lists everything."""
    parts = "; ".join(cause.text(passed_over[cause]) for cause in Cause if passed_over.get(cause))
    return f"not listed are {parts}" if parts else ""


def problem_of(name: str) -> Cause | None:
    """Why a member of this name is not listed; None if it is."""
    problem = path_problem(name)
    if problem is None and any(part.startswith(".") or part in LEFT_BY_PROGRAMS for part in name.split("/")):
        return Cause.HIDDEN
    return problem


def path_problem(name: str) -> Cause | None:
    """Why a member name is no plain relative posix path; None if it is one."""
    if not name or name[0] == "/" or name[1:3] == ":/" or any(part in ("", ".", "..") for part in name.split("/")):
        return Cause.OUTSIDE
    if name.isascii() and name.isprintable():
        return Cause.NAME if "\\" in name else None
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return Cause.NOT_UTF8
    return None if is_one_line(name) and "\\" not in name else Cause.NAME


def is_one_line(text: str) -> bool:
    """Whether a text can be stored and printed on one line, as it is read."""
    return text.isprintable() or all(
        letter.isprintable()
        or unicodedata.category(letter) == "Zs"
        or (unicodedata.category(letter) == "Cf" and letter not in _TURNS_TEXT)
        for letter in text
    )


def is_plain_path(name: str) -> bool:
    """Whether a member name is a relative posix path that stays inside its root and can be printed and stored."""
    return path_problem(name) is None


def check_plain_path(name: str) -> None:
    """Raise RecordError(UNSAFE_PATH) for a name that `is_plain_path` refuses."""
    if not is_plain_path(name):
        raise RecordError(Reason.UNSAFE_PATH, f"{name[:80]!r} is not a plain relative path")


def check_size(name: str, size: int, limit: int, too_long: Reason) -> None:
    """Raise RecordError(`too_long`) for a file that has, or claims, more bytes than the reader accepts."""
    if size > limit:
        raise RecordError(too_long, f"{name} has {size} bytes, at most {limit} expected")
