"""Minimal valid files in the formats of devices, written for tests from the format descriptions.

The writers are independent of the readers and plain: one sample, one bit, one field at a time. Signals are whole counts
(n_samples, 12) as `wfdb_files.ecg_counts` gives them, in canonical lead order, 1 uV each unless said otherwise.
"""

from __future__ import annotations

import base64
import struct
import zlib
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beatray.record import INDEPENDENT_LEADS, LEADS

Counts = NDArray[np.int64]
SCP_CODES = {"I": 1, "II": 2, "V1": 3, "V2": 4, "V3": 5, "V4": 6, "V5": 7, "V6": 8, "III": 61, "aVR": 62, "aVL": 63}
SCP_CODES["aVF"] = 64
EIGHT = [LEADS[position] for position in INDEPENDENT_LEADS]
PERSON = {"name": "Mustermann", "first": "Erika", "id": "PAT-4711", "born": "19641103", "taken": "20240217"}
"""The person of every file written here: none of it may ever come out of a reader but the id."""


def _i16(values: Iterable[int]) -> bytes:
    return b"".join(struct.pack("<h", int(value)) for value in values)


# --- GE MUSE XML -------------------------------------------------------------------------------------------------


def muse_xml(
    counts: Counts, *, doctype: str = '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">', per_bit: str = "1"
) -> bytes:
    """A resting ECG with a median and a rhythm waveform of the eight stored leads, 500 Hz."""

    def lead(name: str, samples: Iterable[int]) -> str:
        data = _i16(samples)
        return (
            f"<LeadData><LeadByteCountTotal>{len(data)}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
            f"<LeadSampleCountTotal>{len(data) // 2}</LeadSampleCountTotal>"
            f"<LeadAmplitudeUnitsPerBit>{per_bit}</LeadAmplitudeUnitsPerBit>"
            "<LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits><LeadHighLimit>32767</LeadHighLimit>"
            f"<LeadLowLimit>-32768</LeadLowLimit><LeadID>{name}</LeadID>"
            "<LeadOffsetFirstSample>0</LeadOffsetFirstSample><FirstSampleBaseline>0</FirstSampleBaseline>"
            "<LeadSampleSize>2</LeadSampleSize><LeadOff>FALSE</LeadOff><BaselineSway>FALSE</BaselineSway>"
            f"<LeadDataCRC32>{zlib.crc32(data)}</LeadDataCRC32>"
            f"<WaveFormData>\n{base64.encodebytes(data).decode()}</WaveFormData></LeadData>"
        )

    def waveform(kind: str, samples: Counts) -> str:
        leads = "".join(lead(name, samples[:, LEADS.index(name)]) for name in EIGHT)
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><WaveformStartTime>0</WaveformStartTime>"
            f"<NumberofLeads>8</NumberofLeads><SampleType>CONTINUOUS_SAMPLES</SampleType><SampleBase>500</SampleBase>"
            f"<SampleExponent>0</SampleExponent>{leads}</Waveform>"
        )

    return (
        f'<?xml version="1.0" encoding="ISO-8859-1"?>\n{doctype}\n<RestingECG>'
        f"<PatientDemographics><PatientID>{PERSON['id']}</PatientID><PatientAge>59</PatientAge>"
        f"<AgeUnits>YEARS</AgeUnits><DateofBirth>11-03-1964</DateofBirth><Gender>FEMALE</Gender>"
        f"<PatientLastName>{PERSON['name']}</PatientLastName></PatientDemographics>"
        "<TestDemographics><AcquisitionDate>02-17-2024</AcquisitionDate><AcquisitionTime>10:15:00</AcquisitionTime>"
        "</TestDemographics>"
        "<RestingECGMeasurements><VentricularRate>60</VentricularRate><PRInterval>160</PRInterval>"
        "<QRSDuration>90</QRSDuration><QTInterval>400</QTInterval><QTCorrected>400</QTCorrected><PAxis>40</PAxis>"
        "<RAxis>30</RAxis><TAxis>20</TAxis></RestingECGMeasurements>"
        f"{waveform('Median', counts[:600])}{waveform('Rhythm', counts)}</RestingECG>"
    ).encode("latin-1")


# --- HL7 aECG ----------------------------------------------------------------------------------------------------


