"""Damaged and malicious WFDB files: every fault is refused with its reason, nothing else ever comes out.

The named faults are those that common readers let through in silence, where they change voltages or exhaust memory.
The seeded mutations look for what nobody thought of; `BEATRAY_CHAOS=1` runs five times as many.
"""

from __future__ import annotations

import os
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beatray.ingest.canonical import to_windows
from beatray.ingest.formats.wfdb_annotation import parse_annotations, waves_of_lead
from beatray.ingest.formats.wfdb_record import read_counts, read_twelve_leads
from beatray.ingest.sources import cinc, ludb, ptbxl
from beatray.ingest.sources.item import Item
from beatray.ingest.tree import open_tree
from beatray.record import Reason, RecordError, Window
from watched import mutate_bytes, mutate_text, outcome, tripwire
from wfdb_files import ecg_counts, header_text, mat4, pack, write_record

MUTATIONS = 10_000 if os.environ.get("BEATRAY_CHAOS") else 1_000
ADC = ecg_counts(2600)


def windows_of(folder: Path, name: str = "r") -> list[Window]:
    tree = open_tree(str(folder))
    return [w for record in cinc.read(tree, Item(name, f"{name}.hea")) for w in to_windows(record)]


def reason_of(folder: Path) -> Reason:
    with pytest.raises(RecordError) as caught, tripwire(folder):
        windows_of(folder)
    assert caught.value.detail
    return caught.value.reason


