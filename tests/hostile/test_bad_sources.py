"""Damaged copies of whole data sets: tables, headers and signals of any source; only RecordError may come out.

One file of a small, valid copy is mutated at a time; then everything is listed and read. A recording that cannot be
trusted is refused by its name, a table that cannot be read refuses the set, and nothing outside the set is opened.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # noqa: F401 (opens its own files when first imported)
import numpy as np
import pytest

from array_files import ecg_table, mat, npy, npz, parquet
from beatray.ingest.long_record import windows_of
from beatray.ingest.sources import code15
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import Tree, open_tree
from beatray.record import RecordError
from counts import count
from source_copies import code15_copy, incart_copy, mimic_copy, zzu_copy
from wfdb_files import ecg_counts, write_record

MUTATIONS = count(100, 5_000)
STACK = np.array([ecg_counts(2600, seed=seed).T for seed in range(3)])


def ptb_copy(root: Path) -> Tree:
    (root / "patient001").mkdir()
    text = "# age: 81\n# sex: female\n# ECG date: 01/10/1990\n# Reason for admission: Myocardial infarction\n"
    adc = ecg_counts(2600)
    write_record(root / "patient001", "s0010_re", np.column_stack([adc, adc[:, :3]]), leads=PTB_LEADS, comments=text)
    return open_tree(str(root))


def cpsc_copy(root: Path) -> Tree:
    for number, values in enumerate(STACK):
        (root / f"A000{number}.mat").write_bytes(
            mat(packed=True, ECG={"sex": "Male", "age": 52.0, "data": values / 1000})
        )
    text = "Recording,First_label,Second_label,Third_label\nA0000,1,,\nA0001,5,2,\nA0002,9,,\n"
    (root / "REFERENCE.csv").write_text(text)
    return open_tree(str(root))


def arrays_copy(root: Path) -> Tree:
    plan = "rate_hz: 500\nleads: [I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6]\nunits: uV\narray: flat\n"
    (root / "recordings.yaml").write_text(
        plan + "files: ['*.npy', '*.npz', '*.parquet']\ntable: t.csv\ncolumns: {file: f, row: n, id: id, age: age}\n"
    )
    (root / "a.npy").write_bytes(npy(STACK[0]))
    (root / "b.npz").write_bytes(npz(packed=True, flat=STACK[1]))
    (root / "c.parquet").write_bytes(parquet(ecg_table(STACK)))
    (root / "t.csv").write_text("f,n,id,age\na,,A,61\nb,,B,62\nc,0,C0,63\nc,2,C2,64\n")
    return open_tree(str(root))


PTB_LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6", "vx", "vy", "vz")
COPIES: dict[str, Callable[[Path], Tree]] = {
    "mimic": mimic_copy,
    "incart": lambda root: incart_copy(root, seconds=21),
    "zzu": zzu_copy,
    "code15": code15_copy,
    "ptb": ptb_copy,
    "cpsc": cpsc_copy,
    "arrays": arrays_copy,
}

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def tripwire(folder: Path) -> Iterator[None]:
    """Fail when anything outside `folder` is opened; names without a slash hang on a folder that was checked."""
    global _opened
    _opened = []
    try:
        yield
        seen = _opened
    finally:
        _opened = None
    assert not [path for path in seen if "/" in path and not path.startswith(f"{folder}/")]
    assert ".." not in seen


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips, cuts, blocks deleted or doubled, and, in text, cells swapped for what a table should not hold."""
    bad = bytearray(data)
    overrides = (
        b"",
        b"../../etc/passwd",
        b"/etc/passwd",
        b"-1",
        b"1e999",
        b"nan",
        b"0",
        b"#",
        b'"',
        b"\0",
        b"9" * 30,
        b"\xff",
    )
    for _ in range(int(rng.integers(1, 4))):
        if len(bad) < 4:
            break
        at = int(rng.integers(len(bad)))
        kind = int(rng.integers(6))
        if kind == 0:
            bad[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del bad[at:]
        elif kind == 2:
            del bad[at : at + int(rng.integers(1, 30))]
        elif kind == 3:
            bad[at:at] = bad[at : at + int(rng.integers(1, 60))]
        else:
            ends = [k for k in range(at, min(at + 200, len(bad))) if bad[k] in b",\n :="]
            stop = ends[0] if ends else at + 1
            starts = [k for k in range(at, max(at - 200, -1), -1) if bad[k] in b",\n :="]
            start = starts[0] + 1 if starts else at
            bad[start:stop] = overrides[int(rng.integers(len(overrides)))]
    return bytes(bad)


def read_all(source: Any, tree: Tree) -> Counter[str]:
    """List and read everything; what came of each recording."""
    outcomes: Counter[str] = Counter()
    try:
        items = source.find(tree)
    except RecordError as error:
        return Counter({f"set: {error.reason.value}": 1})
    assert len({item.name for item in items}) == len(items)
    for item in items:
        try:
            for record in source.read(tree, item):
                assert record.record_id == f"{source.name}/{item.name}"
                windows_of(record)
            outcomes["read"] += 1
        except RecordError as error:
            assert 0 < len(error.detail) < 600
            outcomes[error.reason.value] += 1
    return outcomes


@pytest.mark.parametrize("name", COPIES)
def test_mutated_data_sets(tmp_path: Path, name: str) -> None:
    source = SOURCES[name]
    root = tmp_path / "set"
    root.mkdir()
    tree = COPIES[name](root)
    good = read_all(source, tree)
    assert set(good) == {"read"}
    files = [root / path for path in tree.names()]
    total: Counter[str] = Counter()
    for number in range(MUTATIONS):
        rng = np.random.default_rng([sum(name.encode()), number])
        path = files[int(rng.integers(len(files)))]
        data = path.read_bytes()
        path.write_bytes(mutate(data, rng))
        code15._kept.clear()
        with tripwire(root):
            total += read_all(source, open_tree(str(root)))
        path.write_bytes(data)
    assert total["read"] > 0
    assert sum(total.values()) - total["read"] > MUTATIONS // 10


def test_the_tripwire_trips(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), tripwire(tmp_path):
        Path(__file__).read_bytes()