def aecg_xml(counts: Counts, *, increment: str = "0.002", scale: str = "1", unit: str = "uV") -> bytes:
    """One rhythm series on a relative grid, a derived beat, and annotations of two beats."""

    def sequence(name: str, values: Iterable[int]) -> str:
        return (
            f'<component><sequence><code code="MDC_ECG_LEAD_{name.upper()}"/><value xsi:type="SLIST_PQ">'
            f'<origin value="0" unit="{unit}"/><scale value="{scale}" unit="{unit}"/>'
            f"<digits>{' '.join(str(int(value)) for value in values)}</digits></value></sequence></component>"
        )

    def set_of(samples: Counts) -> str:
        leads = "".join(sequence(lead, samples[:, position]) for position, lead in enumerate(LEADS))
        return (
            '<component><sequenceSet><component><sequence><code code="TIME_RELATIVE"/><value xsi:type="GLIST_PQ">'
            f'<head value="0" unit="s"/><increment value="{increment}" unit="s"/></value></sequence></component>'
            f"{leads}</sequenceSet></component>"
        )

    def annotation(code: str, value: int, of: str) -> str:
        return (
            f'<component><annotation><code code="{code}"/><value value="{value}" unit="{of}"/></annotation></component>'
        )

    intervals = "".join(annotation("MDC_ECG_TIME_PD_QT", qt, "ms") for qt in (400, 410))
    intervals += annotation("MDC_ECG_HEART_RATE", 60, "bpm")
    return (
        '<?xml version="1.0" encoding="UTF-8"?><AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f'<effectiveTime><low value="{PERSON["taken"]}101500"/></effectiveTime>'
        "<componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject>"
        f'<id root="1.2.3" extension="{PERSON["id"]}"/><subjectDemographicPerson><name>{PERSON["name"]}</name>'
        f'<administrativeGenderCode code="F"/><birthTime value="{PERSON["born"]}"/></subjectDemographicPerson>'
        "</trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>"
        f'<component><series><code code="RHYTHM"/>{set_of(counts)}'
        f"<subjectOf><annotationSet>{intervals}</annotationSet></subjectOf>"
        f'<derivation><derivedSeries><code code="REPRESENTATIVE_BEAT"/>{set_of(counts[:600])}</derivedSeries>'
        "</derivation></series></component></AnnotatedECG>"
    ).encode()


# --- Schiller XML ------------------------------------------------------------------------------------------------


def schiller_xml(counts: Counts) -> bytes:
    """Averages and a rhythm of twelve leads as comma-separated counts of 1 uV, 500 Hz."""

    def waves(kind: str, samples: Counts) -> str:
        channels = "".join(
            f"<channel><name>{lead}</name><data>{','.join(str(int(v)) for v in samples[:, position])}</data>"
            f"<datastype>COMMASEPARATE</datastype><samplecount>{len(samples)}</samplecount></channel>"
            for position, lead in enumerate(LEADS)
        )
        return (
            f"<wavedata><type>{kind}</type><resolution><samplerate><exponent>1</exponent><value>500</value></samplerate>"
            f"<yres><unitperbit>1.0</unitperbit><units>UV</units></yres></resolution>{channels}</wavedata>"
        )

    root = "com.xiriuz.sema.xml.schillerEDI.SchillerEDI"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><{root}><patdata><id>{PERSON["id"]}</id>'
        f"<lastname>{PERSON['name']}</lastname><birthdate>{PERSON['born']}</birthdate><gender>FEMALE</gender></patdata>"
        f"<examdescript><startdatetime><date>{PERSON['taken']}</date><time>101500000</time></startdatetime>"
        "</examdescript>"
        f"<eventdata><event>{waves('ECG_AVERAGES', counts[:500])}{waves('ECG_RHYTHMS', counts)}"
        "<annotation_global><name>HR</name><value>60</value></annotation_global>"
        "<annotation_global><name>PQ</name><value>160</value></annotation_global></event></eventdata>"
        f"</{root}>"
    ).encode()


# --- Philips XML -------------------------------------------------------------------------------------------------


