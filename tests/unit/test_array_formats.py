"""MATLAB 5, npy, npz, HDF5 and Parquet: valid files, real ones where there are, read as their libraries do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import scipy.io

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
from beatray.corpus.label_parquet import IN_LISTS
from beatray.ingest.formats import hdf5
from beatray.ingest.formats.hdf5 import open_hdf5, plain_array, read_rows
from beatray.ingest.formats.mat5 import read_mat5
from beatray.ingest.formats.named_leads import twelve_from_array
from beatray.ingest.formats.npy import npy_layout, npz_member, read_part
from beatray.ingest.formats.parquet_table import open_table, read_signal, read_texts
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, Reason, RecordError
from wfdb_files import ecg_counts

RNG = np.random.default_rng(0)
STACK = (RNG.normal(0, 300, (9, 12, 500))).round()


def test_real_matlab_files_as_scipy_reads_them(data_dir: Path) -> None:
    """Ten re-packed CODE-15% recordings, the original CPSC struct, noise segments, and a struct of marks."""
    paths = sorted((data_dir / "misc").rglob("*.mat"))
    compared = 0
    for path in paths:
        data = path.read_bytes()
        if data[:6] != b"MATLAB":
            continue  # level 4
        expected = scipy.io.loadmat(path)
        for name, value in read_mat5(data).items():
            if isinstance(value, dict):
                for field, inner in value.items():
                    theirs = expected[name][0, 0][field]
                    assert inner == theirs[0] if isinstance(inner, str) else np.array_equal(inner, theirs)
            else:
                np.testing.assert_array_equal(value, expected[name])
        compared += 1
    assert compared == 15


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_matlab_numbers(packed: bool, dtype: str) -> None:
    values = RNG.integers(0, 100, (12, 7)).astype(dtype)
    ((name, read),) = read_mat5(mat(packed=packed, x=values)).items()
    assert name == "x"
    assert isinstance(read, np.ndarray)
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_matlab_structs_text_and_several_variables() -> None:
    data = mat(packed=True, ECG={"sex": "Male", "age": 52.0, "data": STACK[0]}, rate=np.int16(500), note="\u00e9 text")
    read = read_mat5(data)
    assert read["note"] == "\u00e9 text"
    assert np.asarray(read["rate"]).item() == 500
    struct = read["ECG"]
    assert isinstance(struct, dict)
    assert struct["sex"] == "Male"
    np.testing.assert_array_equal(struct["data"], STACK[0])  # type: ignore[arg-type]


def test_matlab_big_endian_and_narrow_storage() -> None:
    """Doubles that are whole numbers are kept as bytes by MATLAB itself; old machines wrote the other byte order."""
    rest = mat_element(2, bytes(range(12)), ">")
    data = mat_file(mat_variable(b"x", 6, (3, 4), rest, ">"), order=">")
    np.testing.assert_array_equal(np.asarray(read_mat5(data)["x"]), np.arange(12.0).reshape(4, 3).T)
    assert np.asarray(read_mat5(data)["x"]).dtype == np.float64


@pytest.mark.parametrize(
    ("kind", "what"),
    [(1, "cell"), (3, "object"), (5, "sparse"), (16, "function handle"), (17, "opaque"), (99, "class")],
)
def test_matlab_kinds_that_are_refused(kind: int, what: str) -> None:
    for element in (mat_variable(b"x", kind, (1, 1), b""), mat_packed(mat_variable(b"x", kind, (1, 1), b""))):
        with pytest.raises(RecordError, match=what) as caught:
            read_mat5(mat_file(element))
        assert caught.value.reason is Reason.FORMAT


def test_matlab_structs_in_structs_cells_and_complex_numbers_are_refused() -> None:
    cell = np.array([1, "x"], dtype=object)
    for value in ({"a": {"b": 1}}, np.array([{"a": 1}, {"a": 2}]), np.array([[1 + 2j]]), cell):
        with pytest.raises(RecordError) as caught:
            read_mat5(mat(x=value))
        assert caught.value.reason is Reason.FORMAT


def test_other_matlab_levels_say_what_they_are(data_dir: Path) -> None:
    level_4 = (data_dir / "misc/cinc2021_samples/A0001.mat").read_bytes()
    for data, what in ((level_4, "level 5"), (b"\x89HDF\r\n\x1a\n" + bytes(600), "7.3"), (b"", "level 5")):
        with pytest.raises(RecordError, match=what):
            read_mat5(data)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i2", ">i4", "|u1", "<u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(dtype: str, order: Any) -> None:
    values = np.asarray(STACK[0].clip(0, 100), dtype, order=order)
    file = in_memory(npy(values))
    layout = npy_layout(file)
    assert (layout.shape, layout.dtype) == (values.shape, values.dtype)
    np.testing.assert_array_equal(read_part(file, layout, None), values)


def test_npy_versions_two_and_three() -> None:
    for version in ((1, 0), (2, 0), (3, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, STACK[0], version=version)
        out = in_memory(stream.getvalue())
        np.testing.assert_array_equal(read_part(out, npy_layout(out), None), STACK[0])


def test_npy_stack_is_read_row_by_row(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", STACK.astype("<i2"))
    with open_tree(str(tmp_path)).open_random("s.npy") as file:
        layout = npy_layout(file)
        for row in range(9):
            np.testing.assert_array_equal(read_part(file, layout, row), STACK[row])
        for row in (-1, 9, 1 << 60):
            with pytest.raises(RecordError) as caught:
                read_part(file, layout, row)
            assert caught.value.reason is Reason.METADATA


def test_npy_stack_in_fortran_order_is_refused_with_a_remedy() -> None:
    file = in_memory(npy(np.asfortranarray(STACK)))
    with pytest.raises(RecordError, match="save it in C"):
        read_part(file, npy_layout(file), 0)


@pytest.mark.parametrize("packed", [False, True])
def test_npz_members(packed: bool) -> None:
    file = in_memory(npz(packed=packed, ecg=STACK, other=np.arange(3)))
    with npz_member(file, "ecg") as member:
        layout = npy_layout(member)
        np.testing.assert_array_equal(read_part(member, layout, 4), STACK[4])
    with pytest.raises(RecordError, match="it has ecg, other") as caught:
        npz_member(file, "signals")
    assert caught.value.reason is Reason.METADATA


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": True},
        {"chunks": (1, 500, 12)},
        {"chunks": (4, 128, 5), "compression": "gzip", "shuffle": True},
        {"chunks": (2, 500, 3), "compression": "lzf"},
        {"chunks": (5, 100, 7), "compression": "gzip", "shuffle": True, "fletcher32": True},
    ],
)
def test_hdf5_rows_as_h5py_reads_them(tmp_path: Path, libver: str, options: dict[str, Any]) -> None:
    values = STACK.transpose(0, 2, 1).astype("<f4")
    values[3] = 0.25
    with h5py.File(tmp_path / "a.hdf5", "w", libver=libver) as out:
        out["exam_id"] = np.arange(9)
        out.create_dataset("tracings", data=values, **options)
    with open_tree(str(tmp_path)).open_random("a.hdf5") as file, open_hdf5(file) as opened:
        array = plain_array(file, opened, "tracings")
        assert (array.shape, array.dtype) == (values.shape, values.dtype)
        for row in (8, 0, 3, 4, 5):
            np.testing.assert_array_equal(read_rows(array, row, row + 1)[0], values[row])
        np.testing.assert_array_equal(read_rows(array, 1, 8), values[1:8])
        np.testing.assert_array_equal(read_rows(plain_array(file, opened, "exam_id"), 0, 9), np.arange(9))
        for start, stop in ((-1, 1), (9, 10), (3, 3), (0, 10)):
            with pytest.raises(RecordError) as caught:
                read_rows(array, start, stop)
            assert caught.value.reason is Reason.METADATA


def test_hdf5_things_that_reach_beyond_the_array_are_refused(tmp_path: Path) -> None:
    np.zeros(60, "<f4").tofile(tmp_path / "raw.bin")
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["x"] = STACK
    with h5py.File(tmp_path / "a.hdf5", "w") as out:
        out["soft"] = h5py.SoftLink("/real")
        out["linked"] = h5py.ExternalLink("other.hdf5", "/x")
        out.create_dataset("external", (5, 12), "<f4", external=[(str(tmp_path / "raw.bin"), 0, 240)])
        layout = h5py.VirtualLayout(STACK.shape, "<f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", STACK.shape)
        out.create_virtual_dataset("virtual", layout)
        out["real"] = STACK
        out["words"] = ["a", "b"]
        out["pair"] = np.zeros(3, [("a", "<f4"), ("b", "<i2")])
        out.create_dataset("unwritten", (5, 12), "<f4")
        out.create_dataset("holes", (5, 12), "<f4", chunks=(1, 12))
        out.create_dataset("scaled", data=STACK.astype("<i2"), chunks=(1, 12, 500), scaleoffset=4)
        out.create_group("group")
    refused = {
        "soft": Reason.METADATA,
        "linked": Reason.METADATA,
        "nowhere": Reason.METADATA,
        **dict.fromkeys(("external", "virtual", "words", "pair", "scaled", "group"), Reason.FORMAT),
        "unwritten": Reason.TRUNCATED,
        "holes": Reason.TRUNCATED,
    }
    with open_tree(str(tmp_path)).open_random("a.hdf5") as file, open_hdf5(file) as opened:
        for name, reason in refused.items():
            with pytest.raises(RecordError) as caught:
                read_rows(plain_array(file, opened, name), 0, 1)
            assert caught.value.reason is reason, name
        np.testing.assert_array_equal(read_rows(plain_array(file, opened, "real"), 0, 9), STACK)


def test_hdf5_chunks_of_many_rows_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as out:
        out.create_dataset("x", data=STACK, chunks=(3, 12, 500), compression="gzip")
    unpacked: list[tuple[int, ...]] = []
    true_unpack = hdf5._unpack

    def watched(array: hdf5.Array, corner: tuple[int, ...], archive: tuple[int, int, int]) -> Any:
        unpacked.append(corner)
        return true_unpack(array, corner, archive)

    monkeypatch.setattr(hdf5, "_unpack", watched)
    with open_tree(str(tmp_path)).open_random("a.hdf5") as file, open_hdf5(file) as opened:
        array = plain_array(file, opened, "x")
        for row in range(9):
            np.testing.assert_array_equal(read_rows(array, row, row + 1)[0], STACK[row])
    assert unpacked == [(0, 0, 0), (3, 0, 0), (6, 0, 0)]


@pytest.mark.parametrize("options", [{"row_group_size": 2}, {"compression": "zstd"}, {"use_dictionary": False}])
def test_parquet_columns(options: dict[str, Any]) -> None:
    table = open_table(in_memory(parquet(ecg_table(STACK), **options)))
    assert table.n_rows == 9
    assert read_texts(table, ["id"]) == [{"id": f"r{number}"} for number in range(9)]
    for row in (0, 8, 3):
        for column, dtype in (("flat", None), ("nested", None), ("bytes", "<i2"), ("fixed", None)):
            values, inner = read_signal(table, column, row, dtype)
            np.testing.assert_array_equal(values.reshape(12, 500), STACK[row])
            assert inner == (500 if column == "nested" else None)


def test_parquet_cells_that_are_no_signal() -> None:
    table = open_table(
        in_memory(
            parquet(
                pa.table(
                    {
                        "null": pa.array([None], pa.list_(pa.float32())),
                        "text": ["x"],
                        "words": [["a", "b"]],
                        "ragged": [[[1.0, 2.0], [3.0]]],
                        "bytes": [b"abc"],
                        "number": [1.5],
                        "gap": [[1.0, None, 3.0]],
                    }
                )
            )
        )
    )
    for column in ("text", "words", "ragged", "number"):
        with pytest.raises(RecordError) as caught:
            read_signal(table, column, 0, None)
        assert caught.value.reason is Reason.FORMAT, column
    with pytest.raises(RecordError, match="dtype"):
        read_signal(table, "bytes", 0, None)
    with pytest.raises(RecordError) as caught:
        read_signal(table, "bytes", 0, "<i2")
    assert caught.value.reason is Reason.TRUNCATED
    for column in ("null", "nowhere"):
        with pytest.raises(RecordError) as caught:
            read_signal(table, column, 0, None)
        assert caught.value.reason is Reason.METADATA
    values, _ = read_signal(table, "gap", 0, None)
    np.testing.assert_array_equal(values, [1.0, np.nan, 3.0])
    assert read_texts(table, ["null", "text", "words", "number"]) == [
        {"null": "", "text": "x", "words": f"a{IN_LISTS}b{IN_LISTS}", "number": "1.5"}
    ]


def test_arrays_become_twelve_leads() -> None:
    counts = ecg_counts().T
    notes: list[str] = []
    order = [1, 0, *range(6, 12)]
    values = counts[order].astype("<f4")
    values[3, 10:13] = np.nan
    signal_mv, mask = twelve_from_array(values, [LEADS[lead] for lead in order], 1e-3, 500.0, notes)
    assert mask == 0xFFF
    assert set(notes) == {"gaps_interpolated", "leads_computed"}
    np.testing.assert_allclose(signal_mv[[0, 1, 6, 8]], counts[[0, 1, 6, 8]] / 1000.0)
    np.testing.assert_allclose(signal_mv[2], (counts[1] - counts[0]) / 1000.0)
    for bad, names, unit, rate, reason in (
        (values[0], LEADS, 1.0, 500.0, Reason.HEADER),
        (values, LEADS, 1.0, 500.0, Reason.HEADER),
        (np.zeros((12, 0)), LEADS, 1.0, 500.0, Reason.TOO_SHORT),
        (counts, LEADS, 0.0, 500.0, Reason.BAD_GAIN),
        (counts, LEADS, float("nan"), 500.0, Reason.BAD_GAIN),
        (counts, LEADS, 1.0, 0.0, Reason.BAD_RATE),
        (counts, ("I",) * 12, 1.0, 500.0, Reason.DUPLICATE_LEADS),
        (counts[:5], LEADS[:5], 1.0, 500.0, Reason.LEADS_MISSING),
        (np.full((12, 5000), np.nan), LEADS, 1.0, 500.0, Reason.NOT_FINITE),
        (np.ones((12, 5000)), LEADS, 1.0, 500.0, Reason.FLAT),
    ):
        with pytest.raises(RecordError) as caught:
            twelve_from_array(bad, names, unit, rate, [])
        assert caught.value.reason is reason
