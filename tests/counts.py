"""How often a fault is tried: a short selection in the ordinary test command, the full count with BEATRAY_CHAOS=1."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def count(short: T, full: T) -> T:
    """`full` under `make chaos`, otherwise `short`."""
    return full if os.environ.get("BEATRAY_CHAOS") else short
