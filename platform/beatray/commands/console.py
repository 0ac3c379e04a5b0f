"""How commands talk: plain lines in a log, a progress bar on a terminal, and one readable line for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from beatray.commands.pace import Pace, duration_text

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
    """A bar with the time left on a terminal; a line every few seconds elsewhere."""
    pace = Pace()

    def time_left(total: int) -> str:
        left = pace.seconds_left(total, time.monotonic())
        return "" if left is None else f"{duration_text(left)} left"

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None, note="")

            def show(done: int, total: int, note: str) -> None:
                pace.add(time.monotonic(), done)
                note = ", ".join(filter(None, (time_left(total), note)))
                bar.update(task, completed=done, total=total, note=note)

            yield show
        return
    shown_at = time.monotonic()

    def update(done: int, total: int, note: str) -> None:
        nonlocal shown_at
        now = time.monotonic()
        pace.add(now, done)
        if now - shown_at >= LINE_EVERY_S:
            shown_at = now
            say(f"  {title}: {', '.join(filter(None, (f'{done}/{total} {unit}', time_left(total), note)))}")

    yield update
