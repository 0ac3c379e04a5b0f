"""What the WFDB reader makes of headers, units, lead names, gaps and MATLAB matrices."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from beatray.ingest.formats.wfdb_header import comment_fields, parse_header
from beatray.ingest.formats.wfdb_record import TwelveLeads, read_counts, read_twelve_leads
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, Reason, RecordError
from wfdb_files import ecg_counts, header_text, mat4, pack, write_record


def read(folder: Path, name: str = "r") -> TwelveLeads:
    return read_twelve_leads(open_tree(str(folder)), f"{name}.hea")


def reason_of(folder: Path) -> Reason:
    with pytest.raises(RecordError) as caught:
        read(folder)
    return caught.value.reason


def test_header_fields() -> None:
    text = "r 2 250/360(0) 30 12:00:01 01/02/2003\n"
    text += "r.dat 212:3+8 200.5(-7)/uV 11 1024 995 -22131 0 V5 extra\nr.dat 212+8\n"
    header = parse_header((text + "# Dx: 1,2\n#Dx:3\n").encode(), "r")
    assert (header.rate_hz, header.n_samples) == (250.0, 30)
    first, second = header.signals
    assert (first.fmt, first.skew, first.byte_offset) == (212, 3, 8)
    assert (first.gain, first.baseline, first.units) == (200.5, -7, "uV")
    assert (first.initial_value, first.checksum, first.name) == (995, -22131, "V5 extra")
    assert (second.gain, second.units, second.checksum, second.name) == (None, "mV", None, "")
    assert comment_fields(header) == {"dx": ["1,2", "3"]}


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feed_and_return_end_a_line(tmp_path: Path, character: str) -> None:
    write_record(tmp_path, "r", ecg_counts(), comments=f"#History: chest pain{character}since March\r\n#Dx: 1\r\n")
    header = read(tmp_path).header
    assert header.comments == (f"History: chest pain{character}since March", "Dx: 1")


def test_a_byte_order_mark_and_a_folder_in_front_of_the_name(tmp_path: Path) -> None:
    for name, named in (("bom", "\ufeffbom"), ("slash", "median_beats/slash"), ("both", "\ufeffA/b/BOTH")):
        write_record(tmp_path, name, ecg_counts()).write_text(
            header_text(named, ecg_counts(), file_name=f"{name}.dat"), encoding="utf-8"
        )
    notes = {name: read(tmp_path, name).notes for name in ("bom", "slash", "both")}
    folder = "record_name_with_folder"
    assert notes == {"bom": (), "slash": (folder,), "both": (folder, "record_name_case")}
    for named in ("r/3", "other", "folder/other", "3/r/4"):
        with pytest.raises(RecordError, match="multi-segment .*wfdb.wrsamp" if named == "r/3" else "does not match"):
            parse_header(header_text(named, ecg_counts(50)).encode(), "r")


def test_baseline_defaults_to_adc_zero() -> None:
    header = parse_header(b"r 1 360 5\nr.dat 212 200 11 1024 995 -22131 0 MLII\n", "r")
    assert header.signals[0].baseline == 1024
    assert header.signals[0].units == "mV"


def test_leads_come_out_by_name_whatever_their_order(tmp_path: Path) -> None:
    """aVF before aVL, lower case and Frank leads among them, as published archives have it."""
    adc = ecg_counts()
    write_record(tmp_path, "plain", adc)
    order = [6, 0, 1, 2, 3, 5, 4, 7, 8, 9, 10, 11]
    names = ("v1", "i", "ii", "iii", "avr", "avf", "avl", "v2", "v3", "v4", "v5", "v6", "vx", "vy")
    write_record(tmp_path, "odd", np.column_stack([adc[:, order], adc[:, :2] * 0 + 7]), leads=names)
    plain, odd = read(tmp_path, "plain"), read(tmp_path, "odd")
    np.testing.assert_array_equal(odd.signal_mv, plain.signal_mv)
    np.testing.assert_array_equal(plain.signal_mv, adc.T / 1000.0)
    assert odd.lead_mask == plain.lead_mask == 0xFFF


@pytest.mark.parametrize(
    ("gain", "factor", "notes"),
    [
        ("1000/mV", 1.0, ()),
        ("1000", 1.0, ()),
        ("1000(0)", 1.0, ()),
        ("1e3/mV", 1.0, ()),
        ("1000/mv", 1.0, ("unit_spelling",)),
        ("1/uV", 1.0, ()),
        ("1/\u00b5V", 1.0, ()),
        ("1000000/V", 1.0, ()),
        ("500/mV", 2.0, ()),
        ("1000(100)/mV", 1.0, ()),
    ],
)
def test_units_become_millivolts(tmp_path: Path, gain: str, factor: float, notes: tuple[str, ...]) -> None:
    adc = ecg_counts()
    write_record(tmp_path, "r", adc, gain=gain)
    leads = read(tmp_path)
    shift = 100 if "(100)" in gain else 0
    np.testing.assert_allclose(leads.signal_mv, (adc.T - shift) * factor / 1000.0, rtol=0, atol=1e-12)
    assert leads.notes == notes


def test_unit_of_another_quantity_counts_only_for_a_lead(tmp_path: Path) -> None:
    adc = ecg_counts()
    header = write_record(tmp_path, "r", np.column_stack([adc, adc[:, 0]]), leads=(*LEADS, "ABP"))
    good = header.read_text()
    header.write_text("\n".join(line.replace("/mV", "/mmHg") if "ABP" in line else line for line in good.splitlines()))
    assert read(tmp_path).lead_mask == 0xFFF
    header.write_text("\n".join(line.replace("/mV", "/mmHg") if "V6" in line else line for line in good.splitlines()))
    assert reason_of(tmp_path) is Reason.BAD_UNITS


def test_no_gain_is_not_the_default_gain(tmp_path: Path) -> None:
    """Lines that end before the gain are legal and mean 200 per mV; the counts can be had, the millivolts cannot."""
    adc = ecg_counts()
    (tmp_path / "r.dat").write_bytes(pack(adc, 16))
    (tmp_path / "r.hea").write_text("r 12 500 5000\n" + "r.dat 16\n" * 12)
    header, signals = read_counts(open_tree(str(tmp_path)), "r.hea")
    assert header.signals[0].gain is None
    assert signals.notes == ("checksum_absent", "initial_value_absent")
    np.testing.assert_array_equal(signals.adc, adc)
    assert reason_of(tmp_path) is Reason.BAD_GAIN


def test_missing_limb_leads_are_computed(tmp_path: Path) -> None:
    adc = ecg_counts()
    keep = [0, 1, 6, 7, 8, 9, 10, 11]
    write_record(tmp_path, "r", adc[:, keep], leads=tuple(LEADS[lead] for lead in keep))
    leads = read(tmp_path)
    assert leads.lead_mask == 0xFFF
    assert leads.notes == ("leads_computed",)
    one, two = adc[:, 0] / 1000.0, adc[:, 1] / 1000.0
    expected = [two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    np.testing.assert_allclose(leads.signal_mv[2:6], expected, atol=1e-12)


def test_few_chest_leads_are_enough_and_the_mask_shows_it(tmp_path: Path) -> None:
    adc = ecg_counts()
    write_record(tmp_path, "r", adc[:, [0, 1, 7]], leads=("I", "II", "V2"))
    leads = read(tmp_path)
    assert leads.lead_mask == 0b0000_1011_1111
    assert not leads.signal_mv[6].any()


@pytest.mark.parametrize("absent", [(0,), (1,), (6, 7, 8, 9, 10, 11)])
def test_too_few_leads(tmp_path: Path, absent: tuple[int, ...]) -> None:
    keep = [lead for lead in range(12) if lead not in absent]
    write_record(tmp_path, "r", ecg_counts()[:, keep], leads=tuple(LEADS[lead] for lead in keep))
    assert reason_of(tmp_path) is Reason.LEADS_MISSING


def with_gap(start: int, length: int, leads: list[int]) -> np.ndarray:
    adc = ecg_counts()
    adc[start : start + length, leads] = -32768
    return adc


@pytest.mark.parametrize("start", [0, 1000, 4990])
def test_short_gaps_are_interpolated(tmp_path: Path, start: int) -> None:
    adc = with_gap(start, 10, [3, 6])
    write_record(tmp_path, "r", adc)
    leads = read(tmp_path)
    assert leads.notes == ("gaps_interpolated",)
    assert leads.lead_mask == 0xFFF
    column = adc[:, 6] / 1000.0
    good = np.flatnonzero(adc[:, 6] != -32768)
    np.testing.assert_allclose(leads.signal_mv[6], np.interp(np.arange(5000), good, column[good]), atol=1e-12)


def test_a_longer_gap_drops_the_lead(tmp_path: Path) -> None:
    write_record(tmp_path, "r", with_gap(1000, 11, [0, 6]))
    leads = read(tmp_path)
    assert leads.lead_mask == 0xFFF & ~0b1000001
    assert leads.notes == ("leads_dropped",)
    assert not leads.signal_mv[[0, 6]].any()


def test_a_dropped_limb_lead_is_computed_again(tmp_path: Path) -> None:
    write_record(tmp_path, "r", with_gap(1000, 11, [4]))
    leads = read(tmp_path)
    assert leads.lead_mask == 0xFFF
    assert leads.notes == ("leads_dropped", "leads_computed")


@pytest.mark.parametrize("leads", [list(range(7)), list(range(6, 12)), list(range(12))])
def test_gaps_in_too_many_leads(tmp_path: Path, leads: list[int]) -> None:
    write_record(tmp_path, "r", with_gap(1000, 50, leads))
    assert reason_of(tmp_path) is Reason.NOT_FINITE


def test_every_lead_constant(tmp_path: Path) -> None:
    write_record(tmp_path, "r", np.full((5000, 12), 3))
    assert reason_of(tmp_path) is Reason.FLAT


def test_absent_checksums_are_noted(tmp_path: Path) -> None:
    adc = ecg_counts()
    header = write_record(tmp_path, "r", adc)
    rows = header.read_text().splitlines()
    for number in range(1, 13):
        fields = rows[number].split()
        fields[5] = fields[6] = "0"
        rows[number] = " ".join(fields)
    header.write_text("\n".join(rows))
    assert read(tmp_path).notes == ("checksum_absent", "initial_value_absent")


def test_signals_in_two_files(tmp_path: Path) -> None:
    """Limb leads in one file, chest leads in another, in different formats."""
    adc = ecg_counts()
    (tmp_path / "limb.dat").write_bytes(pack(adc[:, :6], 24))
    (tmp_path / "chest.dat").write_bytes(pack(adc[:, 6:], 212))
    rows = header_text("r", adc).splitlines()
    rows[1:7] = [row.replace("r.dat 16", "limb.dat 24") for row in rows[1:7]]
    rows[7:13] = [row.replace("r.dat 16", "chest.dat 212") for row in rows[7:13]]
    (tmp_path / "r.hea").write_text("\n".join(rows))
    np.testing.assert_array_equal(read(tmp_path).signal_mv, adc.T / 1000.0)


def write_mat(folder: Path, data: bytes, adc: np.ndarray, storage: str = "16+24") -> None:
    (folder / "r.mat").write_bytes(data)
    (folder / "r.hea").write_text(header_text("r", adc, storage=storage, file_name="r.mat"))


def test_matlab_matrix_equals_plain_file(tmp_path: Path) -> None:
    adc = ecg_counts()
    write_record(tmp_path, "plain", adc)
    write_mat(tmp_path, mat4(adc), adc)
    np.testing.assert_array_equal(read(tmp_path).signal_mv, read(tmp_path, "plain").signal_mv)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (0, 10, Reason.FORMAT),  # single precision
        (0, 1030, Reason.FORMAT),  # big endian
        (0, 0, Reason.FORMAT),
        (1, 6, Reason.HEADER),
        (2, 4999, Reason.HEADER),
        (3, 1, Reason.FORMAT),  # complex
        (4, 5, Reason.FORMAT),
        (4, -1, Reason.FORMAT),
        (4, 2**31 - 1, Reason.FORMAT),
    ],
)
def test_matlab_header_that_disagrees(tmp_path: Path, field: int, value: int, reason: Reason) -> None:
    adc = ecg_counts()
    data = mat4(adc)
    values = list(struct.unpack("<5i", data[:20]))
    values[field] = value
    write_mat(tmp_path, struct.pack("<5i", *values) + data[20:], adc)
    assert reason_of(tmp_path) is reason


def test_later_matlab_levels_are_named(tmp_path: Path) -> None:
    adc = ecg_counts()
    write_mat(tmp_path, b"MATLAB 5.0 MAT-file, x86".ljust(24)[:24] + mat4(adc)[24:], adc)
    with pytest.raises(RecordError, match="level 5"):
        read(tmp_path)


def test_matlab_offset_must_be_the_real_one(tmp_path: Path) -> None:
    """The same matrix under a longer name, with the header still saying 24 bytes and the file cut to fit."""
    adc = ecg_counts()
    data = struct.pack("<5i", 30, 12, 5000, 0, 6) + b"value\0" + mat4(adc)[24:-2]
    write_mat(tmp_path, data, adc)
    assert reason_of(tmp_path) is Reason.HEADER