def lzw_10_bits(data: bytes) -> bytes:
    """LZW with codes of ten bits, highest bit first, an end code of 1023 and a dictionary that stops when full."""
    table = {bytes((value,)): value for value in range(256)}
    codes: list[int] = []
    held = b""
    for value in data:
        longer = held + bytes((value,))
        if longer in table:
            held = longer
            continue
        codes.append(table[held])
        if len(table) < 1023:
            table[longer] = len(table)
        held = bytes((value,))
    codes += [table[held], 1023]
    bits = "".join(f"{code:010b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def xli_block(samples: Sequence[int]) -> bytes:
    """One channel: the header, then the coded upper and lower bytes of the second differences."""
    stored = [int(samples[0]), int(samples[1])]
    bends = [2 * int(samples[i - 1]) - int(samples[i - 2]) - int(samples[i]) for i in range(2, len(samples))]
    stored += [bend + 64 for bend in bends[1:]] + [64]
    shorts = [value & 0xFFFF for value in stored]
    coded = lzw_10_bits(bytes(short >> 8 for short in shorts) + bytes(short & 0xFF for short in shorts))
    return struct.pack("<Ihh", len(coded), 1, bends[0]) + coded


def philips_xml(
    counts: Counts, *, compression: str | None = "XLI", resolution: str = "1", version: str = "1.04"
) -> bytes:
    """Twelve leads at 500 Hz, XLI compressed or plain, as a document of version 1.04."""
    columns = [counts[:, position].copy() for position in range(12)]
    if compression == "XLI":
        one, two, three, right, left, foot = columns[:6]
        columns[5] = ((two + three) >> 1) - foot
        columns[4] = ((one - three) >> 1) - left
        columns[3] = -right - ((one + two) >> 1)
        columns[2] = two - one - three
        data = b"".join(xli_block(column) for column in columns)
    else:
        data = b"".join(_i16(column) for column in columns)
    attribute = "" if compression is None else f' compression="{compression}"'
    return (
        f'<?xml version="1.0" encoding="utf-16"?><restingecgdata xmlns="http://www3.medical.philips.com">'
        f"<documentinfo><documentname>{PERSON['name']}.xml</documentname><documentversion>{version}</documentversion>"
        '</documentinfo><dataacquisition time="10:15:00" date="2024-02-17">'
        f"<signalcharacteristics><samplingrate>500</samplingrate>"
        f"<resolution>{resolution}</resolution><acquisitiontype>10-WIRE</acquisitiontype>"
        "<bitspersample>16</bitspersample><signaloffset>0</signaloffset><signalsigned>True</signalsigned>"
        "<numberchannelsvalid>12</numberchannelsvalid></signalcharacteristics></dataacquisition>"
        f"<patient><generalpatientdata><patientid>{PERSON['id']}</patientid><name><lastname>{PERSON['name']}</lastname>"
        "</name><age><dateofbirth>1964-11-03</dateofbirth></age><sex>Female</sex></generalpatientdata></patient>"
        "<interpretations><interpretation><globalmeasurements><heartrate>60</heartrate><print>160</print>"
        "</globalmeasurements></interpretation></interpretations>"
        f'<waveforms><parsedwaveforms dataencoding="Base64"{attribute} numberofleads="12" '
        f'leadlabels="{" ".join(LEADS)}" durationperchannel="{2 * len(counts)}">{base64.b64encode(data).decode()}'
        "</parsedwaveforms></waveforms></restingecgdata>"
    ).encode("utf-16")


# --- SCP-ECG -----------------------------------------------------------------------------------------------------


def scp_section(number: int, body: bytes, protocol: int = 20) -> bytes:
    """A section with its header and CRC, of even length."""
    body += b"\0" * (len(body) % 2)
    rest = struct.pack("<HIBB6s", number, 16 + len(body), protocol, protocol, b"SCPECG" if number == 0 else b"") + body
    return struct.pack("<H", crc_hqx(rest, 0xFFFF)) + rest


def scp_record(bodies: dict[int, bytes], protocol: int = 20) -> bytes:
    """A whole record of these sections, with section 0, the length and all CRCs."""
    sections = {number: scp_section(number, body, protocol) for number, body in sorted(bodies.items())}
    position = 6 + 16 + 10 * 12
    pointers = [struct.pack("<HII", 0, 136, 7)]
    for number in range(1, 12):
        size = len(sections.get(number, b""))
        pointers.append(struct.pack("<HII", number, size, position + 1 if size else 0))
        position += size
    rest = scp_section(0, b"".join(pointers), protocol) + b"".join(sections.values())
    rest = struct.pack("<I", 6 + len(rest)) + rest
    return struct.pack("<H", crc_hqx(rest, 0xFFFF)) + rest


def scp_patient() -> bytes:
    """Section 1: name, id, age in years, day of birth, sex, day of the recording."""

    def tag(number: int, value: bytes) -> bytes:
        return struct.pack("<BH", number, len(value)) + value

    def day(text: str) -> bytes:
        return struct.pack("<HBB", int(text[:4]), int(text[4:6]), int(text[6:]))

    return (
        tag(0, PERSON["name"].encode() + b"\0")
        + tag(1, PERSON["first"].encode() + b"\0")
        + tag(2, PERSON["id"].encode() + b"\0")
        + tag(4, struct.pack("<HB", 59, 1))
        + tag(5, day(PERSON["born"]))
        + tag(8, b"\x02")
        + tag(25, day(PERSON["taken"]))
        + tag(26, bytes((10, 15, 0)))
        + tag(255, b"")
    )


def scp_default_bits(values: Iterable[int]) -> bytes:
    """Values in the default Huffman table, as the table is printed in the standard."""
    bits = ""
    for value in values:
        if value == 0:
            bits += "0"
        elif abs(value) <= 8:
            bits += "1" * abs(value) + "0" + ("1" if value < 0 else "0")
        elif -128 <= value <= 127:
            bits += "1111111110" + f"{value & 0xFF:08b}"
        else:
            bits += "1111111111" + f"{value & 0xFFFF:016b}"
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def scp_differences(column: Sequence[int], order: int) -> list[int]:
    """Values, first or second differences, with the first samples as they are."""
    samples = [int(value) for value in column]
    if order == 0:
        return samples
    first = [b - a for a, b in pairwise(samples)]
    if order == 1:
        return samples[:1] + first
    return samples[:2] + [b - a for a, b in pairwise(first)]


def scp_signal_section(
    columns: Sequence[Sequence[int]], order: int, huffman: bool, nanovolts: int, bimodal: int
) -> bytes:
    """The body of section 5 or 6."""
    coded = [scp_differences(column, order) for column in columns]
    leads = [scp_default_bits(values) if huffman else _i16(values) for values in coded]
    head = struct.pack("<HHBB", nanovolts, 2000, order, bimodal)
    return head + b"".join(struct.pack("<H", len(lead)) for lead in leads) + b"".join(leads)


def scp_bodies(
    counts: Counts, *, order: int = 2, huffman: bool = True, nanovolts: int = 1000, leads: Sequence[str] = tuple(EIGHT)
) -> dict[int, bytes]:
    """Sections 1, 2 (default table), 3, 6 and 7 of a recording at 500 Hz."""
    columns = [counts[:, LEADS.index(lead)].tolist() for lead in leads]
    lead_list = b"".join(struct.pack("<IIB", 1, len(counts), SCP_CODES[lead]) for lead in leads)
    measured = struct.pack("<BBHH", 1, 0, 1000, 29999) + struct.pack("<5H3h", 100, 200, 260, 350, 660, 40, 30, 999)
    bodies = {
        1: scp_patient(),
        3: bytes((len(leads), 4 | len(leads) << 3)) + lead_list,
        6: scp_signal_section(columns, order, huffman, nanovolts, 0),
        7: measured,
    }
    return bodies | ({2: struct.pack("<H", 19999)} if huffman else {})


# --- EDF ---------------------------------------------------------------------------------------------------------


def edf(
    counts: Counts,
    *,
    kind: str = "EDF+C",
    labels: Sequence[str] = tuple(f"ECG {lead}" for lead in LEADS),
    unit: str = "uV",
    per_record: int = 500,
    duration: str = "1",
) -> bytes:
    """Data records of one second with the leads and an annotation signal."""

    def field(text: object, width: int) -> bytes:
        return f"{text!s:<{width}}".encode("latin-1")[:width]

    n_records = len(counts) // per_record
    n = len(labels) + 1
    head = field("0", 8) + field(f"{PERSON['id']} F 03-NOV-1964 {PERSON['name']}", 80)
    head += field("Startdate 17-FEB-2024 X X X", 80) + field("17.02.24", 8) + field("10.15.00", 8)
    head += field(256 * (n + 1), 8) + field(kind, 44) + field(n_records, 8) + field(duration, 8) + field(n, 4)
    columns: list[tuple[int, list[object]]] = [
        (16, [*labels, "EDF Annotations"]),
        (80, [""] * n),
        (8, [*[unit] * (n - 1), ""]),
        (8, [*[-32768] * (n - 1), -1]),
        (8, [*[32767] * (n - 1), 1]),
        (8, [-32768] * n),
        (8, [32767] * n),
        (80, [""] * n),
        (8, [*[per_record] * (n - 1), 30]),
        (32, [""] * n),
    ]
    head += b"".join(field(value, width) for width, values in columns for value in values)
    blocks = []
    for number in range(n_records):
        part = counts[number * per_record : (number + 1) * per_record]
        blocks += [_i16(part[:, column]) for column in range(len(labels))]
        blocks.append(f"+{number}\x14\x14".encode().ljust(60, b"\0"))
    return head + b"".join(blocks)


# --- DICOM -------------------------------------------------------------------------------------------------------


def element(group: int, number: int, kind: str, value: bytes | str | int | float | list[bytes]) -> bytes:
    """One data element, explicit VR, little endian; a list is a sequence of items."""
    if isinstance(value, list):
        value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in value)
    elif kind == "US":
        value = struct.pack("<H", value)
    elif kind == "UL":
        value = struct.pack("<I", value)
    elif not isinstance(value, bytes):
        value = str(value).encode()
    value += (b"\0" if kind in ("UI", "OW", "OB") else b" ") * (len(value) % 2)
    if kind in ("SQ", "OW", "OB", "UN"):
        return struct.pack("<HH2sHI", group, number, kind.encode(), 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, kind.encode(), len(value)) + value


