"""The readers of device formats on minimal valid files that `tests/device_files.py` writes from the descriptions.

These are no real recordings: they show that reader and description agree on every stored variant, to the last count.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import device_files as made
from beatray.ingest.formats.channels import stem_of
from beatray.ingest.formats.registry import FORMATS, format_of
from beatray.ingest.tree import open_tree
from beatray.record import INDEPENDENT_LEADS, LEADS, Reason, Record, RecordError
from wfdb_files import ecg_counts

COUNTS = ecg_counts(3000)
MV = COUNTS.T / 1000.0


def read(folder: Path, name: str, data: bytes) -> Record:
    """The one record of a file, read as the format it is recognised as."""
    (folder / name).write_bytes(data)
    tree = open_tree(str(folder))
    found = format_of(tree, name)
    assert found is not None
    (record,) = found.read(tree, name)
    return record


def refusal(folder: Path, name: str, data: bytes) -> Reason:
    with pytest.raises(RecordError) as caught:
        read(folder, name, data)
    return caught.value.reason


def check_person(record: Record, age: float | None = 59.0) -> None:
    assert (record.patient_id, record.patient_is_private) == (made.PERSON["id"], True)
    assert (record.age, record.sex) == (age, "F")
    assert record.acquired == datetime(2024, 2, 17, 10, 15)


def same(record: Record, wanted_mv: np.ndarray, *, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(record.signal_mv, wanted_mv, atol=atol)
    assert (record.rate_hz, record.lead_mask, record.source) == (500.0, 0xFFF, "")


def limbs_computed(signal_mv: np.ndarray) -> np.ndarray:
    """The twelve leads with the sums made of I and II."""
    out = signal_mv.copy()
    one, two = out[0], out[1]
    out[2:6] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return out


FILES: dict[str, Callable[[], bytes]] = {
    "a.dcm": lambda: made.dicom([made.dicom_group(COUNTS)]),
    "a.scp": lambda: made.scp_record(made.scp_bodies(COUNTS)),
    "aecg.xml": lambda: made.aecg_xml(COUNTS),
    "philips.xml": lambda: made.philips_xml(COUNTS),
    "schiller.xml": lambda: made.schiller_xml(COUNTS),
    "muse.xml": lambda: made.muse_xml(COUNTS),
    "a.edf": lambda: made.edf(COUNTS),
}


@pytest.mark.parametrize("name", FILES)
def test_formats_are_recognised_by_content_whatever_their_name(tmp_path: Path, name: str) -> None:
    by_name = read(tmp_path, name, FILES[name]())
    by_content = read(tmp_path, "0001", FILES[name]())
    np.testing.assert_array_equal(by_name.signal_mv, by_content.signal_mv)
    assert (by_name.record_id, by_content.record_id) == (stem_of(name), "0001")
    check_person(by_name)
    assert made.PERSON["name"] not in repr(by_name) and made.PERSON["born"] not in repr(by_name)


def test_registry_is_complete() -> None:
    formats = {"DICOM", "SCP-ECG", "HL7 aECG", "Philips XML", "Schiller XML", "MUSE XML", "EDF", "WFDB"}
    assert set(FORMATS) == formats
    assert all(entry.name == name and entry.suffixes for name, entry in FORMATS.items())


# --- MUSE


def test_muse(tmp_path: Path) -> None:
    record = read(tmp_path, "m.xml", made.muse_xml(COUNTS, per_bit="4.88"))
    same(record, limbs_computed(MV * 4.88))
    assert record.notes == ("leads_computed",)
    assert record.measured == {
        "rate_bpm": 60, "pr_ms": 160, "qrs_ms": 90, "qt_ms": 400, "qtc_ms": 400,
        "p_axis_deg": 40, "qrs_axis_deg": 30, "t_axis_deg": 20,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("doctype", "reason"),
    [
        ("", None),
        ("<!DOCTYPE RestingECG SYSTEM 'restecg.dtd' >", None),
        ('<!DOCTYPE RestingECG SYSTEM "file:///etc/passwd">', Reason.HEADER),
        ('<!DOCTYPE RestingECG SYSTEM "restecg.dtd" [<!ENTITY x "y">]>', Reason.HEADER),
        ('<!DOCTYPE RestingECG [<!ENTITY x SYSTEM "/etc/passwd">]>', Reason.HEADER),
        ('<!DOCTYPE RestingECG SYSTEM "restecg.dtd"><!DOCTYPE RestingECG SYSTEM "restecg.dtd">', Reason.HEADER),
    ],
)
def test_muse_document_types(tmp_path: Path, doctype: str, reason: Reason | None) -> None:
    data = made.muse_xml(COUNTS, doctype=doctype)
    if reason is None:
        same(read(tmp_path, "m.xml", data), limbs_computed(MV))
    else:
        assert refusal(tmp_path, "m.xml", data) is reason


def test_muse_lead_that_was_off_is_left_out(tmp_path: Path) -> None:
    text = made.muse_xml(COUNTS).decode("latin-1")
    at = text.rindex("<LeadID>V3</LeadID>")
    text = text[:at] + text[at:].replace("<LeadOff>FALSE", "<LeadOff>TRUE", 1)
    record = read(tmp_path, "m.xml", text.encode("latin-1"))
    assert record.lead_mask == 0xFFF & ~(1 << LEADS.index("V3"))
    assert "leads_dropped" in record.notes


# --- HL7 aECG


def test_aecg(tmp_path: Path) -> None:
    record = read(tmp_path, "a.xml", made.aecg_xml(COUNTS))
    same(record, MV)
    assert record.measured == {"rate_bpm": 60.0, "qt_ms": 405.0}


@pytest.mark.parametrize(
    ("scale", "unit", "factor"), [("2.5", "uV", 2.5), ("0.005", "mV", 5.0), ("1000", "nV", 1.0), (".000001", "V", 1.0)]
)
def test_aecg_units(tmp_path: Path, scale: str, unit: str, factor: float) -> None:
    same(read(tmp_path, "a.xml", made.aecg_xml(COUNTS, scale=scale, unit=unit)), MV * factor)


def test_aecg_increment_in_milliseconds_and_other_rates(tmp_path: Path) -> None:
    text = made.aecg_xml(COUNTS).decode()
    in_ms = text.replace('<increment value="0.002" unit="s"/>', '<increment value="2" unit="ms"/>')
    same(read(tmp_path, "a.xml", in_ms.encode()), MV)
    assert read(tmp_path, "b.xml", made.aecg_xml(COUNTS, increment="0.001")).rate_hz == 1000.0


# --- Schiller


def test_schiller(tmp_path: Path) -> None:
    record = read(tmp_path, "s.xml", made.schiller_xml(COUNTS))
    same(record, MV)
    assert record.measured == {"rate_bpm": 60.0, "pr_ms": 160.0}


# --- Philips


@pytest.mark.parametrize("compression", ["XLI", None, "Uncompressed"])
@pytest.mark.parametrize("version", ["1.04", "1.04.01"])
def test_philips(tmp_path: Path, compression: str | None, version: str) -> None:
    data = made.philips_xml(COUNTS, compression=compression, version=version, resolution="5")
    record = read(tmp_path, "p.xml", data)
    same(record, MV * 5)
    assert record.measured == {"rate_bpm": 60.0, "pr_ms": 160.0}


def test_philips_full_dictionary(tmp_path: Path) -> None:
    """Noise fills the dictionary of 1,023 entries, after which it must not grow."""
    counts = np.random.default_rng(0).integers(-900, 900, (3000, 12))
    same(read(tmp_path, "p.xml", made.philips_xml(counts)), counts.T / 1000.0)


def test_philips_calibration_pulse_is_cut_off(tmp_path: Path) -> None:
    pulse = np.concatenate([np.full((100, 12), 200), np.zeros((50, 12), np.int64)])
    data = made.philips_xml(np.concatenate([COUNTS, pulse]), compression=None)
    same(read(tmp_path, "p.xml", data), MV)


# --- SCP-ECG


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_scp_encodings(tmp_path: Path, huffman: bool, order: int) -> None:
    bodies = made.scp_bodies(COUNTS, order=order, huffman=huffman, nanovolts=2500, leads=LEADS)
    record = read(tmp_path, "s.scp", made.scp_record(bodies))
    same(record, MV * 2.5)
    assert record.measured == {
        "rate_bpm": 60.0, "p_ms": 100.0, "pr_ms": 160.0, "qrs_ms": 90.0, "qt_ms": 400.0,
        "p_axis_deg": 40.0, "qrs_axis_deg": 30.0,
    }  # fmt: skip


def test_scp_computes_limb_leads(tmp_path: Path) -> None:
    record = read(tmp_path, "s.scp", made.scp_record(made.scp_bodies(COUNTS)))
    same(record, limbs_computed(MV))
    assert record.notes == ("leads_computed",)


def test_scp_huffman_tables_of_its_own_with_a_switch(tmp_path: Path) -> None:
    """Two tables: the first has 0, +1 and -1 and switches; the second has 16-bit values and switches back."""

    def code(bits: str, total: int, is_value: int, base: int) -> bytes:
        return struct.pack("<BBBhI", len(bits), total, is_value, base, int(bits[::-1], 2))

    first = [code("0", 1, 1, 0), code("10", 2, 1, 1), code("110", 3, 1, -1), code("111", 3, 0, 2)]
    second = [code("0", 17, 1, 0), code("1", 1, 0, 1)]
    tables = struct.pack("<H", 2) + b"".join(struct.pack("<H", len(t)) + b"".join(t) for t in (first, second))

    def coded(column: list[int]) -> bytes:
        bits = ""
        for value in made.scp_differences(column, 2):
            bits += {0: "0", 1: "10", -1: "110"}.get(value) or "1110" + f"{value & 0xFFFF:016b}" + "1"
        bits += "0" * (-len(bits) % 8)
        return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))

    bodies = made.scp_bodies(COUNTS)
    leads = [coded(COUNTS[:, position].tolist()) for position in INDEPENDENT_LEADS]
    lengths = b"".join(struct.pack("<H", len(lead)) for lead in leads)
    bodies |= {2: tables, 6: struct.pack("<HHBB", 1000, 2000, 2, 0) + lengths + b"".join(leads)}
    same(read(tmp_path, "s.scp", made.scp_record(bodies)), limbs_computed(MV))


def with_subtracted_beats(bimodal: int = 0, interval_us: int = 2000) -> dict[int, bytes]:
    """A recording whose beats of kind 0 had a reference beat of 5 uV counts taken out; one beat is of another kind."""
    bodies = made.scp_bodies(COUNTS)
    beat = np.rint(COUNTS[100:400] / 5).astype(np.int64)  # counts of 5 uV
    fiducial = 101  # of the beat, counted from 1: sample 200 of the recording
    zones = [(0, 101, 201, 400), (1, 0, 701, 0), (0, 1151, 1201, 1300)]
    left = COUNTS.copy()
    for kind, start, at, end in zones:
        if kind == 0:
            begin = fiducial - 1 + start - at
            left[start - 1 : end] -= 5 * beat[begin : begin + end - start + 1]
    columns = [left[:, position].tolist() for position in INDEPENDENT_LEADS]
    bodies[6] = made.scp_signal_section(columns, 2, True, 1000, bimodal)
    beats = [beat[:, position].tolist() for position in INDEPENDENT_LEADS]
    section_5 = bytearray(made.scp_signal_section(beats, 2, True, 5000, 0))
    struct.pack_into("<H", section_5, 2, interval_us)
    bodies[5] = bytes(section_5)
    bodies[4] = struct.pack("<3H", 600, fiducial, len(zones)) + b"".join(struct.pack("<HIII", *z) for z in zones)
    bodies[3] = bytes((8, bodies[3][1] | 1)) + bodies[3][2:]
    return bodies


def test_scp_reference_beats_are_added_back(tmp_path: Path) -> None:
    same(read(tmp_path, "s.scp", made.scp_record(with_subtracted_beats())), limbs_computed(MV))


def test_scp_bimodal_is_refused_unless_nothing_was_left_out(tmp_path: Path) -> None:
    same(read(tmp_path, "s.scp", made.scp_record(with_subtracted_beats(bimodal=1))), limbs_computed(MV))
    decimated = made.scp_record(with_subtracted_beats(bimodal=1, interval_us=500))
    assert refusal(tmp_path, "t.scp", decimated) is Reason.FORMAT
    alone = made.scp_bodies(COUNTS)
    alone[6] = alone[6][:5] + b"\1" + alone[6][6:]
    assert refusal(tmp_path, "u.scp", made.scp_record(alone)) is Reason.FORMAT
    same(read(tmp_path, "v.scp", made.scp_record(alone, protocol=30)), limbs_computed(MV))  # a spare byte since 3.0


def test_scp_leads_of_different_ends_are_cut_to_what_they_share(tmp_path: Path) -> None:
    bodies = made.scp_bodies(COUNTS, huffman=False)
    columns = [COUNTS[:, position].tolist() for position in INDEPENDENT_LEADS]
    columns[3] = columns[3][100:]  # V2 begins 100 samples later
    bodies[6] = made.scp_signal_section(columns, 2, False, 1000, 0)
    leads = bytearray(bodies[3])
    struct.pack_into("<I", leads, 2 + 3 * 9, 101)
    bodies[3] = bytes(leads)
    same(read(tmp_path, "s.scp", made.scp_record(bodies)), limbs_computed(MV[:, 100:]))
    struct.pack_into("<II", leads, 2 + 3 * 9, 4001, 6900)  # recorded after the others
    bodies[3] = bytes(leads)
    assert refusal(tmp_path, "t.scp", made.scp_record(bodies)) is Reason.LEADS_MISSING


# --- EDF


@pytest.mark.parametrize("kind", ["", "EDF+C"])
def test_edf(tmp_path: Path, kind: str) -> None:
    record = read(tmp_path, "e.edf", made.edf(COUNTS, kind=kind))
    same(record, MV)
    assert record.patient_id == (made.PERSON["id"] if kind else None)  # plain EDF writes free text there


def test_edf_other_units_and_rates(tmp_path: Path) -> None:
    data = made.edf(COUNTS, unit="mV", labels=[f"EKG {lead}" for lead in LEADS], per_record=250, duration="0.5")
    np.testing.assert_allclose(read(tmp_path, "e.edf", data).signal_mv, MV * 1000, atol=1e-6)


def test_edf_with_other_signals_between(tmp_path: Path) -> None:
    counts = np.concatenate([COUNTS, np.full((len(COUNTS), 2), 7)], axis=1)
    record = read(tmp_path, "e.edf", made.edf(counts, labels=[*LEADS, "Resp", "SpO2"]))
    same(record, MV)


# --- DICOM


def test_dicom_scale_is_sensitivity_times_correction_plus_baseline(tmp_path: Path) -> None:
    group = made.dicom_group(COUNTS, sensitivity="2.5", correction="1.1", baseline="30")
    same(read(tmp_path, "d.dcm", made.dicom([group])), (MV * 2.5 * 1.1) + 0.03)
    group = made.dicom_group(COUNTS, sensitivity="0.004", unit="mV")
    same(read(tmp_path, "e.dcm", made.dicom([group])), MV * 4)


def test_dicom_leads_by_meaning_when_the_code_is_local(tmp_path: Path) -> None:
    same(read(tmp_path, "d.dcm", made.dicom([made.dicom_group(COUNTS, codes=False)])), MV)


def test_dicom_takes_the_longest_original_group(tmp_path: Path) -> None:
    median = made.dicom_group(COUNTS[:600] * 2, label="MEDIAN BEAT", originality="DERIVED")
    short = made.dicom_group(COUNTS[:2600])
    rhythm = made.dicom_group(COUNTS)
    for groups in ([median, short, rhythm], [rhythm, median], [short, rhythm]):
        same(read(tmp_path, "d.dcm", made.dicom(groups)), MV)
    assert refusal(tmp_path, "e.dcm", made.dicom([median])) is Reason.LEADS_MISSING


def test_dicom_skew_moves_channels(tmp_path: Path) -> None:
    moved = COUNTS.copy()
    moved[:-3, 7] = COUNTS[3:, 7]  # V2 begins 3 samples late
    skews = ["3" if position == 7 else "0" for position in range(12)]
    record = read(tmp_path, "d.dcm", made.dicom([made.dicom_group(moved, skews=skews)]))
    same(record, MV[:, 3:])
    rounded = made.dicom_group(COUNTS, skews=["0.25"] * 12)
    assert read(tmp_path, "e.dcm", made.dicom([rounded])).notes == ("skew_rounded",)


def test_dicom_padding_is_a_gap(tmp_path: Path) -> None:
    gap = COUNTS.copy()
    gap[1000:1005, 6] = -32768
    record = read(tmp_path, "d.dcm", made.dicom([made.dicom_group(gap, padding=-32768)]))
    assert record.notes == ("gaps_interpolated",)
    np.testing.assert_allclose(record.signal_mv[:, :1000], MV[:, :1000])
    gap[1000:1100, 6] = -32768
    record = read(tmp_path, "d.dcm", made.dicom([made.dicom_group(gap, padding=-32768)]))
    assert record.lead_mask == 0xFFF & ~(1 << 6)


def test_dicom_of_another_kind_is_not_an_ecg(tmp_path: Path) -> None:
    picture = made.dicom([made.dicom_group(COUNTS)], sop_class="1.2.840.10008.5.1.4.1.1.7")
    (tmp_path / "d.dcm").write_bytes(picture)
    tree = open_tree(str(tmp_path))
    assert format_of(tree, "d.dcm") is None
    with pytest.raises(RecordError) as caught:
        list(FORMATS["DICOM"].read(tree, "d.dcm"))
    assert caught.value.reason is Reason.FORMAT
    deflated = made.dicom([made.dicom_group(COUNTS)], syntax="1.2.840.10008.1.2.1.99")
    assert refusal(tmp_path, "e.dcm", deflated) is Reason.FORMAT


def test_xli_block_is_what_the_description_says() -> None:
    """Three samples on a line and one off it, decoded by hand from the description."""
    block = made.xli_block([5, 7, 9, 12])
    assert struct.unpack_from("<Ihh", block) == (len(block) - 8, 1, 0)
    bits = "".join(f"{byte:08b}" for byte in block[8:])
    codes = [int(bits[at : at + 10], 2) for at in range(0, len(bits) - 9, 10)]
    assert codes == [0, 256, 0, 5, 7, 63, 64, 1023]  # upper bytes 0 0 0 0, lower bytes 5 7 64-1 64
    assert base64.b64encode(block)
