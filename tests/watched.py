"""For hostile tests: a watch over what is opened, and seeded edits of text and bytes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from beatray.record import RecordError, Window

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def tripwire(folder: Path) -> Iterator[None]:
    """Fail when anything outside `folder` is opened, the reader's own scratch folder apart.

    Names without a slash are opened relative to a folder that was itself checked this way.
    """
    global _opened
    _opened = []
    try:
        yield
        seen = _opened
    finally:
        _opened = None
    scratch = str(Path(tempfile.gettempdir()) / "beatray-")
    bad = [path for path in seen if "/" in path and not path.startswith((f"{folder}/", scratch))]
    assert not bad, bad
    assert ".." not in seen


NASTY = (
    *("0", "-1", "1e309", "nan", "-inf", "99999999999999999999", "../x", "/etc/passwd", "~", "-", "\0", "\u00e9", "#"),
    *("16x2", "16:7", "16+24", "212", "8", "310", "311", "61", "160", "32", "508", "516", "524", "(5)", "/V", "1e-9"),
    *("2147483648", "4294967296", "I", "V1", "\n", "\r", "\t", " ", "r/3", "0.0", "+", "1_000", "\u0663", "0x10"),
)


def mutate_text(text: str, rng: np.random.Generator) -> str:
    """One to three random edits of a header: characters, words, lines."""
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(6))
        rows = text.split("\n")
        row = int(rng.integers(len(rows)))
        if kind == 0 and text:
            at = int(rng.integers(len(text)))
            text = text[:at] + chr(int(rng.integers(256))) + text[at + 1 :]
        elif kind == 1 and text:
            start = int(rng.integers(len(text)))
            text = text[:start] + text[start + int(rng.integers(1, 40)) :]
        elif kind == 2 and rows[row].split():
            cells = rows[row].split(" ")
            cells[int(rng.integers(len(cells)))] = NASTY[int(rng.integers(len(NASTY)))]
            rows[row] = " ".join(cells)
            text = "\n".join(rows)
        elif kind == 3:
            rows.insert(int(rng.integers(len(rows))), rows[row])
            text = "\n".join(rows)
        elif kind == 4:
            del rows[row]
            text = "\n".join(rows)
        else:
            at = int(rng.integers(len(text) + 1))
            text = text[:at] + NASTY[int(rng.integers(len(NASTY)))] + text[at:]
    return text


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four random edits of a binary file: bytes set, cut, doubled, or the end taken off."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not bad:
            break
        at = int(rng.integers(len(bad)))
        kind = int(rng.integers(5))
        if kind <= 1:
            bad[at] = int(rng.integers(256))
        elif kind == 2:
            del bad[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            bad[at:at] = bad[at : at + int(rng.integers(1, 9))]
        else:
            del bad[at:]
    return bytes(bad)


def outcome(work: Callable[[], list[Window]]) -> str:
    """The reason of a refusal, or "read" after a check that what was read is a window; other errors pass through."""
    try:
        windows = work()
    except RecordError as error:
        return error.reason.value
    for window in windows:
        assert window.signal_uv.shape == (12, 5000)
        assert 2500 <= window.n_samples <= 5000
        assert window.lead_mask & 0xFFF == window.lead_mask != 0
    return "read"