def dicom_group(
    counts: Counts,
    *,
    sensitivity: str = "1",
    correction: str = "1",
    baseline: str = "0",
    unit: str = "uV",
    skews: Sequence[str] = (),
    padding: int | None = None,
    label: str = "RHYTHM",
    originality: str = "ORIGINAL",
    rate: str = "500",
    codes: bool = True,
) -> bytes:
    """One item of the Waveform Sequence with twelve channels of 16 bits."""
    channels = []
    for position, lead in enumerate(LEADS):
        source = element(8, 0x100, "SH", f"2:{SCP_CODES[lead]}") + element(8, 0x102, "SH", "MDC")
        if not codes:
            source = element(8, 0x100, "SH", "LOCAL-1") + element(8, 0x104, "LO", f"Lead {lead}, as recorded")
        channel = element(0x3A, 0x208, "SQ", [source])
        channel += element(0x3A, 0x210, "DS", sensitivity)
        channel += element(0x3A, 0x211, "SQ", [element(8, 0x100, "SH", unit) + element(8, 0x102, "SH", "UCUM")])
        channel += element(0x3A, 0x212, "DS", correction) + element(0x3A, 0x213, "DS", baseline)
        channel += element(0x3A, 0x215, "DS", skews[position] if skews else "0")
        channels.append(channel + element(0x3A, 0x21A, "US", 16))
    item = element(0x3A, 0x4, "CS", originality) + element(0x3A, 0x5, "US", 12)
    item += element(0x3A, 0x10, "UL", len(counts)) + element(0x3A, 0x1A, "DS", rate)
    item += element(0x3A, 0x20, "SH", label) + element(0x3A, 0x200, "SQ", channels)
    item += element(0x5400, 0x1004, "US", 16) + element(0x5400, 0x1006, "CS", "SS")
    if padding is not None:
        item += element(0x5400, 0x100A, "OW", struct.pack("<h", padding))
    return item + element(0x5400, 0x1010, "OW", _i16(counts.reshape(-1)))


def dicom(
    groups: list[bytes], *, sop_class: str = "1.2.840.10008.5.1.4.1.1.9.1.1", syntax: str = "1.2.840.10008.1.2.1"
) -> bytes:
    """A DICOM file with these multiplex groups."""
    meta = element(2, 0x2, "UI", sop_class) + element(2, 0x3, "UI", "1.2.3.4") + element(2, 0x10, "UI", syntax)
    meta = element(2, 0x0, "UL", len(meta)) + meta
    body = element(8, 0x16, "UI", sop_class) + element(8, 0x18, "UI", "1.2.3.4")
    body += element(8, 0x2A, "DT", PERSON["taken"] + "101500")
    body += element(0x10, 0x10, "PN", f"{PERSON['name']}^{PERSON['first']}") + element(0x10, 0x20, "LO", PERSON["id"])
    body += element(0x10, 0x30, "DA", PERSON["born"]) + element(0x10, 0x40, "CS", "F")
    return bytes(128) + b"DICM" + meta + body + element(0x5400, 0x100, "SQ", groups)
