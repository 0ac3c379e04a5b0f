"""How commands talk: plain lines in a log, a progress bar on a terminal, and one readable line for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Update = Callable[[int, int, str], None]
"""(done, total, note)"""

LINE_EVERY_S = 5.0


def say(text: str = "") -> None:
    """One line to the user, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One line on stderr, at once; above the bar where there is one."""
    print(text, file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """A table as wide as the terminal; 120 columns in a log."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


@contextmanager
def progress(title: str, unit: str) -> Iterator[Update]:
    """A bar with rate and time left on a terminal; a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        from rich.console import Console

        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
        return
    said = time.monotonic()
    first: tuple[float, int] | None = None  # the rate is taken from the first news on: starting up says nothing of it

    def update(done: int, total: int, note: str) -> None:
        nonlocal said, first
        now = time.monotonic()
        if first is None and done:
            first = (now, done)
        if now - said >= LINE_EVERY_S:
            said = now
            rate = (done - first[1]) / max(now - first[0], 1e-9) if first else 0.0
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            say(f"  {title}: {done}/{total} {unit}{left}{', ' + note if note else ''}")

    yield update
