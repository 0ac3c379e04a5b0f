"""The readers of device formats on real files: scale, leads and times against what the files say in another way.

Oracles are independent of the readers: the representative beats that devices store beside the rhythm (another encoding
of the same voltages), their amplitudes per lead, and for DICOM the arithmetic of pydicom.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from beatray.dsp.peaks import find_r_peaks
from beatray.ingest.canonical import to_windows
from beatray.ingest.formats.registry import FORMATS, format_of
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, Record

Signal = NDArray[np.float64]

SAMPLES = {
    "dicom/sample_12lead_500Hz.dcm": ("DICOM", 500.0, 5000, 39.0, "M"),
    "hl7_aecg/Example_aECG.xml": ("HL7 aECG", 500.0, 5000, 46.0, "M"),
    "hl7_aecg/hl7aecg-Example2.xml": ("HL7 aECG", 1000.0, 10000, 32.0, None),
    "philips_xml/129DYPRG.XML": ("Philips XML", 500.0, 5264, 50.0, "M"),
    "philips_xml/2020-5-18_15-48-11.xml": ("Philips XML", 500.0, 5300, 69.0, None),
    "philips_xml/3191723_ZZDEMOPTONLY_1-04_orig.xml": ("Philips XML", 500.0, 5300, 60.0, "M"),
    "schiller_xml/sample.xml": ("Schiller XML", 500.0, 5000, None, None),
    "ptbdb/s0010_re.hea": ("WFDB", 1000.0, 38400, None, None),
}


def read(data_dir: Path, path: str) -> Record:
    tree = open_tree(str(data_dir / "misc"))
    found = format_of(tree, path)
    assert found is not None
    (record,) = found.read(tree, path)
    return record


@pytest.mark.parametrize("path", SAMPLES)
def test_samples(data_dir: Path, path: str) -> None:
    name, rate_hz, n_samples, age, sex = SAMPLES[path]
    tree = open_tree(str(data_dir / "misc"))
    assert format_of(tree, path) is FORMATS[name]
    record = read(data_dir, path)
    assert (record.record_id, record.source) == (path.rpartition(".")[0], "")
    assert (record.rate_hz, record.signal_mv.shape, record.lead_mask) == (rate_hz, (12, n_samples), 0xFFF)
    assert (record.age, record.sex) == (age, sex)
    assert record.patient_is_private == (record.patient_id is not None)
    assert not record.notes
    windows = to_windows(record)
    assert windows[0].n_samples == 5000


@pytest.mark.parametrize("path", SAMPLES)
def test_limb_leads_are_sums_of_two(data_dir: Path, path: str) -> None:
    """A wrong lead or a wrong scale of one of them would break Einthoven's and Goldberger's relations."""
    one, two, three, right, left, foot = read(data_dir, path).signal_mv[:6]
    for lead, expected in ((three, two - one), (right, -(one + two) / 2), (left, one - two / 2), (foot, two - one / 2)):
        error = lead - expected
        assert np.sqrt(np.mean((error - np.median(error)) ** 2)) < 0.012


def best_match(record: Record, beat_ii: Signal) -> int:
    """Where the representative beat fits best into lead II."""
    x = record.signal_mv[1]
    beat = beat_ii - beat_ii.mean()
    starts = range(len(x) - len(beat))
    scores = [float(np.corrcoef(x[s : s + len(beat)], beat)[0, 1]) for s in starts]
    return int(np.argmax(scores))


def check_beats(record: Record, beats: dict[str, Signal], *, correlation: float = 0.9, slope: float = 0.2) -> None:
    """Each lead's representative beat lies in that lead at one and the same place, and has its scale."""
    start = best_match(record, beats["II"])
    slopes = []
    for lead, beat in beats.items():
        if np.ptp(beat) < 0.3:
            continue  # too small to stand out of the noise
        here = record.signal_mv[LEADS.index(lead), start : start + len(beat)]
        centred = beat - beat.mean()
        assert np.corrcoef(here, centred)[0, 1] > correlation, lead
        slopes.append(centred @ (here - here.mean()) / (centred @ centred))
        assert abs(slopes[-1] - 1.0) < slope, lead  # beats differ from their mean, most over the chest
    assert len(slopes) >= 8
    assert abs(float(np.median(slopes)) - 1.0) < 0.06


@pytest.mark.parametrize(
    "path", ["philips_xml/2020-5-18_15-48-11.xml", "philips_xml/3191723_ZZDEMOPTONLY_1-04_orig.xml"]
)
def test_philips_beside_its_representative_beats(data_dir: Path, path: str) -> None:
    """They are stored uncompressed and per lead, so they check XLI, the limb leads and the scale."""
    root = ElementTree.fromstring((data_dir / "misc" / path).read_bytes())
    space = root.tag.partition("}")[0] + "}" if "}" in root.tag else ""
    group = root.find(f".//{space}repbeats")
    assert group is not None
    step = int(group.get("samplespersec", "")) // 500
    beats = {}
    for element in group.iter(f"{space}repbeat"):
        raw = np.frombuffer(base64.b64decode(element.findtext(f"{space}waveform") or ""), "<i2")
        beats[element.get("leadname", "")] = raw[::step] * float(group.get("resolution", "")) / 1000.0
    check_beats(read(data_dir, path), {lead: beat[100:500] for lead, beat in beats.items()})


