"""What is asked of a member of any tree before it is given out: a plain name inside the root, and a bounded size.

Contract: RecordError with UNSAFE_PATH for a name, with the reason that the reader names for a size.
"""

from __future__ import annotations

from beatray.record import Reason, RecordError

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Most bytes of one file that anything here will read."""


def is_plain_path(name: str) -> bool:
    """Whether a member name is a relative posix path that stays inside its root and can be printed and stored."""
    if not name or "\\" in name or not name.isprintable() or name[0] == "/" or name[1:2] == ":":
        return False
    return not any(part in ("", ".", "..") for part in name.split("/"))


def check_plain_path(name: str) -> None:
    """Raise RecordError(UNSAFE_PATH) for a name that `is_plain_path` refuses."""
    if not is_plain_path(name):
        raise RecordError(Reason.UNSAFE_PATH, f"{name[:80]!r} is not a plain relative path")


def check_size(name: str, size: int, limit: int, too_long: Reason) -> None:
    """Raise RecordError(`too_long`) for a file that has, or claims, more bytes than the reader accepts."""
    if size > limit:
        raise RecordError(too_long, f"{name} has {size} bytes, at most {limit} expected")
