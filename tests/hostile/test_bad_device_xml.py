"""Damaged and malicious XML of devices: refused with a reason, in bounded memory, opening and fetching nothing."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bad_device_files import GOOD, refused, warm_up
from beatray.record import Reason


@pytest.fixture(autouse=True)
def warm(tmp_path: Path) -> None:
    warm_up(tmp_path)


def swapped(old: str, new: str, *, times: int = -1, code: str = "utf-8") -> Callable[[bytes], bytes]:
    """Replace text in a file, which must have it."""

    def change(data: bytes) -> bytes:
        text = data.decode(code)
        assert old in text
        return text.replace(old, new, times).encode(code)

    return change


LAUGHS = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(9)
)
XML_NAMES = ("HL7 aECG", "Philips XML", "Schiller XML", "MUSE XML")


def xml_bomb(name: str, kind: str) -> bytes:
    root = {"HL7 aECG": "AnnotatedECG", "Philips XML": "restingecgdata", "MUSE XML": "RestingECG"}.get(
        name, "com.xiriuz.sema.xml.schillerEDI.SchillerEDI"
    )
    body = {
        "laughs": f"{LAUGHS}]><{root}>&j;</{root}>",
        "external": f'<!DOCTYPE {root} [<!ENTITY x SYSTEM "file:///etc/passwd">]><{root}>&x;</{root}>',
        "external dtd": f'<!DOCTYPE {root} SYSTEM "http://127.0.0.1/x.dtd"><{root}/>',
        "parameter entity": f'<!DOCTYPE {root} [<!ENTITY % x SYSTEM "file:///etc/passwd">%x;]><{root}/>',
        "undefined entity": f"<{root}>&secret;</{root}>",
        "deep": f"<{root}>" + "<a>" * 40_000 + "</a>" * 40_000 + f"</{root}>",
        "wide": f"<{root}>" + "<a/>" * 1_000_000 + f"</{root}>",
        "attributes": f"<{root} " + " ".join(f'a{k}=""' for k in range(200_000)) + "/>",
        "long": f"<{root}>" + "x" * (9 << 20) + f"</{root}>",
        "unclosed": f"<{root}>" + "<a>" * 40_000,
        "encoding": f'<?xml version="1.0" encoding="utf-7"?><{root}/>',
        "unknown encoding": f'<?xml version="1.0" encoding="no-such"?><{root}/>',
        "wide encoding": f'<?xml version="1.0" encoding="shift_jis"?><{root}/>',
        "nothing": "",
        "only a declaration": '<?xml version="1.0"?>',
        "empty root": f"<{root}/>",
        "other root": "<html/>",
        "text": "hello",
    }[kind]
    return body.encode()


@pytest.mark.parametrize("name", XML_NAMES)
@pytest.mark.parametrize(
    "kind",
    [
        *("laughs", "external", "external dtd", "parameter entity", "undefined entity", "deep", "wide", "attributes"),
        *("long", "unclosed", "encoding", "unknown encoding", "wide encoding", "nothing", "only a declaration"),
        *("empty root", "other root", "text"),
    ],
)
def test_xml_bombs(tmp_path: Path, name: str, kind: str) -> None:
    reason = refused(tmp_path, name, xml_bomb(name, kind))
    expected = Reason.ABSURD_SIZE if kind in ("wide", "attributes", "long") else Reason.HEADER
    assert reason in (expected, Reason.FORMAT if kind in ("empty root", "deep") else expected)


def one_short(data: bytes) -> bytes:
    """The first lead without its last sample."""
    return re.sub(rb" -?\d+</digits>", b"</digits>", data, count=1)


ENDLESS = "<digits>" + "1 " * (1 << 20)
XML_FAULTS: dict[str, tuple[str, Callable[[bytes], bytes], Reason]] = {
    "aECG: increment 0": ("HL7 aECG", swapped('value="0.002"', 'value="0"'), Reason.BAD_RATE),
    "aECG: increment nan": ("HL7 aECG", swapped('value="0.002"', 'value="nan"'), Reason.BAD_RATE),
    "aECG: increment 1e-9": ("HL7 aECG", swapped('value="0.002"', 'value="1e-9"'), Reason.BAD_RATE),
    "aECG: increment in hours": ("HL7 aECG", swapped('"0.002" unit="s"', '"0.002" unit="h"'), Reason.BAD_RATE),
    "aECG: scale 0": ("HL7 aECG", swapped('<scale value="1"', '<scale value="0"'), Reason.BAD_GAIN),
    "aECG: scale inf": ("HL7 aECG", swapped('<scale value="1"', '<scale value="inf"'), Reason.BAD_GAIN),
    "aECG: scale 1e999": ("HL7 aECG", swapped('<scale value="1"', '<scale value="1e999"'), Reason.BAD_GAIN),
    "aECG: scale negative": ("HL7 aECG", swapped('<scale value="1"', '<scale value="-1"'), Reason.BAD_GAIN),
    "aECG: no unit": ("HL7 aECG", swapped('<scale value="1" unit="uV"', '<scale value="1"'), Reason.BAD_UNITS),
    "aECG: unit of pressure": ("HL7 aECG", swapped('unit="uV"', 'unit="mm[Hg]"'), Reason.BAD_UNITS),
    "aECG: origin far away": ("HL7 aECG", swapped('<origin value="0"', '<origin value="1e9"'), Reason.AMPLITUDE),
    "aECG: a lead twice": ("HL7 aECG", swapped("MDC_ECG_LEAD_V2", "MDC_ECG_LEAD_V1"), Reason.DUPLICATE_LEADS),
    "aECG: no lead II": ("HL7 aECG", swapped("MDC_ECG_LEAD_II", "MDC_ECG_LEAD_MLII"), Reason.LEADS_MISSING),
    "aECG: only derived": ("HL7 aECG", swapped('code="RHYTHM"', 'code="REPRESENTATIVE_BEAT"'), Reason.HEADER),
    "aECG: other list": ("HL7 aECG", swapped("SLIST_PQ", "SLIST_TS"), Reason.FORMAT),
    "aECG: other grid": ("HL7 aECG", swapped("GLIST_PQ", "IVL_TS"), Reason.FORMAT),
    "aECG: a lead one sample short": ("HL7 aECG", one_short, Reason.TRUNCATED),
    "aECG: digits are words": ("HL7 aECG", swapped("<digits>", "<digits>a "), Reason.FORMAT),
    "aECG: digits are fractions": ("HL7 aECG", swapped("<digits>", "<digits>1.5 "), Reason.FORMAT),
    "aECG: digits of 25 digits": ("HL7 aECG", swapped("<digits>", f"<digits>{'9' * 25} "), Reason.FORMAT),
    "aECG: digits with underscores": ("HL7 aECG", swapped("<digits>", "<digits>1_000 "), Reason.FORMAT),
    "aECG: digits without end": ("HL7 aECG", swapped("<digits>", ENDLESS, times=1), Reason.ABSURD_SIZE),
    "aECG: minus alone": ("HL7 aECG", swapped("<digits>", "<digits>- "), Reason.FORMAT),
    "aECG: no digits": ("HL7 aECG", lambda d: re.sub(rb"<digits>[^<]*", b"<digits>", d), Reason.TRUNCATED),
    "Schiller: exponent 2": ("Schiller XML", swapped("<exponent>1<", "<exponent>2<"), Reason.BAD_RATE),
    "Schiller: rate 0": ("Schiller XML", swapped("<value>500<", "<value>0<"), Reason.BAD_RATE),
    "Schiller: unit per bit 0": ("Schiller XML", swapped("<unitperbit>1.0", "<unitperbit>0"), Reason.BAD_GAIN),
    "Schiller: unit missing": ("Schiller XML", swapped("<units>UV</units>", ""), Reason.BAD_UNITS),
    "Schiller: base64": ("Schiller XML", swapped("COMMASEPARATE", "BASE64"), Reason.FORMAT),
    "Schiller: count too high": ("Schiller XML", swapped("<samplecount>2600", "<samplecount>2601"), Reason.TRUNCATED),
    "Schiller: count too low": ("Schiller XML", swapped("count>2600", "count>2599"), Reason.TRAILING_BYTES),
    "Schiller: empty cell": ("Schiller XML", swapped("<data>", "<data>1,,"), Reason.FORMAT),
    "Schiller: no rhythm": ("Schiller XML", swapped("ECG_RHYTHMS", "ECG_AVERAGES"), Reason.FORMAT),
    "Schiller: two rhythms": ("Schiller XML", swapped("ECG_AVERAGES", "ECG_RHYTHMS"), Reason.FORMAT),
    "MUSE: exponent 99": ("MUSE XML", swapped("<SampleExponent>0", "<SampleExponent>99"), Reason.BAD_RATE),
    "MUSE: base 0": ("MUSE XML", swapped("<SampleBase>500", "<SampleBase>0"), Reason.BAD_RATE),
    "MUSE: no units": ("MUSE XML", swapped("MICROVOLTS", ""), Reason.BAD_UNITS),
    "MUSE: units per bit 0": ("MUSE XML", swapped("PerBit>1<", "PerBit>0<"), Reason.BAD_GAIN),
    "MUSE: 4 bytes": ("MUSE XML", swapped("<LeadSampleSize>2", "<LeadSampleSize>4"), Reason.FORMAT),
    "MUSE: time offset": ("MUSE XML", swapped("<LeadTimeOffset>0", "<LeadTimeOffset>7"), Reason.FORMAT),
    "MUSE: wrong CRC": ("MUSE XML", swapped("<LeadDataCRC32>", "<LeadDataCRC32>1"), Reason.CHECKSUM),
    "MUSE: count too high": ("MUSE XML", swapped("Total>2600<", "Total>9999999<"), Reason.TRUNCATED),
    "MUSE: not base64": ("MUSE XML", swapped("<WaveFormData>\n", "<WaveFormData>*"), Reason.FORMAT),
    "MUSE: only a median": ("MUSE XML", swapped("Rhythm", "Median"), Reason.HEADER),
    "MUSE: a lead twice": ("MUSE XML", swapped("<LeadID>V2<", "<LeadID>V1<"), Reason.DUPLICATE_LEADS),
}  # fmt: skip


@pytest.mark.parametrize("fault", XML_FAULTS)
def test_xml_faults(tmp_path: Path, fault: str) -> None:
    name, change, reason = XML_FAULTS[fault]
    assert refused(tmp_path, name, change(GOOD[name])) is reason


def philips(old: str, new: str) -> Callable[[bytes], bytes]:
    return swapped(old, new, code="utf-16")


def xli(change: Callable[[bytearray], None]) -> Callable[[bytes], bytes]:
    """Change the decoded waveform data."""

    def changed(data: bytes) -> bytes:
        text = data.decode("utf-16")
        start, end = (text.index(mark) for mark in ('00">', "</parsedwaveforms>"))
        packed = bytearray(base64.b64decode(text[start + 4 : end]))
        change(packed)
        return (text[: start + 4] + base64.b64encode(bytes(packed)).decode() + text[end:]).encode("utf-16")

    return changed


PHILIPS_FAULTS: dict[str, tuple[Callable[[bytes], bytes], Reason]] = {
    "version 1.05": (philips("1.04<", "1.05<"), Reason.FORMAT),
    "rate 0": (philips("<samplingrate>500", "<samplingrate>0"), Reason.BAD_RATE),
    "resolution 0": (philips("<resolution>1<", "<resolution>0<"), Reason.BAD_GAIN),
    "resolution missing": (philips("<resolution>1<", "<resolution><"), Reason.BAD_GAIN),
    "unsigned": (philips("<signalsigned>True", "<signalsigned>False"), Reason.FORMAT),
    "12 bits": (philips("<bitspersample>16", "<bitspersample>12"), Reason.FORMAT),
    "offset": (philips("<signaloffset>0", "<signaloffset>2048"), Reason.FORMAT),
    "other compression": (philips('compression="XLI"', 'compression="ZIP"'), Reason.FORMAT),
    "plain text": (philips('dataencoding="Base64"', 'dataencoding="Plain"'), Reason.FORMAT),
    "two leads swapped": (philips("V1 V2", "V2 V1"), Reason.LEADS_MISSING),
    "eleven leads": (philips('numberofleads="12"', 'numberofleads="11"'), Reason.LEADS_MISSING),
    "a billion leads": (philips('numberofleads="12"', 'numberofleads="1000000000"'), Reason.ABSURD_SIZE),
    "thirteen leads": (philips('numberofleads="12"', 'numberofleads="13"'), Reason.TRUNCATED),
    "a year long": (philips('durationperchannel="5200"', 'durationperchannel="31536000000"'), Reason.ABSURD_SIZE),
    "half a sample": (philips('durationperchannel="5200"', 'durationperchannel="5201"'), Reason.ABSURD_SIZE),
    "longer than coded": (philips('durationperchannel="5200"', 'durationperchannel="6000"'), Reason.TRUNCATED),
    "shorter than coded": (philips('durationperchannel="5200"', 'durationperchannel="5198"'), Reason.TRAILING_BYTES),
    "10 minutes of nothing": (philips('durationperchannel="5200"', 'durationperchannel="600000"'), Reason.TRUNCATED),
    "block of 4 GB": (xli(lambda d: struct.pack_into("<I", d, 0, 0xFFFFFFFF)), Reason.TRUNCATED),
    "block of 0 bytes": (xli(lambda d: struct.pack_into("<I", d, 0, 0)), Reason.TRUNCATED),
    "mark 2": (xli(lambda d: struct.pack_into("<h", d, 4, 2)), Reason.FORMAT),
    "cut": (xli(lambda d: d.__delitem__(slice(-5, None))), Reason.TRUNCATED),
    "cut in a header": (xli(lambda d: d.extend(b"\1\0\0")), Reason.TRUNCATED),
    "code not yet defined": (xli(lambda d: d.__setitem__(slice(8, 12), b"\xf0\0\0\0")), Reason.FORMAT),
    "no data": (xli(lambda d: d.clear()), Reason.TRUNCATED),
    "100 blocks": (xli(lambda d: d.extend(b"\0\0\0\0\1\0\0\0" * 100)), Reason.TRAILING_BYTES),
}


@pytest.mark.parametrize("fault", PHILIPS_FAULTS)
def test_philips_faults(tmp_path: Path, fault: str) -> None:
    change, reason = PHILIPS_FAULTS[fault]
    assert refused(tmp_path, "Philips XML", change(GOOD["Philips XML"])) is reason


def test_an_lzw_block_that_grows_without_end_stops_at_its_length(tmp_path: Path) -> None:
    """767 codes of ever longer runs, then the longest one again and again: 12 kB for 7 MB."""
    codes = [0, *range(256, 1023), *[1022] * 9000, 1023]
    bits = "".join(f"{code:010b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    coded = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    block = struct.pack("<Ihh", len(coded), 1, 0) + coded
    data = xli(lambda d: d.__setitem__(slice(None), block * 12))(GOOD["Philips XML"])
    assert refused(tmp_path, "Philips XML", data) is Reason.TRAILING_BYTES
