"""Damaged and malicious MATLAB 5, npy, npz, HDF5 and Parquet files, and recordings.yaml: only RecordError comes out.

Named faults first: claims of size that are not there, bombs, pickles, types that run code elsewhere. Then seeded
mutations (flipped bits, cuts, grown counts, blocks deleted and doubled) of small valid files, as many as `make chaos`
asks for. Memory is what the process has at its peak, so it counts what the C libraries take as well.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from array_files import (
    ecg_table,
    in_memory,
    mat,
    mat_element,
    mat_file,
    mat_packed,
    mat_variable,
    npy,
    npz,
    parquet,
)
from beatray.ingest.formats.hdf5 import open_hdf5, plain_array, read_rows
from beatray.ingest.formats.mat5 import read_mat5
from beatray.ingest.formats.npy import npy_layout, npz_member, read_part
from beatray.ingest.formats.parquet_table import open_table, read_signal, read_texts
from beatray.ingest.sources.arrays_plan import read_plan
from beatray.record import Reason, RecordError
from counts import count

MUTATIONS = count(200, 10_000)
MAX_BYTES = 64 * 1024 * 1024
RNG = np.random.default_rng(11)
SIGNAL = RNG.normal(0, 300, (12, 250)).round()
STACK = np.array([SIGNAL, SIGNAL + 1, SIGNAL + 2, SIGNAL + 3])


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the process takes more than 64 MiB above what it has, at any moment in between."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    yield
    grown = memory("VmHWM") - before
    assert grown < MAX_BYTES, f"{grown} bytes"


def read_matlab(data: bytes) -> None:
    for value in read_mat5(data).values():
        for plain in value.values() if isinstance(value, dict) else (value,):
            assert isinstance(plain, str) or plain.nbytes < MAX_BYTES


def read_npy(data: bytes) -> None:
    file = in_memory(data)
    layout = npy_layout(file)
    read_part(file, layout, 2 if len(layout.shape) > 2 else None)


def read_npz(data: bytes) -> None:
    with npz_member(in_memory(data), "ecg") as member:
        read_part(member, npy_layout(member), None)


def read_hdf5(data: bytes) -> None:
    with in_memory(data) as file:
        opened = open_hdf5(file)
        try:
            ids, signals = plain_array(file, opened, "exam_id"), plain_array(file, opened, "tracings")
            read_rows(ids, 0, ids.shape[0])
            read_rows(signals, 1, 2)
        finally:
            opened.close()


def read_parquet(data: bytes) -> None:
    with in_memory(data) as file:
        table = open_table(file)
        read_texts(table, ["id"])
        for column, dtype in (("flat", None), ("nested", None), ("bytes", "<i2")):
            read_signal(table, column, 1, dtype)


def read_yaml(data: bytes) -> None:
    read_plan(data)


def hdf5(**options: Any) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w", **({"libver": options.pop("libver")} if "libver" in options else {})) as opened:
        opened["exam_id"] = np.array([7, 8, 9, 0])
        opened.create_dataset("tracings", data=STACK.transpose(0, 2, 1).astype("<f4"), **options)
    return out.getvalue()


def npy_header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data


def swap(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def bomb(size: int) -> bytes:
    """A MATLAB variable of zeros that unpacks to `size` bytes, packed about 1000 to 1."""
    packer = zlib.compressobj(9)
    head = mat_variable(b"x", 9, (1, 1), b"")
    del head
    flags = (
        mat_element(6, struct.pack("<2I", 9, 0)) + mat_element(5, struct.pack("<2i", size, 1)) + mat_element(1, b"x")
    )
    body = struct.pack("<2I", 14, len(flags) + 8 + size) + flags + struct.pack("<2I", 2, size)
    packed = packer.compress(body)
    for _ in range(size >> 20):
        packed += packer.compress(bytes(1 << 20))
    packed += packer.flush()
    return struct.pack("<2I", 15, len(packed)) + packed


def packed_npz(data: bytes, claim: int | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ecg.npy", data)
    if claim is None:
        return out.getvalue()
    entry = bytearray(out.getvalue())
    at = entry.index(b"PK\1\2")
    entry[at + 24 : at + 28] = struct.pack("<I", claim)
    return bytes(entry)


def numbers(name: bytes, axes: tuple[int, ...], payload: bytes, stored: int = 9, kind: int = 6) -> bytes:
    return mat_variable(name, kind, axes, mat_element(stored, payload))


FAULTS: dict[str, tuple[Callable[[bytes], None], Callable[[], bytes], Reason]] = {
    "mat: empty": (read_matlab, lambda: b"", Reason.FORMAT),
    "mat: header only": (read_matlab, lambda: mat_file(), Reason.TRUNCATED),
    "mat: version 2": (read_matlab, lambda: swap(mat(x=SIGNAL), b"\0\1IM", b"\0\2IM"), Reason.FORMAT),
    "mat: shape larger than data": (
        read_matlab,
        lambda: mat_file(numbers(b"x", (1 << 20, 1 << 20), bytes(80))),
        Reason.HEADER,
    ),
    "mat: shape whose product overflows": (
        read_matlab,
        lambda: mat_file(numbers(b"x", (1 << 30, 1 << 30, 1 << 30, 16), bytes(8))),
        Reason.HEADER,
    ),
    "mat: negative axis": (read_matlab, lambda: mat_file(numbers(b"x", (-1, -1), bytes(8))), Reason.HEADER),
    "mat: one axis": (read_matlab, lambda: mat_file(numbers(b"x", (1,), bytes(8))), Reason.HEADER),
    "mat: 100 axes": (read_matlab, lambda: mat_file(numbers(b"x", (1,) * 100, bytes(8))), Reason.HEADER),
    "mat: element longer than the file": (
        read_matlab,
        lambda: mat_file(struct.pack("<2I", 14, 0x7FFFFFFF) + bytes(40)),
        Reason.TRUNCATED,
    ),
    "mat: empty element for ever": (read_matlab, lambda: mat_file(bytes(8) * 1000), Reason.FORMAT),
    "mat: bytes behind the last element": (
        read_matlab,
        lambda: mat_file(mat_variable(b"x", 6, (1, 1), mat_element(9, bytes(8)) * 2)),
        Reason.TRAILING_BYTES,
    ),
    "mat: one variable twice": (
        read_matlab,
        lambda: mat_file(numbers(b"x", (1, 1), bytes(8)) * 2),
        Reason.HEADER,
    ),
    "mat: 100 variables": (
        read_matlab,
        lambda: mat_file(*(numbers(b"x%d" % k, (1, 1), bytes(8)) for k in range(100))),
        Reason.HEADER,
    ),
    "mat: name of 1000 bytes": (read_matlab, lambda: mat_file(numbers(b"x" * 1000, (1, 1), bytes(8))), Reason.HEADER),
    "mat: numbers stored as text": (
        read_matlab,
        lambda: mat_file(numbers(b"x", (1, 1), b"12345678", stored=16)),
        Reason.FORMAT,
    ),
    "mat: bytes that claim to be doubles": (
        read_matlab,
        lambda: mat_file(mat_packed(numbers(b"x", (7 << 20, 1), bytes(7 << 20), stored=2))),
        Reason.ABSURD_SIZE,
    ),
    "mat: packed in packed": (
        read_matlab,
        lambda: mat_file(mat_packed(mat_packed(numbers(b"x", (1, 1), bytes(8))))),
        Reason.FORMAT,
    ),
    "mat: bomb": (read_matlab, lambda: mat_file(bomb(256 << 20)), Reason.ABSURD_SIZE),
    "mat: two small bombs": (read_matlab, lambda: mat_file(bomb(6 << 20), bomb(6 << 20)), Reason.ABSURD_SIZE),
    "mat: cut in a packed variable": (read_matlab, lambda: mat(packed=True, x=SIGNAL)[:-40], Reason.TRUNCATED),
    "mat: packed variable damaged": (
        read_matlab,
        lambda: mat_file(struct.pack("<2I", 15, 60) + b"\x78\x9c" + bytes(58)),
        Reason.FORMAT,
    ),
    "mat: struct with a nested struct": (read_matlab, lambda: mat(x={"a": {"b": 1}}), Reason.FORMAT),
    "npy: empty": (read_npy, lambda: b"", Reason.FORMAT),
    "npy: magic only": (read_npy, lambda: npy(SIGNAL)[:8], Reason.TRUNCATED),
    "npy: version 9": (read_npy, lambda: swap(npy(SIGNAL), b"NUMPY\1", b"NUMPY\11"), Reason.FORMAT),
    "npy: header longer than the file": (read_npy, lambda: b"\x93NUMPY\1\0\xff\x26{ }", Reason.TRUNCATED),
    "npy: header of a gigabyte": (read_npy, lambda: b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 30), Reason.ABSURD_SIZE),
    "npy: cut": (read_npy, lambda: npy(SIGNAL)[:-1], Reason.TRUNCATED),
    "npy: a byte more": (read_npy, lambda: npy(SIGNAL) + b"\0", Reason.TRAILING_BYTES),
    "npy: shape of 1e18": (
        read_npy,
        lambda: npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 1000000)}"),
        Reason.TRUNCATED,
    ),
    "npy: shape of 1e30": (
        read_npy,
        lambda: npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1" + "0" * 30 + ",)}"),
        Reason.HEADER,
    ),
    "npy: negative axes": (
        read_npy,
        lambda: npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -4)}", bytes(64)),
        Reason.HEADER,
    ),
    "npy: true as an axis": (
        read_npy,
        lambda: npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}", bytes(8)),
        Reason.HEADER,
    ),
    "npy: pickled objects": (
        read_npy,
        lambda: npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
        Reason.FORMAT,
    ),
    "npy: structured type": (read_npy, lambda: npy(np.zeros(3, [("a", "<f4"), ("b", "<i2")])), Reason.FORMAT),
    "npy: text": (read_npy, lambda: npy(np.array(["a", "b"])), Reason.FORMAT),
    "npy: complex": (read_npy, lambda: npy(SIGNAL * 1j), Reason.FORMAT),
    "npy: code in the header": (read_npy, lambda: npy_header("__import__('os').abort()"), Reason.HEADER),
    "npy: deep header": (read_npy, lambda: npy_header("(" * 9000), Reason.HEADER),
    "npy: keys missing": (read_npy, lambda: npy_header("{'descr': '<f8'}"), Reason.HEADER),
    "npy: 20 axes": (read_npy, lambda: npy(np.zeros((1,) * 20)), Reason.HEADER),
    "npz: not a zip": (read_npz, lambda: npy(SIGNAL), Reason.CORRUPT_ARCHIVE),
    "npz: other arrays": (read_npz, lambda: npz(x=SIGNAL), Reason.METADATA),
    "npz: bomb": (read_npz, lambda: packed_npz(npy(np.zeros(16 << 20))), Reason.ABSURD_SIZE),
    "npz: bomb that claims to be small": (
        read_npz,
        lambda: packed_npz(npy(np.zeros(16 << 20)), claim=100_000),
        Reason.CORRUPT_ARCHIVE,
    ),
    "npz: claims 4 GB": (read_npz, lambda: packed_npz(npy(SIGNAL), claim=0xFFFFFFF0), Reason.ABSURD_SIZE),
    "npz: cut": (read_npz, lambda: npz(ecg=SIGNAL)[:-30], Reason.CORRUPT_ARCHIVE),
    "npz: pickled member": (read_npz, lambda: npz(ecg=np.array([{"a": 1}])), Reason.FORMAT),
    "hdf5: empty": (read_hdf5, lambda: b"", Reason.FORMAT),
    "hdf5: signature only": (read_hdf5, lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), Reason.FORMAT),
    "hdf5: cut": (read_hdf5, lambda: hdf5()[:-1000], Reason.FORMAT),
    "hdf5: chunks packed 1000 to 1": (
        read_hdf5,
        lambda: flat_hdf5(chunks=(4, 1 << 18, 12), compression="gzip"),
        Reason.ABSURD_SIZE,
    ),
    "hdf5: a row of 100 MB": (read_hdf5, lambda: flat_hdf5(samples=1 << 21, chunks=(1, 1024, 12)), Reason.ABSURD_SIZE),
    "hdf5: a million chunks in a row": (
        read_hdf5,
        lambda: flat_hdf5(samples=1 << 18, chunks=(1, 2, 1)),
        Reason.ABSURD_SIZE,
    ),
    "hdf5: 100,000 rows in a chunk": (
        read_hdf5,
        lambda: flat_hdf5(samples=1 << 10, rows=1 << 17, chunks=(1 << 17, 4, 1)),
        Reason.ABSURD_SIZE,
    ),
    "parquet: empty": (read_parquet, lambda: b"", Reason.FORMAT),
    "parquet: marks only": (read_parquet, lambda: b"PAR1" + bytes(4) + b"PAR1", Reason.FORMAT),
    "parquet: footer longer than the file": (
        read_parquet,
        lambda: b"PAR1" + bytes(40) + struct.pack("<I", 1 << 30) + b"PAR1",
        Reason.ABSURD_SIZE,
    ),
    "parquet: cut": (read_parquet, lambda: parquet(ecg_table(STACK))[:-10], Reason.FORMAT),
    "parquet: encrypted": (read_parquet, lambda: parquet(ecg_table(STACK))[:-4] + b"PARE", Reason.FORMAT),
    "parquet: no such column": (read_parquet, lambda: parquet(pa.table({"id": ["a", "b"]})), Reason.METADATA),
    "parquet: a billion equal numbers": (read_parquet, lambda: flat_parquet(30 << 20), Reason.ABSURD_SIZE),
}


def flat_hdf5(*, rows: int = 4, samples: int = 1 << 18, **options: Any) -> bytes:
    """Few bytes for a large shape: chunks of zeros where they are packed, and none written otherwise."""
    out = io.BytesIO()
    with h5py.File(out, "w") as opened:
        opened.create_dataset("exam_id", data=np.zeros(rows, "<i1"), chunks=(min(rows, 1 << 12),), compression="gzip")
        made = opened.create_dataset("tracings", (rows, samples, 12), "<f4", **options)
        if "compression" in options:
            made[...] = 0.0
    return out.getvalue()


def flat_parquet(n: int) -> bytes:
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n, np.float32)), n // 2)
    table = pa.table({"id": ["a", "b"], "flat": values.cast(pa.list_(pa.float32()))})
    return parquet(table, compression="zstd")


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    read, make, reason = FAULTS[name]
    data = make()
    assert len(data) < 4 << 20
    with bounded(), pytest.raises(RecordError) as caught:
        read(data)
    assert caught.value.reason is reason, caught.value
    assert 0 < len(caught.value.detail) < 500


VALID: dict[str, tuple[Callable[[bytes], None], bytes]] = {
    "mat": (read_matlab, mat(ECG={"sex": "Male", "age": 52.0, "data": SIGNAL[:, :40]})),
    "mat packed": (read_matlab, mat(packed=True, ECG={"sex": "Male", "age": 52.0, "data": SIGNAL}, rate=500)),
    "npy": (read_npy, npy(STACK[:, :, :20])),
    "npz": (read_npz, npz(ecg=SIGNAL[:, :20], other=np.eye(2))),
    "npz packed": (read_npz, npz(packed=True, ecg=SIGNAL)),
    "hdf5": (read_hdf5, hdf5()),
    "hdf5 latest": (read_hdf5, hdf5(libver="latest", chunks=(1, 250, 12))),
    "hdf5 gzip": (read_hdf5, hdf5(chunks=(2, 100, 5), compression="gzip", shuffle=True)),
    "hdf5 lzf": (read_hdf5, hdf5(chunks=(1, 250, 12), compression="lzf")),
    "parquet": (read_parquet, parquet(ecg_table(STACK), compression="none")),
    "parquet zstd": (read_parquet, parquet(ecg_table(STACK), compression="zstd", row_group_size=3)),
    "parquet checked": (read_parquet, parquet(ecg_table(STACK), write_page_checksum=True)),
    "yaml": (
        read_yaml,
        b"files: ['signals/*.npy', x.npz]\nrate_hz: 500\nleads: [I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6]\n"
        b"units: mV\naxes: [recordings, samples, leads]\narray: ecg\ntable: t.csv\ncolumns: {file: f, patient: mrn}\n",
    ),
}
GROWN = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three faults of the kinds that the module's docstring names, more often near the ends of a file."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        size = len(bad)
        if size < 4:
            break
        near = int(min(rng.integers(1, 2400), size))
        at = int((rng.integers(size), rng.integers(near), size - 1 - rng.integers(near))[int(rng.integers(3))])
        kind = int(rng.integers(6))
        if kind == 0:
            bad[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            bad[at] = int(rng.integers(256))
        elif kind == 2:
            width = (1, 2, 4, 8)[int(rng.integers(4))]
            value = GROWN[int(rng.integers(len(GROWN)))] & ((1 << 8 * width) - 1)
            bad[at : at + width] = value.to_bytes(width, ("little", "big")[int(rng.integers(2))])
        elif kind == 3:
            del bad[at:]
        elif kind == 4:
            del bad[at : at + int(rng.integers(1, 40))]
        else:
            start = int(rng.integers(size))
            bad[at:at] = bad[start : start + int(rng.integers(1, 40))]
    return bytes(bad)


@pytest.mark.parametrize("name", VALID)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    read, good = VALID[name]
    read(good)
    outcomes: Counter[str] = Counter()
    with bounded():
        for number in range(MUTATIONS):
            bad = mutate(good, np.random.default_rng([sum(name.encode()), number]))
            try:
                read(bad)
                outcomes["read"] += 1
            except RecordError as error:
                assert 0 < len(error.detail) < 500
                outcomes[error.reason.value] += 1
    assert MUTATIONS - outcomes["read"] > MUTATIONS // 5
    assert "reader_fault" not in outcomes
