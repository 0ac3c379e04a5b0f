"""metrics.jsonl and ids.jsonl: one line per step, appended as training goes, cut back when a run resumes.

The files are the record of a run; tracking reads them and may lag behind. Contract: after `reopen(step)` no line of a
step at or after `step` is left, so replayed steps are never written twice. Lines of an older version are read, and
written again on a resume, under the names that figures have today.
"""

from __future__ import annotations

import errno
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from beatray.full_disk import named


class Journal:
    """An append-only file of JSON lines, each with an integer `step` (the global step, from 0)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._size = 0
        self._waiting: list[bytes] = []  # lines that a full disk has not taken yet

    def reopen(self, step: int) -> None:
        """Drop the lines of `step` and later, and any torn last line; then append from there."""
        kept = [json.dumps(line) for line in read_lines(self.path) if int(line["step"]) < step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".writing")
        with named(self.path), aside.open("w") as file:
            file.write("".join(f"{line}\n" for line in kept))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)
        self._file = self.path.open("ab", buffering=0)
        self._size = self.path.stat().st_size

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; the operating system has it when this returns.

        OSError when it does not take it: no part of the line is left in the file, and it is tried again with the next.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not open: call reopen first")
        self._waiting.append(json.dumps(line).encode() + b"\n")
        self._flush()

    def _flush(self) -> None:
        while self._file is not None and self._waiting:
            data = self._waiting[0]
            try:
                with named(self.path):
                    written = self._file.write(data)
            except OSError:
                written = 0
                raise
            finally:
                if written != len(data):
                    self._file.truncate(self._size)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            self._size += len(data)
            self._waiting.pop(0)

    def sync(self) -> None:
        """Make what was written durable; nothing if it is not open."""
        if self._file is not None:
            self._flush()
            with named(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Make it durable and close."""
        if self._file is not None:
            try:
                self.sync()
            finally:
                self._file.close()
                self._file = None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a torn last line (a writer was killed) is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append({figure_today(name): value for name, value in json.loads(text).items()})
        except ValueError:
            break
    return lines


_OLDER = re.compile(
    r"(rhythm|beat|feature)_(loss|explained|rows|skipped|spread|target_entropy|own_pair_mass|\w+_q\d\d)"
)
_TERMS = {"rhythm": "record"}
_FIGURES = {"own_pair_mass": "positive_mass", "spread": "embedding_std"}


@lru_cache
def figure_today(name: str) -> str:
    """What a figure of a step is called now that was called otherwise before 0.2: rhythm_loss is record/loss."""
    found = _OLDER.fullmatch(name)
    if found is None:
        return name
    return f"{_TERMS.get(found[1], found[1])}/{_FIGURES.get(found[2], found[2])}"


class Tail:
    """Follows a journal while another process writes it: whole lines only, from the start again if it was cut back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._identity = (0, 0)

    def fresh(self) -> tuple[list[dict[str, Any]], bool]:
        """The lines written since the last call, and whether they start at the top of a new or cut-back file."""
        if not self._path.exists():
            return [], False
        from_start = False
        with self._path.open("rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != self._identity or about.st_size < self._offset:
                self._identity, self._offset, from_start = (about.st_dev, about.st_ino), 0, True
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(text) for text in whole.splitlines()], from_start
