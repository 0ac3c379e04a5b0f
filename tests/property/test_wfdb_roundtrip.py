"""Whatever counts a file may hold come back as they were written, and windows neither lose nor move a sample."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from beatray.ingest.canonical import quantise, rate_ratio, scale_samples, to_windows
from beatray.ingest.formats.wfdb_annotation import SYMBOLS, parse_annotations
from beatray.ingest.formats.wfdb_record import read_counts
from beatray.ingest.tree import open_tree
from beatray.record import Record, Wave
from wfdb_files import header_text, mat4, pack

BITS = {16: 16, 24: 24, 80: 8, 212: 12, 32: 32, 61: 16, 160: 16, 310: 10, 311: 10}


def counts_of(fmt: int, most_rows: int = 40) -> st.SearchStrategy[np.ndarray]:
    """(n, k) counts over the whole range of a format, its marker for invalid samples included."""
    half = 1 << (BITS[fmt] - 1)
    shape = st.tuples(st.integers(1, most_rows), st.integers(1, 5))
    return shape.flatmap(lambda size: arrays(np.int64, size, elements=st.integers(-half, half - 1)))


def read_back(adc: np.ndarray, data: bytes, storage: str, file_name: str) -> np.ndarray:
    leads = tuple(f"s{column}" for column in range(adc.shape[1]))
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / file_name).write_bytes(data)
        text = header_text("r", adc, storage=storage, leads=leads, file_name=file_name)
        (Path(scratch) / "r.hea").write_text(text)
        signals = read_counts(open_tree(scratch), "r.hea")[1]
    marker = -(1 << (BITS[int(storage.partition("+")[0])] - 1))
    invalid = np.zeros(adc.shape, bool) if signals.invalid is None else signals.invalid
    np.testing.assert_array_equal(invalid, adc == marker)
    return np.asarray(signals.adc)


@pytest.mark.parametrize("fmt", [16, 24, 80, 212])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_own_formats(fmt: int, data: st.DataObject) -> None:
    adc = data.draw(counts_of(fmt))
    np.testing.assert_array_equal(read_back(adc, pack(adc, fmt), str(fmt), "r.dat"), adc)


@pytest.mark.parametrize("fmt", [32, 61, 160, 310, 311])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_formats_of_the_fallback(fmt: int, data: st.DataObject) -> None:
    adc = data.draw(counts_of(fmt))
    np.testing.assert_array_equal(read_back(adc, pack(adc, fmt), str(fmt), "r.dat"), adc)


@given(adc=counts_of(16))
@settings(max_examples=30, deadline=None)
def test_matlab_matrices(adc: np.ndarray) -> None:
    np.testing.assert_array_equal(read_back(adc, mat4(adc), "16+24", "r.mat"), adc)


marks = st.lists(
    st.tuples(
        st.integers(0, 5_000_000),
        st.sampled_from([code for code in range(1, 42) if SYMBOLS[code] and code != 22]),
        st.integers(-128, 127),
        st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=9),
    ),
    max_size=30,
)


@given(events=marks)
@settings(max_examples=100, deadline=None)
def test_annotations(events: list[tuple[int, int, int, str]]) -> None:
    events.sort(key=lambda event: event[0])
    data, before = b"", 0
    for sample, code, number, text in events:
        step = sample - before
        if step > 1023:
            data += (59 << 10).to_bytes(2, "little")
            data += (step >> 16).to_bytes(2, "little") + (step & 0xFFFF).to_bytes(2, "little")
            step = 0
        data += (code << 10 | step).to_bytes(2, "little") + (60 << 10 | (number & 0xFF)).to_bytes(2, "little")
        if text:
            raw = text.encode("latin-1")
            data += (63 << 10 | len(raw)).to_bytes(2, "little") + raw + b"\0" * (len(raw) % 2)
        before = sample
    parsed = parse_annotations(data + b"\0\0")
    assert parsed.samples.tolist() == [event[0] for event in events]
    assert list(parsed.symbols) == [SYMBOLS[event[1]] for event in events]
    assert list(parsed.numbers) == [event[2] for event in events]
    assert list(parsed.texts) == [event[3] for event in events]


@given(
    samples=st.lists(st.integers(0, 10**9), max_size=20),
    rate_hz=st.sampled_from([50.0, 100.0, 128.0, 250.0, 257.0, 360.0, 400.0, 500.0, 999.56, 1000.0, 2048.0, 10_000.0]),
)
def test_scaled_positions_are_the_nearest(samples: list[int], rate_hz: float) -> None:
    ratio = rate_ratio(rate_hz)
    scaled = scale_samples(np.array(samples, np.int64), ratio).tolist()
    assert scaled == [round(sample * ratio) for sample in samples]
    assert all(abs(at - sample * ratio) <= Fraction(1, 2) for at, sample in zip(scaled, samples, strict=True))


@given(values=arrays(np.float64, 50, elements=st.floats(-32.7, 32.7)))
def test_rounding_is_never_more_than_half_a_microvolt(values: np.ndarray) -> None:
    uv, beyond = quantise(values)
    assert beyond is None
    assert float(np.abs(uv - values * 1000.0).max()) <= 0.5


@given(n_samples=st.integers(2500, 26_000), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_windows_tile_the_recording(n_samples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal_uv = rng.integers(-3000, 3000, (12, n_samples))
    peaks = np.sort(rng.choice(n_samples, 12, replace=False)).tolist()
    waves = tuple(Wave(lead, "QRS", max(peak - 20, 0), peak, None) for lead, peak in enumerate(peaks))
    windows = to_windows(Record("t/r", "t", signal_uv / 1000.0, 500.0, waves=waves))
    kept = sum(window.n_samples for window in windows)
    assert n_samples - kept < 2500
    joined = np.concatenate([window.signal_uv[:, : window.n_samples] for window in windows], axis=1)
    np.testing.assert_array_equal(joined, signal_uv[:, :kept])
    found = [5000 * number + int(peak) for number, window in enumerate(windows) for peak in window.waves["peak"]]
    assert found == [peak for peak in peaks if peak < kept]