def test_philips_amplitudes_beside_the_devices_own(data_dir: Path) -> None:
    """QRS from peak to peak per lead in version 1.03, whose file has no representative beats."""
    path = "philips_xml/129DYPRG.XML"
    text = (data_dir / "misc" / path).read_text()
    stated = re.findall(r'<leadmeasurement leadname="(\w+)".*?<qrsppk>(-?\d+)</qrsppk>', text, re.DOTALL)
    assert len(stated) == 12
    record = read(data_dir, path)
    peaks = find_r_peaks(record.signal_mv[None].astype(np.float32), 500.0)[0]
    errors = {}
    for lead, microvolts in stated:
        x = record.signal_mv[LEADS.index(lead)]
        measured = np.median([np.ptp(x[r - 30 : r + 35]) for r in peaks])
        errors[lead] = 1000.0 * measured / float(microvolts) - 1.0
    # The device leaves a part of aVF out, whose voltages are right: they are those of (II + III) / 2, as tested above.
    assert [lead for lead, error in errors.items() if abs(error) > 0.05] == ["aVF"]


def test_aecg_beside_its_derived_beat(data_dir: Path) -> None:
    path = "hl7_aecg/Example_aECG.xml"
    derived = (data_dir / "misc" / path).read_text().partition("REPRESENTATIVE_BEAT")[2]
    found = re.findall(
        r'MDC_ECG_LEAD_(\w+)".*?<scale value="([\d.]+)" unit="uV".*?<digits>([^<]*)<', derived, re.DOTALL
    )
    names = {lead.lower(): lead for lead in LEADS}
    beats = {names[lead.lower()]: np.array(digits.split(), float) * float(scale) / 1e3 for lead, scale, digits in found}
    check_beats(read(data_dir, path), {lead: beat[100:500] for lead, beat in beats.items()})


def test_schiller_beside_its_averages(data_dir: Path) -> None:
    path = "schiller_xml/sample.xml"
    averages = (data_dir / "misc" / path).read_text().partition("ECG_RHYTHMS")[0]
    found = re.findall(r"<name>(\w+)</name>\s*<data>([^<]*)</data>", averages)
    names = {lead.upper(): lead for lead in LEADS}
    beats = {names[lead]: np.array(data.rstrip(" ,\n").split(","), float) / 1000.0 for lead, data in found if data}
    assert list(beats) == list(LEADS)
    check_beats(read(data_dir, path), {lead: beat[50:400] for lead, beat in beats.items()})


def test_dicom_beside_its_median_beat_and_pydicom(data_dir: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    path = data_dir / "misc" / "dicom/sample_12lead_500Hz.dcm"
    record = read(data_dir, "dicom/sample_12lead_500Hz.dcm")
    dataset = pydicom.dcmread(path)
    np.testing.assert_allclose(record.signal_mv, dataset.waveform_array(0).T / 1000.0, atol=1e-9)
    median = dataset.waveform_array(1).T / 1000.0
    check_beats(record, {lead: median[position][100:500] for position, lead in enumerate(LEADS)})


def test_measurements_of_the_devices(data_dir: Path) -> None:
    dicom = read(data_dir, "dicom/sample_12lead_500Hz.dcm").measured
    assert dicom == {
        "rate_bpm": 80, "p_ms": 84, "pr_ms": 156, "qrs_ms": 86, "qt_ms": 398, "qtc_ms": 459,
        "p_axis_deg": 53, "qrs_axis_deg": 44, "t_axis_deg": 60,
    }  # fmt: skip
    aecg = read(data_dir, "hl7_aecg/Example_aECG.xml").measured
    assert (aecg["pr_ms"], aecg["qrs_ms"], aecg["qt_ms"], aecg["qtc_ms"]) == (148, 120, 420, 443)
    assert read(data_dir, "hl7_aecg/hl7aecg-Example2.xml").measured == {"rate_bpm": 52}
    schiller = read(data_dir, "schiller_xml/sample.xml").measured
    assert (schiller["rate_bpm"], schiller["pr_ms"], schiller["qrs_ms"], schiller["qt_ms"]) == (69, 174, 94, 370)
    philips = [read(data_dir, path).measured for path in SAMPLES if path.startswith("philips")]
    assert [(m["rate_bpm"], m["pr_ms"], m["qrs_ms"], m["qt_ms"], m["qtc_ms"]) for m in philips] == [
        (41, 151, 135, 476, 393), (64, 164, 102, 399, 412), (84, 144, 84, 352, 417),
    ]  # fmt: skip


def test_hospital_ids_are_private_and_names_stay_inside(data_dir: Path) -> None:
    record = read(data_dir, "hl7_aecg/Example_aECG.xml")
    assert (record.patient_id, record.patient_is_private) == ("SBJ-123", True)
    for path in SAMPLES:
        stated = repr(read(data_dir, path))
        for secret in ("Clark", "ZZDEMO", "19530508", "1950-01-01", "Investigator"):
            assert secret not in stated.replace(path.rpartition(".")[0], "")
