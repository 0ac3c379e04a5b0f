"""Seeded mutations of one small file per device format: only RecordError comes out, in bounded memory.

SCP-ECG is mutated inside its sections and wrapped anew with right checksums, so that mutations reach the parser behind
them. `BEATRAY_CHAOS=1` runs 10,000 per format; `-s` shows the worst time and memory.
"""

from __future__ import annotations

import re
import struct
import time
import tracemalloc
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import device_files as made
from bad_device_files import COUNTS, GOOD, MEMORY, warm_up, windows_of
from beatray.record import INDEPENDENT_LEADS, RecordError, Window
from counts import count
from watched import NASTY, mutate_bytes, outcome, tripwire

MUTATIONS = count(200, 10_000)
SIGNALS = 13


def mutated_xml(data: bytes, rng: np.random.Generator) -> bytes:
    """Edits of characters, numbers, attributes and whole elements, or of raw bytes."""
    code = "utf-16" if data[:2] == b"\xff\xfe" else "latin-1"
    if rng.integers(4) == 0:
        return mutate_bytes(data, rng)
    text = data.decode(code)
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(5))
        at = int(rng.integers(len(text)))
        if kind == 0:
            spans = [m.span(1) for m in re.finditer(r'[>"]([^<>"]{1,12})[<"]', text)]
            start, end = spans[int(rng.integers(len(spans)))] if spans else (at, at)
            text = text[:start] + NASTY[int(rng.integers(len(NASTY)))] + text[end:]
        elif kind == 1:
            tags = [m.span() for m in re.finditer(r"<(\w+)[^<>]*>[^<>]{0,40}</\1>", text)]
            start, end = tags[int(rng.integers(len(tags)))] if tags else (at, at)
            text = text[:start] + text[start:end] * int(rng.integers(3)) + text[end:]
        elif kind == 2:
            text = text[:at] + text[at + int(rng.integers(1, 400)) :]
        elif kind == 3:
            text = text[:at] + chr(int(rng.integers(1, 256))) + text[at + 1 :]
        else:
            text = text[:at] + NASTY[int(rng.integers(len(NASTY)))] + text[at:]
        text = text or "<"
    return text.encode(code, errors="replace")


@lru_cache
def scp_bodies(order: int, huffman: bool) -> dict[int, bytes]:
    return made.scp_bodies(COUNTS, order=order, huffman=huffman)


@lru_cache
def reference_beat(huffman: bool) -> bytes:
    columns = [COUNTS[:300, position].tolist() for position in INDEPENDENT_LEADS]
    return made.scp_signal_section(columns, 1, huffman, 1000, 0)


def mutated_scp(rng: np.random.Generator) -> bytes:
    """Sections changed inside, wrapped with right checksums; now and then the wrapping itself."""
    bodies = dict(scp_bodies(int(rng.integers(3)), bool(rng.integers(2))))
    if rng.integers(3) == 0:
        bodies[3] = bytes((bodies[3][0], bodies[3][1] | 1)) + bodies[3][2:]
        zone = struct.pack("<HIII", 0, 101, 201, 400)
        bodies[4] = struct.pack("<3H", 600, 101, 1) + zone
        bodies[5] = reference_beat(2 in bodies)
    numbers = sorted(bodies)
    for _ in range(int(rng.integers(1, 3))):
        number = numbers[int(rng.integers(len(numbers)))]
        head = bodies[number][:80]
        bodies[number] = (
            (mutate_bytes(head, rng) + bodies[number][80:]) if rng.integers(2) else mutate_bytes(bodies[number], rng)
        )
    data = made.scp_record(bodies, protocol=int(rng.choice([13, 20, 30])))
    return mutate_bytes(data, rng) if rng.integers(10) == 0 else data


def mutated_edf(data: bytes, rng: np.random.Generator) -> bytes:
    """Mostly the header's fields."""
    if rng.integers(4) == 0:
        return mutate_bytes(data, rng)
    n_header = 256 * (SIGNALS + 1)
    head = bytearray(data[:n_header])
    for _ in range(int(rng.integers(1, 4))):
        at = 8 * int(rng.integers(n_header // 8))
        head[at : at + 8] = f"{NASTY[int(rng.integers(len(NASTY)))]:<8}".encode()[:8]
    return bytes(head) + data[n_header:]


def mutated_dicom(data: bytes, rng: np.random.Generator) -> bytes:
    """Mostly in front of the samples: lengths, tags, kinds and values."""
    n_head = data.index(struct.pack("<HH", 0x5400, 0x1010)) + 12
    return mutate_bytes(data[:n_head], rng) + data[n_head:] if rng.integers(4) else mutate_bytes(data, rng)


def mutate(name: str, rng: np.random.Generator) -> bytes:
    if name == "SCP-ECG":
        return mutated_scp(rng)
    if name == "EDF":
        return mutated_edf(GOOD[name], rng)
    return mutated_dicom(GOOD[name], rng) if name == "DICOM" else mutated_xml(GOOD[name], rng)


def silent(folder: Path, name: str) -> list[Window]:
    """The windows of the file; a refusal must not quote anything personal."""
    try:
        return windows_of(folder, name)
    except RecordError as error:
        for secret in (*made.PERSON.values(), "1964-11-03", "03-NOV-1964"):
            assert secret not in error.detail
        raise


@pytest.mark.parametrize("name", GOOD)
def test_mutations(tmp_path: Path, name: str) -> None:
    """Only RecordError comes out, no personal word in its text, and nothing else is opened."""
    warm_up(tmp_path)
    outcomes: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    for number in range(MUTATIONS):
        data = mutate(name, np.random.default_rng([list(GOOD).index(name), number]))
        (tmp_path / "x").write_bytes(data)
        measured = number % 10 == 0
        if measured:
            tracemalloc.start()
        began = time.process_time()
        try:
            with tripwire(tmp_path):
                found = outcome(lambda: silent(tmp_path, name))
        finally:
            took = time.process_time() - began
            if measured:
                largest = max(largest, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        if not measured and found != "read":
            slowest = max(slowest, took)
        outcomes[found] += 1
    print(f"{name}: {dict(outcomes)}; slowest refusal {1e3 * slowest:.1f} ms, most memory {largest / 2**20:.1f} MiB")
    assert largest < MEMORY
    assert len(outcomes) >= 4
    assert sum(outcomes.values()) - outcomes["read"] > MUTATIONS // 10
    assert outcomes["reader_fault"] == 0