def edit(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "r.hea"
    path.write_text(change(path.read_text()))


def field(line: int, position: int, value: str) -> Callable[[str], str]:
    """Replace one field of one header line."""

    def change(text: str) -> str:
        rows = text.splitlines()
        cells = rows[line].split()
        cells[position] = value
        rows[line] = " ".join(cells)
        return "\n".join(rows)

    return change


@pytest.fixture
def record(tmp_path: Path) -> Path:
    write_record(tmp_path, "r", ADC)
    assert len(windows_of(tmp_path)) == 1
    return tmp_path


HEADER_FAULTS: dict[str, tuple[Callable[[str], str], Reason]] = {
    "empty": (lambda text: "", Reason.HEADER),
    "only comments": (lambda text: "#Age: 5\n", Reason.HEADER),
    "binary": (lambda text: "\0" * 100, Reason.HEADER),
    "other record's name": (field(0, 0, "s"), Reason.HEADER),
    "no rate": (lambda text: text.replace("r 12 500 2600", "r 12"), Reason.HEADER),
    "no length": (field(0, 3, "0"), Reason.HEADER),
    "negative length": (field(0, 3, "-5"), Reason.HEADER),
    "length one short": (field(0, 3, "2599"), Reason.TRAILING_BYTES),
    "length one long": (field(0, 3, "2601"), Reason.TRUNCATED),
    "length 1e12": (field(0, 3, "1000000000000"), Reason.ABSURD_SIZE),
    "length 2e9": (field(0, 3, "2000000000"), Reason.ABSURD_SIZE),
    "length of 10,000 digits": (field(0, 3, "9" * 10_000), Reason.HEADER),
    "length in another script": (field(0, 3, "\u0662\u0666\u0660\u0660"), Reason.HEADER),
    "no signals": (field(0, 1, "0"), Reason.HEADER),
    "too few signals announced": (field(0, 1, "11"), Reason.HEADER),
    "too many signals announced": (field(0, 1, "13"), Reason.HEADER),
    "99,999,999 signals": (field(0, 1, "99999999"), Reason.ABSURD_SIZE),
    "negative signals": (field(0, 1, "-12"), Reason.HEADER),
    "rate 0": (field(0, 2, "0"), Reason.BAD_RATE),
    "rate nan": (field(0, 2, "nan"), Reason.BAD_RATE),
    "rate inf": (field(0, 2, "inf"), Reason.BAD_RATE),
    "rate 1e999": (field(0, 2, "1e999"), Reason.BAD_RATE),
    "rate negative": (field(0, 2, "-500"), Reason.BAD_RATE),
    "rate 1e9": (field(0, 2, "1e9"), Reason.BAD_RATE),
    "gain 0": (field(1, 2, "0/mV"), Reason.BAD_GAIN),
    "gain 0 with exponent": (field(1, 2, "0e5(0)/mV"), Reason.BAD_GAIN),
    "gain inf": (field(1, 2, "inf/mV"), Reason.BAD_GAIN),
    "gain nan": (field(1, 2, "nan/mV"), Reason.BAD_GAIN),
    "gain 1e999": (field(1, 2, "1e999/mV"), Reason.BAD_GAIN),
    "gain negative": (field(1, 2, "-1000/mV"), Reason.BAD_GAIN),
    "gain is a word": (field(1, 2, "mV"), Reason.BAD_GAIN),
    "gain 1e-300": (field(1, 2, "1e-300/mV"), Reason.AMPLITUDE),
    "gain of one count per mV": (lambda text: text.replace("1000/mV", "1/mV"), Reason.AMPLITUDE),
    "gain 2,000,000": (lambda text: text.replace("1000/mV", "2000000/mV"), Reason.FLAT),
    "baseline out of range": (field(1, 2, "1000(99999999999999999999)/mV"), Reason.HEADER),
    "baseline of 1e9": (field(1, 2, "1000(1000000000)/mV"), Reason.AMPLITUDE),
    "ADC zero of 4e9": (field(12, 4, "4294967296"), Reason.AMPLITUDE),
    "ADC resolution is no number": (field(3, 3, "x"), Reason.HEADER),
    "block size is no number": (field(3, 7, "V1"), Reason.HEADER),
    "units of pressure": (field(1, 2, "1000/mmHg"), Reason.BAD_UNITS),
    "units cut off": (field(1, 2, "1000/"), Reason.BAD_UNITS),
    "skew -5e9": (field(1, 1, "16:-5000000000"), Reason.ABSURD_SIZE),
    "skew 5e9": (field(1, 1, "16:5000000000"), Reason.ABSURD_SIZE),
    "samples per frame 1e9": (field(1, 1, "16x1000000000"), Reason.FORMAT),
    "samples per frame 0": (field(1, 1, "16x0"), Reason.FORMAT),
    "offset 1e15": (lambda text: text.replace("r.dat 16", "r.dat 16+1000000000000000"), Reason.ABSURD_SIZE),
    "offset negative": (field(1, 1, "16+-24"), Reason.HEADER),
    "format 17": (lambda text: text.replace("r.dat 16", "r.dat 17"), Reason.FORMAT),
    "format 0": (lambda text: text.replace("r.dat 16", "r.dat 0"), Reason.FORMAT),
    "format 212": (lambda text: text.replace("r.dat 16", "r.dat 212"), Reason.TRAILING_BYTES),
    "format 32": (lambda text: text.replace("r.dat 16", "r.dat 32"), Reason.TRUNCATED),
    "format 516": (lambda text: text.replace("r.dat 16", "r.dat 516"), Reason.FORMAT),
    "format 160": (lambda text: text.replace("r.dat 16", "r.dat 160"), Reason.CHECKSUM),
    "two formats in one file": (field(1, 1, "80"), Reason.HEADER),
    "multi-segment": (field(0, 0, "r/2"), Reason.FORMAT),
    "multi-segment naming itself": (lambda text: "r/2 12 500 2600\nr 1300\nr 1300\n", Reason.FORMAT),
    "file with ..": (lambda text: text.replace("r.dat", "../../etc/passwd"), Reason.UNSAFE_PATH),
    "file absolute": (lambda text: text.replace("r.dat", "/etc/passwd"), Reason.UNSAFE_PATH),
    "file below": (lambda text: text.replace("r.dat", "sub/r.dat"), Reason.UNSAFE_PATH),
    "file with backslash": (lambda text: text.replace("r.dat", "..\\r.dat"), Reason.UNSAFE_PATH),
    "file is standard input": (lambda text: text.replace("r.dat", "-"), Reason.UNSAFE_PATH),
    "file is a null signal": (lambda text: text.replace("r.dat", "~"), Reason.UNSAFE_PATH),
    "file is ..": (lambda text: text.replace("r.dat", ".."), Reason.UNSAFE_PATH),
    "file is an address": (lambda text: text.replace("r.dat", "http://127.0.0.1/r.dat"), Reason.UNSAFE_PATH),
    "file name of 5,000 letters": (lambda text: text.replace("r.dat", "r" * 5000), Reason.UNSAFE_PATH),
    "file not there": (lambda text: text.replace("r.dat", "q.dat"), Reason.MISSING_FILE),
    "checksum of one lead wrong": (field(5, 6, "12345"), Reason.CHECKSUM),
    "checksums of two leads swapped": (lambda text: _swap_cells(text, 6), Reason.CHECKSUM),
    "initial value wrong": (field(1, 5, "4242"), Reason.CHECKSUM),
    "one lead twice": (field(2, 8, "I"), Reason.DUPLICATE_LEADS),
    "one lead twice in another case": (field(4, 8, "AVL"), Reason.DUPLICATE_LEADS),
    "no lead names": (lambda text: re.sub(r"(?m)^(r\.dat .*) \S+$", r"\1", text), Reason.LEADS_MISSING),
    "no I": (field(1, 8, "MLII"), Reason.LEADS_MISSING),
    "300 kB of comments": (lambda text: text + "# x\n" * 80_000, Reason.ABSURD_SIZE),
}


def _swap_cells(text: str, position: int) -> str:
    rows = text.splitlines()
    first, second = rows[1].split()[position], rows[2].split()[position]
    return field(2, position, first)(field(1, position, second)(text))


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_header_faults(record: Path, fault: str) -> None:
    change, reason = HEADER_FAULTS[fault]
    edit(record, change)
    assert reason_of(record) is reason


FILE_FAULTS: dict[str, tuple[Callable[[bytes], bytes], Reason]] = {
    "empty": (lambda data: b"", Reason.TRUNCATED),
    "one byte short": (lambda data: data[:-1], Reason.TRUNCATED),
    "half": (lambda data: data[: len(data) // 2], Reason.TRUNCATED),
    "one byte long": (lambda data: data + b"\0", Reason.TRAILING_BYTES),
    "one frame long": (lambda data: data + data[:24], Reason.TRAILING_BYTES),
    "shifted by one byte": (lambda data: b"\0" + data[:-1], Reason.CHECKSUM),
    "zeros": (lambda data: bytes(len(data)), Reason.CHECKSUM),
    "reversed in time": (lambda data: np.frombuffer(data, "<i2").reshape(-1, 12)[::-1].tobytes(), Reason.CHECKSUM),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_signal_file_faults(record: Path, fault: str) -> None:
    change, reason = FILE_FAULTS[fault]
    path = record / "r.dat"
    path.write_bytes(change(path.read_bytes()))
    assert reason_of(record) is reason


def test_a_link_instead_of_the_signal_file(record: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "r.dat"
    (record / "r.dat").rename(elsewhere)
    (record / "r.dat").symlink_to(elsewhere)
    assert reason_of(record) is Reason.UNSAFE_PATH


def test_every_single_flipped_bit_in_the_signal_is_found(record: Path) -> None:
    path = record / "r.dat"
    good = path.read_bytes()
    bits = np.random.default_rng(7).choice(8 * len(good), 300, replace=False)
    for bit in bits.tolist():
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(RecordError) as caught:
            windows_of(record)
        assert caught.value.reason is Reason.CHECKSUM


@pytest.mark.parametrize("fault", ["length 1e12", "length 2e9", "samples per frame 1e9", "99,999,999 signals"])
def test_absurd_counts_take_no_memory(record: Path, fault: str) -> None:
    edit(record, HEADER_FAULTS[fault][0])
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            windows_of(record)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_flac_file_that_stands_for_gigabytes(tmp_path: Path) -> None:
    """Forty bytes of stream information that announce two hours of eight channels."""
    n_samples = 8_000_000
    packed = (500 << 44) | (7 << 41) | (15 << 36) | n_samples
    data = b"fLaC" + b"\x80\0\0\x22" + bytes(10) + packed.to_bytes(8, "big") + bytes(16)
    (tmp_path / "r.dat").write_bytes(data)
    text = header_text("r", ADC[:, [0, 1, 6, 7, 8, 9, 10, 11]], storage="516", n_samples=n_samples, leads=("I",) * 8)
    (tmp_path / "r.hea").write_text(text)
    with pytest.raises(RecordError) as caught, tripwire(tmp_path):
        read_counts(open_tree(str(tmp_path)), "r.hea")
    assert caught.value.reason is Reason.ABSURD_SIZE


def test_mutated_headers_are_read_or_refused(record: Path) -> None:
    text = (record / "r.hea").read_text()
    outcomes: Counter[str] = Counter()
    for number in range(MUTATIONS):
        bad = mutate_text(text, np.random.default_rng([1, number]))
        (record / "r.hea").write_text(bad, encoding="utf-8", errors="surrogateescape", newline="")
        if number == 0:
            outcome(lambda: windows_of(record))  # late imports happen outside the tripwire
        with tripwire(record):
            outcomes[outcome(lambda: windows_of(record))] += 1
    assert len(outcomes) >= 8
    assert outcomes["read"] < MUTATIONS / 2


@pytest.mark.parametrize("fmt", [16, 24, 80, 212, 8, 310])
def test_mutated_signal_files_are_refused(tmp_path: Path, fmt: int) -> None:
    """Whatever happens to the samples, the length, the checksums or the initial values show it.

    But for two gaps of the standard: bytes that only fill up a packed format's last group, and the highest byte of
    24-bit samples, since checksums have 16 bits.
    """
    adc = ADC // 16
    data = pack(adc, fmt)
    (tmp_path / "r.hea").write_text(header_text("r", adc, storage=str(fmt)))
    (tmp_path / "r.dat").write_bytes(data)
    assert outcome(lambda: windows_of(tmp_path)) == "read"
    for number in range(MUTATIONS // 20):
        bad = mutate_bytes(data, np.random.default_rng([2, fmt, number]))
        (tmp_path / "r.dat").write_bytes(bad)
        with tripwire(tmp_path):
            found = outcome(lambda: windows_of(tmp_path))
        if found == "read":
            changed = [at for at in range(len(data)) if bad[at : at + 1] != data[at : at + 1]]
            uncovered = {24: lambda at: at % 3 == 2, 310: lambda at: at >= len(data) - 4}.get(fmt, lambda at: False)
            assert len(bad) == len(data)
            assert all(uncovered(at) for at in changed)


def test_mutated_matlab_files_are_refused(tmp_path: Path) -> None:
    data = mat4(ADC)
    (tmp_path / "r.hea").write_text(header_text("r", ADC, storage="16+24", file_name="r.mat"))
    for number in range(MUTATIONS // 4):
        rng = np.random.default_rng([3, number])
        bad = mutate_bytes(data[:24], rng) + data[24:] if number % 2 else mutate_bytes(data, rng)
        (tmp_path / "r.mat").write_bytes(bad)
        with tripwire(tmp_path):
            found = outcome(lambda: windows_of(tmp_path))
        assert (found != "read") or (bad[:20], bad[23:]) == (data[:20], data[23:])  # the name may be any


def test_mutated_flac_files_are_refused_or_equal(tmp_path: Path, data_dir: Path) -> None:
    source = data_dir / "misc" / "wfdb_formats"
    files = {name: (source / name).read_bytes() for name in ("flacformats.d0", "flacformats.d1", "flacformats.d2")}
    (tmp_path / "flacformats.hea").write_bytes((source / "flacformats.hea").read_bytes())
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    tree = open_tree(str(tmp_path))
    good = read_counts(tree, "flacformats.hea")[1].adc
    refused = 0
    for number in range(MUTATIONS // 10):
        rng = np.random.default_rng([4, number])
        name = f"flacformats.d{int(rng.integers(3))}"
        (tmp_path / name).write_bytes(mutate_bytes(files[name], rng))
        try:
            with tripwire(tmp_path):
                np.testing.assert_array_equal(read_counts(tree, "flacformats.hea")[1].adc, good)
        except RecordError:
            refused += 1
        (tmp_path / name).write_bytes(files[name])
    assert refused > MUTATIONS // 20


def test_mutated_annotations_are_parsed_or_refused() -> None:
    rng = np.random.default_rng(5)
    codes = rng.choice([1, 24, 27, 39, 40], 120)
    data = b"".join(int(code << 10 | 20).to_bytes(2, "little") for code in codes)
    data += bytes.fromhex("00ec 0000 ff01 0504 03fc 41464c00 0000")  # a long step, a mark, its text, the end
    assert parse_annotations(data).texts[-1] == "AFL"
    outcomes: Counter[str] = Counter()
    for number in range(MUTATIONS):
        bad = mutate_bytes(data, np.random.default_rng([6, number]))
        try:
            parsed = parse_annotations(bad)
            assert len(parsed.samples) == len(parsed.symbols) <= len(bad) // 2
            waves = waves_of_lead(parsed, 0, 5000)
            assert all(wave.peak is not None and 0 <= wave.peak < 5000 for wave in waves)
            outcomes["read"] += 1
        except RecordError as error:
            assert error.reason is Reason.ANNOTATION
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > MUTATIONS // 100


@pytest.mark.parametrize("source", [ptbxl, ludb])
def test_mutated_tables_are_listed_or_refused(tmp_path: Path, source: object) -> None:
    rows = {
        ptbxl: "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
        + "\n".join(f"{n},{n}.0,5{n},1,\"{{'SR': 0.0}}\",{n},l/{n},h/{n}" for n in range(1, 9)),
        ludb: "ID,Sex,Age,Rhythms,Other states\n" + "\n".join(f'{n},"F\n","{n}\n",Sinus,"a\nb"' for n in range(1, 9)),
    }
    table = rows[source]  # type: ignore[index]
    path = tmp_path / source.INDEX  # type: ignore[attr-defined]
    for number in range(MUTATIONS // 4):
        bad = mutate_text(table, np.random.default_rng([7, number]))
        path.write_text(bad, encoding="utf-8", errors="surrogateescape", newline="")
        tree = open_tree(str(tmp_path))
        "".encode("utf-8-sig")  # the first use of an encoding opens its module
        try:
            with tripwire(tmp_path):
                items = source.find(tree)  # type: ignore[attr-defined]
        except RecordError:
            continue
        for item in items:
            with pytest.raises(RecordError):  # there are no signal files
                list(source.read(tree, item))  # type: ignore[attr-defined]


def test_the_tripwire_trips(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), tripwire(tmp_path):
        Path(__file__).read_bytes()


def test_reading_opens_only_the_record(record: Path) -> None:
    with tripwire(record):
        read_twelve_leads(open_tree(str(record)), "r.hea")
