"""How commands talk: plain lines in a log, a progress bar on a terminal, and one readable line for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int, str], None]
"""(done, total, note)"""

LINE_EVERY_S = 5.0


def say(text: str = "") -> None:
    """One line to the user, at once."""
    print(text, flush=True)


@contextmanager
def progress(title: str, unit: str) -> Iterator[Update]:
    """A bar with rate and time left on a terminal; a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        from rich.console import Console

        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
        return
    began = said = time.monotonic()

    def update(done: int, total: int, note: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_EVERY_S:
            said = now
            rate = done / max(now - began, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done else ""
            say(f"  {title}: {done}/{total} {unit}{left}{', ' + note if note else ''}")

    yield update
