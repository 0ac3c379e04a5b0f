"""A finding of a check of `beatray doctor`: one line, how grave it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How grave a finding is; any `fail` makes the command exit with 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line; whatever is not ok comes with what to do next."""

    level: Level
    what: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.remedy:
            raise ValueError(f"a finding that is not ok needs a remedy: {self.what}")


def ok(what: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, what)


def warn(what: str, remedy: str) -> Finding:
    """It works, with a risk or slowly."""
    return Finding(Level.WARN, what, remedy)


def fail(what: str, remedy: str) -> Finding:
    """A run would not start, would end early, or would be unsafe."""
    return Finding(Level.FAIL, what, remedy)
