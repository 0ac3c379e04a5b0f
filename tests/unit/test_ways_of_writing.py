"""Ways of writing that other readers take, too: rates without an end as decimals, units, names of leads, counting from
0, and recordings marked as interrupted that are not."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import device_files as made
from beatray.ingest.canonical import rate_ratio, to_windows
from beatray.ingest.formats.leads import columns_of_leads, lead_of_name
from beatray.ingest.formats.registry import FORMATS
from beatray.ingest.formats.wfdb_record import TwelveLeads, read_twelve_leads
from beatray.ingest.sources import files
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, Reason, Record, RecordError
from wfdb_files import ecg_counts, write_record

COUNTS = ecg_counts(3000)
EIGHT = [LEADS.index(lead) for lead in made.EIGHT]


def read(folder: Path, kind: str, name: str, data: bytes) -> list[Record]:
    (folder / name).write_bytes(data)
    return list(FORMATS[kind].read(open_tree(str(folder)), name))


def refusal(folder: Path, kind: str, name: str, data: bytes) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read(folder, kind, name, data)
    return caught.value


def uv(record: Record) -> np.ndarray:
    return np.rint(record.signal_mv * 1000).T


def wfdb(folder: Path, **fields: object) -> TwelveLeads:
    write_record(folder, "r", COUNTS, **fields)
    return read_twelve_leads(open_tree(str(folder)), "r.hea")


@pytest.mark.parametrize(
    ("rate", "ratio"),
    [
        (1000 / 3, Fraction(3, 2)),
        (333.333, Fraction(3, 2)),
        (float(Fraction(2000, 7)), Fraction(7, 4)),
        (128.0, Fraction(125, 32)),
        (1e6 / 1953, Fraction(1953, 2000)),
        (360.01, Fraction(50000, 36001)),
    ],
)
def test_a_rate_is_the_simple_fraction_that_it_rounds(rate: float, ratio: Fraction) -> None:
    assert rate_ratio(rate) == ratio


def test_a_rate_that_is_no_simple_fraction_is_refused() -> None:
    for rate in (333.34123, 500.123456789):
        with pytest.raises(RecordError, match=r"no simple ratio .*: write the rate of the device"):
            rate_ratio(rate)


def test_a_third_of_a_kilohertz_in_every_format(tmp_path: Path) -> None:
    bodies = made.scp_bodies(COUNTS, huffman=False, order=0)
    signal = bytearray(bodies[6])
    struct.pack_into("<H", signal, 2, 3000)  # the sample interval in microseconds
    found = [
        *read(tmp_path, "EDF", "a.edf", made.edf(COUNTS, per_record=1000, duration="3")),
        *read(tmp_path, "HL7 aECG", "a.xml", made.aecg_xml(COUNTS, increment="0.003")),
        *read(tmp_path, "SCP-ECG", "a.scp", made.scp_record({**bodies, 6: bytes(signal)})),
    ]
    for record in found:
        assert record.rate_hz == 1000 / 3
        assert [window.n_samples for window in to_windows(record)] == [4500]


def counted(bodies: dict[int, bytes], ranges: dict[int, tuple[int, int]]) -> bytes:
    """An SCP-ECG record whose leads, by their place, have these first and last samples."""
    section = bytearray(bodies[3])
    for number, (first, last) in ranges.items():
        struct.pack_into("<II", section, 2 + 9 * number, first, last)
    return made.scp_record({**bodies, 3: bytes(section)})


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize(("n_samples", "is_count"), [(3000, True), (3000, False), (2997, True), (2996, False)])
def test_scp_samples_counted_from_0(tmp_path: Path, huffman: bool, n_samples: int, is_count: bool) -> None:
    counts = COUNTS[:n_samples]
    bodies = made.scp_bodies(counts, huffman=huffman, order=2 if huffman else 0)
    last = n_samples if is_count else n_samples - 1
    (record,) = read(tmp_path, "SCP-ECG", "a.scp", counted(bodies, dict.fromkeys(range(8), (0, last))))
    np.testing.assert_array_equal(uv(record)[:, EIGHT], counts[:, EIGHT])


def test_scp_leads_that_are_not_used_say_nothing_of_how_samples_are_counted(tmp_path: Path) -> None:
    bodies = made.scp_bodies(COUNTS, leads=(*made.EIGHT, "V6"))
    other = bytearray(bodies[3])
    other[2 + 9 * 8 + 8] = 200  # the ninth lead is none of the twelve
    bodies[3] = bytes(other)
    (record,) = read(tmp_path, "SCP-ECG", "a.scp", counted(bodies, {8: (0, 2999)}))
    np.testing.assert_array_equal(uv(record)[:, EIGHT], COUNTS[:, EIGHT])
    both = refusal(tmp_path, "SCP-ECG", "b.scp", counted(bodies, {0: (0, 2999)}))
    assert both.reason is Reason.HEADER and "I 0, II 1, V1 1" in both.detail
    flags = bytearray(bodies[3])
    flags[1] |= 1
    beats = counted({**bodies, 3: bytes(flags)}, dict.fromkeys(range(8), (0, 2999)))
    subtracted = refusal(tmp_path, "SCP-ECG", "c.scp", beats)
    assert subtracted.reason is Reason.FORMAT and "export it without subtraction of beats" in subtracted.detail


def test_edf_marked_as_interrupted(tmp_path: Path) -> None:
    whole = made.edf(COUNTS, kind="EDF+D")
    (record,) = read(tmp_path, "EDF", "a.edf", whole)
    np.testing.assert_array_equal(uv(record), COUNTS)
    late = whole.replace(b"+4\x14\x14", b"+7\x14\x14")
    assert (
        "a gap of 3 s before data record 5; parts are not joined: export each as a file"
        in refusal(tmp_path, "EDF", "b.edf", late).detail
    )
    timeless = refusal(tmp_path, "EDF", "c.edf", whole.replace(b"+2\x14\x14", b"    "))
    assert timeless.reason is Reason.FORMAT and "data record 3 has no time: export it again" in timeless.detail
    unnamed = refusal(tmp_path, "EDF", "d.edf", whole.replace(b"EDF Annotations", b"Something else "))
    assert "without the times of its data records: export it with the signal EDF Annotations" in unnamed.detail


@pytest.mark.parametrize(
    ("gain", "noted"),
    [
        ("1000/mV", False),
        ("1000/MV", True),
        ("1/microvolts", True),
        ("0.001/nV", True),
        ("1/UV", True),
        ("1/uV", False),
    ],
)
def test_units_in_any_case_and_in_words(tmp_path: Path, gain: str, noted: bool) -> None:
    leads = wfdb(tmp_path, gain=gain)
    np.testing.assert_array_equal(np.rint(leads.signal_mv * 1000).T, COUNTS)
    assert ("unit_spelling" in leads.notes) == noted


def test_names_of_leads_in_other_languages_and_standards(tmp_path: Path) -> None:
    limb, chest = LEADS[:6], LEADS[6:]
    latin = ("DI", "DII", "DIII", "AVR", "AVL", "AVF")
    iec = tuple(f"C{number}" for number in range(1, 7))
    for names in (
        (*latin, *chest),
        (*limb, *iec),
        ("D1", "D2", "D3", *limb[3:], *chest),
        (*latin, *map(str.lower, iec)),
    ):
        np.testing.assert_array_equal(np.rint(wfdb(tmp_path, leads=names).signal_mv * 1000).T, COUNTS)
    assert lead_of_name("Lead I (Einthoven)") == 0 and lead_of_name("V1 (mV)") == 6
    assert lead_of_name("V1 (inverted)") is None and lead_of_name("C3") is None and lead_of_name("D1") is None
    of_eeg = ["I", "II", "V1", "C3", "C4"]  # electrodes of an EEG beside an ECG
    assert columns_of_leads(of_eeg) == [1, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]
    assert columns_of_leads([*limb, *chest, *iec])[6:] == [7, 8, 9, 10, 11, 12]  # the usual names go first


@pytest.mark.parametrize(
    ("leads", "message"),
    [
        (("I", "II"), "I and II only; I, II and a chest lead are needed"),
        (("II",), r"a single lead \(II\); I, II and a chest lead"),
        (("MLII", "V5"), r"found: V5, beside 1 other channels \(MLII\)"),
        (("A", "MCL1", "C"), r"found: none of the twelve, beside 3 other channels \(MCL1, \.\.\.\)"),
        (("I", "II", "Flow of a longer name"), "I and II only, beside 1 other channels; I, II"),
    ],
)
def test_too_few_leads_are_refused_with_what_was_found(tmp_path: Path, leads: tuple[str, ...], message: str) -> None:
    write_record(tmp_path, "r", COUNTS[:, : len(leads)], leads=leads)
    with pytest.raises(RecordError, match=message) as caught:
        read_twelve_leads(open_tree(str(tmp_path)), "r.hea")
    assert caught.value.reason is Reason.LEADS_MISSING


def test_every_rhythm_series_of_an_aecg_is_a_recording(tmp_path: Path) -> None:
    one, other = made.aecg_xml(COUNTS).decode(), made.aecg_xml(ecg_counts(3000, seed=1)).decode()
    begin, end = "<component><series>", "</series></component>"
    second = other[other.index(begin) : other.rindex(end) + len(end)]
    (tmp_path / "two.xml").write_text(one.replace("</AnnotatedECG>", second + "</AnnotatedECG>"))
    tree = open_tree(str(tmp_path))
    (item,) = files.find(tree)
    records = list(files.read(tree, item))
    assert [record.record_id for record in records] == ["files/two", "files/two/rhythm-2"]
    assert len({record.patient_id for record in records}) == 1
    np.testing.assert_array_equal(uv(records[1]), ecg_counts(3000, seed=1))
