"""Small files of the array formats for tests, written by the formats' own libraries or, byte by byte, by hand."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from numpy.typing import NDArray

from beatray.ingest.random_file import RandomFile

COLUMNS = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file\n"


def in_memory(data: bytes, name: str = "a") -> RandomFile:
    """Bytes as an open member of a tree."""
    return RandomFile(name, data, 0, len(data), ())


def npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(*, packed: bool = False, **arrays: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def mat(*, packed: bool = False, **variables: object) -> bytes:
    """A level 5 file written by scipy."""
    out = io.BytesIO()
    scipy.io.savemat(out, variables, do_compression=packed)
    return out.getvalue()


def mat_element(kind: int, payload: bytes, order: str = "<") -> bytes:
    """One data element with its tag and padding."""
    return struct.pack(order + "2I", kind, len(payload)) + payload + bytes(-len(payload) % 8)


def mat_variable(name: bytes, kind: int, axes: tuple[int, ...], rest: bytes, order: str = "<") -> bytes:
    """One matrix element of any class; `rest` are its elements after the name."""
    flags = mat_element(6, struct.pack(order + "2I", kind, 0), order)
    shape = mat_element(5, struct.pack(f"{order}{len(axes)}i", *axes), order)
    return mat_element(14, flags + shape + mat_element(1, name, order) + rest, order)


def mat_file(*elements: bytes, order: str = "<") -> bytes:
    """A level 5 file of the given elements."""
    head = b"MATLAB 5.0 MAT-file, written for a test".ljust(124) + struct.pack(order + "H", 0x0100)
    return head + (b"IM" if order == "<" else b"MI") + b"".join(elements)


def mat_packed(element: bytes) -> bytes:
    data = zlib.compress(element)
    return struct.pack("<2I", 15, len(data)) + data


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def ecg_table(stack: NDArray[Any]) -> pa.Table:
    """Recordings (n, 12, samples) in four ways of keeping them, with an id."""
    n, n_leads, n_samples = stack.shape
    single = stack.astype("<f4")
    flat = [recording.ravel() for recording in single]
    return pa.table(
        {
            "id": [f"r{number}" for number in range(n)],
            "flat": pa.array(flat, pa.list_(pa.float32())),
            "nested": pa.array([list(recording) for recording in single], pa.list_(pa.list_(pa.float32()))),
            "bytes": pa.array([recording.astype("<i2").tobytes() for recording in stack], pa.binary()),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(flat)), n_leads * n_samples),
        }
    )


def code15_part(
    path: Path, exams: list[int], tracings: list[NDArray[Any]], samples: int = 4096, **options: Any
) -> None:
    """A part as published: each tracing (n, 12) centred between zeros, and a filler row of exam 0 at the end."""
    import h5py

    rows = np.zeros((len(exams) + 1, samples, 12), np.float32)
    for row, tracing in zip(rows[:-1], tracings, strict=True):
        before = (samples - len(tracing)) // 2
        row[before : before + len(tracing)] = tracing
    with h5py.File(path, "w") as part:
        part["exam_id"] = np.array([*exams, 0])
        part.create_dataset("tracings", data=rows, **options)
