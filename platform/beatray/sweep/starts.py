"""starts.json of a sweep: with which overrides it was started, when, and by which version, as its report shows.

A line for each start, the first first; the sweep's own memory (sweep.json) needs none of it. Contract: secrets in the
overrides are left out; a file that cannot be read counts as none, since nothing but a sentence of a report hangs on it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from beatray.storage.store import Store
from beatray.track.secrets import without_secrets

NAME = "starts.json"


@dataclass(frozen=True, slots=True)
class Start:
    """One start: `began` is UTC to the second, `version` that of beatray."""

    command: str
    began: str
    version: str


def now() -> str:
    """The time, as reports and starts write it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def version_here() -> str:
    """That of the installed beatray."""
    try:
        return version("beatray")
    except PackageNotFoundError:
        return "from the source tree"


def note_start(folder: Store, overrides: Sequence[str]) -> None:
    """Add this start to those of the sweep in `folder`."""
    command = without_secrets(f"beatray sweep {' '.join(overrides)}")
    starts = [*read_starts(folder), Start(command, now(), version_here())]
    folder.write(NAME, json.dumps([asdict(start) for start in starts], indent=1).encode())


def read_starts(folder: Store) -> list[Start]:
    """All starts that were written down; none of a sweep of an older version."""
    try:
        return [Start(**start) for start in json.loads(folder.read(NAME))]
    except (OSError, ValueError, TypeError):
        return []
