"""Where recordings are read and answers are written: paths from the root, and answers not among the recordings."""

from __future__ import annotations

from dataclasses import dataclass

from beatray.errors import SettingsError
from beatray.storage.store import Store


@dataclass(frozen=True, slots=True)
class CorpusLocation:
    """Which corpus; all its rows are read."""

    path: str = ""


def refuse_inside(out: Store, given: str, other: Store, what: str) -> None:
    """Raise SettingsError if `out` lies inside `other`, where it would be taken for a part of `what` is there."""
    if f"{out.where()}/".startswith(f"{other.where().rstrip('/')}/"):
        raise SettingsError(f"out={given} lies inside {what}; choose another folder")
