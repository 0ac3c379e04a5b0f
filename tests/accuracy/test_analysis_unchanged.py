"""What `analyse` says of the bundled recordings is what it said when `VERSION` was set: every peak, wave and flag.

`tests/data/analysis/<VERSION>.npz` holds 325 real recordings (LUDB, PTB-XL) of 3,960 beats. Positions and flags must be
equal; features are float32 and may differ in the last bits on another processor. A change that is meant comes with a
new `VERSION`, so that nothing is added to corpora of the old one, and with a new file, which this module writes:

    python tests/accuracy/test_analysis_unchanged.py
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from beatray.dsp.analyse import VERSION, Analysis, analyse
from beatray.dsp.delineate import FIELDS
from beatray.ingest.canonical import to_windows
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree
from beatray.record import Window

EXPECTED = Path(__file__).parents[1] / "data" / "analysis" / f"{VERSION}.npz"


def sample_windows() -> list[Window]:
    """The rows of the bundled recordings."""
    found: list[Window] = []
    for source in ("ludb", "ptbxl"):
        tree = open_tree(str(files("beatray") / "sample" / f"{source}-sample.zip"))
        for item in SOURCES[source].find(tree):
            for record in SOURCES[source].read(tree, item):
                found += to_windows(record)
    return found


def analysis_of(windows: list[Window]) -> Analysis:
    """What is tested."""
    signals = np.stack([w.signal_uv for w in windows])
    return analyse(signals, [w.n_samples for w in windows], [w.lead_mask for w in windows])


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    return sample_windows()


@pytest.fixture(scope="module")
def measured(windows: list[Window]) -> Analysis:
    return analysis_of(windows)


def test_the_rows_themselves(windows: list[Window]) -> None:
    with np.load(EXPECTED) as expected:
        assert [w.record_id for w in windows] == expected["ids"].tolist()
        assert b"".join(w.content_hash for w in windows) == expected["content"].tobytes()
        assert [w.flags for w in windows] == expected["window_flags"].tolist()


def test_every_peak_wave_and_flag(measured: Analysis) -> None:
    with np.load(EXPECTED) as expected:
        assert [len(r) for r in measured.r_peaks] == expected["beats"].tolist()
        waves = np.concatenate(measured.waves)
        np.testing.assert_array_equal(np.stack([waves[name] for name in FIELDS], axis=1), expected["waves"])
        np.testing.assert_array_equal(np.concatenate(measured.r_peaks), waves["r_peak"])
        np.testing.assert_array_equal(measured.flags, expected["flags"])
        np.testing.assert_array_equal(measured.lead_mask, expected["lead_mask"])


def test_every_feature(measured: Analysis) -> None:
    with np.load(EXPECTED) as expected:
        np.testing.assert_allclose(measured.record_features, expected["record_features"], rtol=1e-5, atol=1e-6)
        beats = np.concatenate(measured.beat_features)
        np.testing.assert_allclose(beats, expected["beat_features"], rtol=1e-5, atol=1e-6)


def write() -> None:
    """Writes the file of this `VERSION` anew."""
    windows = sample_windows()
    measured = analysis_of(windows)
    waves = np.concatenate(measured.waves)
    np.savez_compressed(
        EXPECTED,
        ids=np.array([w.record_id for w in windows]),
        content=np.frombuffer(b"".join(w.content_hash for w in windows), np.uint8).reshape(len(windows), -1),
        window_flags=np.array([w.flags for w in windows]),
        beats=np.array([len(r) for r in measured.r_peaks]),
        waves=np.stack([waves[name] for name in FIELDS], axis=1),
        flags=measured.flags,
        lead_mask=measured.lead_mask,
        record_features=measured.record_features,
        beat_features=np.concatenate(measured.beat_features),
    )


if __name__ == "__main__":
    write()
