"""A sampling rate that was forgotten is noticed on real recordings, and a right one is left alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample_poly

from beatray.commands.demo import SAMPLE
from beatray.infer.transform import windows_of
from beatray.ingest.rate_check import rate_doubt
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree
from beatray.record import Window


@pytest.fixture(scope="module")
def ecgs() -> dict[str, list[NDArray[np.float64]]]:
    """40 real recordings of each bundled source, mV at 500 Hz."""
    found = {}
    for name in ("ludb", "ptbxl"):
        tree = open_tree(str(SAMPLE / f"{name}-sample.zip"))
        items = SOURCES[name].find(tree)[:40]
        found[name] = [record.signal_mv for item in items for record in SOURCES[name].read(tree, item)]
    return found


def read_as(x_mv: NDArray[np.float64], sampled_hz: int, said_hz: float) -> Window:
    """The first window of a recording that is sampled at one rate and read as of another."""
    ratio = Fraction(sampled_hz, 500)
    samples = resample_poly(x_mv, ratio.numerator, ratio.denominator, axis=-1)
    while samples.shape[-1] < 5 * said_hz:
        samples = np.concatenate([samples, samples], axis=-1)
    return windows_of(samples, said_hz, "a recording")[0]


@pytest.mark.parametrize("source", ["ludb", "ptbxl"])
@pytest.mark.parametrize(
    ("sampled", "stated"), [(250, 500.0), (1000, 500.0), (100, 500.0), (500, 1000.0), (500, 250.0)]
)
def test_a_wrong_rate_is_noticed_and_the_likely_one_said(
    ecgs: dict[str, list[NDArray[np.float64]]], source: str, sampled: int, stated: float
) -> None:
    windows = [read_as(x_mv, sampled, stated) for x_mv in ecgs[source]]
    doubt = rate_doubt(windows, stated)
    assert f"at rate_hz={stated:g} the hearts beat" in doubt
    likely = float(doubt.split("About ")[1].split(" Hz")[0])
    assert likely == pytest.approx(sampled, rel=0.3)
    alone = np.mean([bool(rate_doubt([window], stated)) for window in windows])
    assert alone > 0.8


@pytest.mark.parametrize("source", ["ludb", "ptbxl"])
@pytest.mark.parametrize("rate", [500, 250, 360, 1000])
def test_a_right_rate_is_left_alone(ecgs: dict[str, list[NDArray[np.float64]]], source: str, rate: int) -> None:
    windows = [read_as(x_mv, rate, float(rate)) for x_mv in ecgs[source]]
    assert rate_doubt(windows, float(rate)) == ""
    assert np.mean([bool(rate_doubt([window], float(rate))) for window in windows]) <= 0.05


def test_nothing_is_reported_of_what_cannot_be_measured(ecgs: dict[str, list[NDArray[np.float64]]]) -> None:
    window = read_as(ecgs["ludb"][0], 500, 500.0)
    flat = Window(**{**{name: getattr(window, name) for name in window.__slots__}, "signal_uv": 0 * window.signal_uv})
    assert rate_doubt([], 500.0) == rate_doubt([flat], 500.0) == ""
