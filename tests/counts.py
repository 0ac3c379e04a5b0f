"""How often a fault is tried: a short selection in the ordinary test command, the full count with BEATRAY_CHAOS=1."""

from __future__ import annotations

import os


def count(short: int, full: int) -> int:
    """`full` under `make chaos`, otherwise `short`."""
    return full if os.environ.get("BEATRAY_CHAOS") else short
