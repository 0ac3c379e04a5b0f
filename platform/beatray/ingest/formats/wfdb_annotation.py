"""MIT-format annotation files: when something was marked on a recording, and with what symbol.

A file is a sequence of 16-bit words, the upper six bits a code, the lower ten a time step; some codes stand for a long
step (SKIP) or attach a number, subtype, channel or text to the mark before them. LUDB keeps one such file per lead, in
which every wave is an onset `(`, a peak `p`, `N` or `t`, and an end `)`, of which either bound can be missing.

Contract: `parse_annotations(bytes)` gives `Annotations` in file order, samples int64 at the record's rate, or raises
`RecordError(ANNOTATION)`; it never reads past the file nor allocates more than the file's size asks for. Marks that
carry no event (code 0, and notes at sample 0 that define the file) are left out, as the reference reader does.
Source: WFDB Applications Guide, annot(5); LUDB: Kalyakulina et al., IEEE Access 8:186181 (2020).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.record import Reason, RecordError, Wave

MAX_ANNOTATION_BYTES = 64 * 1024 * 1024
MAX_SAMPLE = (1 << 31) - 1
SYMBOLS = (
    *(" ", "N", "L", "R", "a", "V", "F", "J", "A", "S", "E", "j", "/", "Q", "~", "", "|", "", "s", "T", "*", "D"),
    *('"', "=", "p", "B", "^", "t", "+", "u", "?", "!", "[", "]", "e", "n", "@", "x", "f", "(", ")", "r"),
)
"""Symbol of each annotation code; empty where the standard assigns none."""

WAVE_OF_SYMBOL = {"p": "P", "N": "QRS", "t": "T"}

_NOTE, _LAST_CODE = 22, 49
_SKIP, _NUM, _SUB, _CHN, _AUX = 59, 60, 61, 62, 63
_RESOLUTION = re.compile(r"## time resolution: (\d{1,12}(?:\.\d{0,12})?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Annotations:
    """Marks in file order: samples int64 (n,), symbols, and the fields some files attach to them.

    `rate_hz` is the file's own time resolution where it declares one; samples then count at that rate.
    """

    samples: NDArray[np.int64]
    symbols: tuple[str, ...]
    subtypes: tuple[int, ...]
    channels: tuple[int, ...]
    numbers: tuple[int, ...]
    texts: tuple[str, ...]
    rate_hz: float | None


@dataclass(slots=True)
class _Mark:
    sample: int
    code: int
    channel: int
    number: int
    subtype: int = 0
    text: str = ""


def parse_annotations(data: bytes) -> Annotations:
    """Parse one MIT-format annotation file; see the module's contract."""
    if len(data) > MAX_ANNOTATION_BYTES:
        raise RecordError(Reason.ANNOTATION, f"annotation file of {len(data)} bytes, limit {MAX_ANNOTATION_BYTES}")
    if len(data) % 2 or len(data) < 2:
        raise RecordError(Reason.ANNOTATION, f"{len(data)} bytes are not a sequence of 16-bit words")
    marks = _read_marks(data)
    rate_hz: float | None = None
    events: list[_Mark] = []
    for mark in marks:
        if mark.code == _NOTE and mark.sample == 0:
            match = _RESOLUTION.match(mark.text)
            if match and rate_hz is None:
                rate_hz = float(match[1])
        elif mark.code:
            events.append(mark)
    return Annotations(
        samples=np.array([mark.sample for mark in events], np.int64),
        symbols=tuple(SYMBOLS[mark.code] if mark.code < len(SYMBOLS) else "" for mark in events),
        subtypes=tuple(mark.subtype for mark in events),
        channels=tuple(mark.channel for mark in events),
        numbers=tuple(mark.number for mark in events),
        texts=tuple(mark.text for mark in events),
        rate_hz=rate_hz,
    )


def waves_of_lead(annotations: Annotations, lead: int, n_samples: int) -> tuple[Wave, ...]:
    """The P, QRS and T waves of one LUDB annotation file, in time order; a missing bound is None.

    An onset belongs to the next peak, an end to the last one. Raises RecordError(ANNOTATION) for a mark outside the
    recording or out of order.
    """
    waves: list[Wave] = []
    onset: int | None = None
    open_wave: tuple[str, int | None, int] | None = None
    before = 0
    for sample, symbol in zip(annotations.samples.tolist(), annotations.symbols, strict=True):
        if not before <= sample < n_samples:
            raise RecordError(
                Reason.ANNOTATION, f"mark {symbol!r} at sample {sample} is out of order or outside 0..{n_samples - 1}"
            )
        before = sample
        if symbol in WAVE_OF_SYMBOL:
            if open_wave is not None:
                waves.append(Wave(lead, *open_wave, None))
            open_wave, onset = (WAVE_OF_SYMBOL[symbol], onset, sample), None
        elif symbol == "(":
            if open_wave is not None:
                waves.append(Wave(lead, *open_wave, None))
            open_wave, onset = None, sample
        elif symbol == ")" and open_wave is not None:
            waves.append(Wave(lead, *open_wave, sample))
            open_wave = None
    if open_wave is not None:
        waves.append(Wave(lead, *open_wave, None))
    return tuple(waves)


def _read_marks(data: bytes) -> list[_Mark]:
    """Every mark of the file, codes 0 included; checks that the file ends with its end mark."""
    words: list[int] = np.frombuffer(data, "<u2").tolist()
    marks: list[_Mark] = []
    sample = channel = number = position = 0
    skipped = False
    while position < len(words):
        word = words[position]
        position += 1
        code, step = word >> 10, word & 0x3FF
        if word == 0 and not skipped:
            if any(words[position:]):
                raise RecordError(Reason.ANNOTATION, f"data after the end mark at byte {2 * position}")
            return marks
        if code <= _LAST_CODE:
            sample += step
            if not 0 <= sample <= MAX_SAMPLE:
                raise RecordError(Reason.ANNOTATION, f"mark at sample {sample}")
            marks.append(_Mark(sample, code, channel, number))
            skipped = False
        elif code == _SKIP:
            if position + 2 > len(words):
                break
            jump = (words[position] << 16) | words[position + 1]  # the high word comes first, as on a PDP-11
            sample += jump - (1 << 32) if jump >= 1 << 31 else jump
            position += 2
            skipped = True
        elif not marks or skipped:
            raise RecordError(Reason.ANNOTATION, f"code {code} at byte {2 * position - 2} belongs to no mark")
        elif code == _NUM:
            marks[-1].number = number = _signed(step)
        elif code == _SUB:
            marks[-1].subtype = _signed(step)
        elif code == _CHN:
            marks[-1].channel = channel = step & 0xFF
        elif code == _AUX:
            length = step & 0xFF
            start = 2 * position
            position += (length + 1) // 2
            if 2 * position > len(data):
                break
            marks[-1].text = data[start : start + length].decode("latin-1")
        else:
            raise RecordError(Reason.ANNOTATION, f"code {code} at byte {2 * position - 2} is not assigned")
    raise RecordError(Reason.ANNOTATION, "the file ends without its end mark: it is cut")


def _signed(step: int) -> int:
    low = step & 0xFF
    return low - 256 if low >= 128 else low
