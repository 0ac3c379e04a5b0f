"""Our rate and intervals beside the devices' own, on the seven real files that hold any.

Few samples of five programs: the bounds catch a wrong rate, scale or lead order and a gross fault of the delineation;
they are no statement about accuracy. The figures are printed by benchmarks/bench_device_measurements.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from device_measurements import Pair, bland_altman, pairs_of

BOUNDS = {
    "rate_bpm": (3.0, 1.5),
    "pr_ms": (20.0, 15.0),
    "qrs_ms": (35.0, 15.0),
    "qt_ms": (25.0, 15.0),
    "qrs_axis_deg": (15.0, 6.0),
    "t_axis_deg": (6.0, 3.0),
}
"""Largest difference of one recording, and of the mean over all."""


@pytest.fixture(scope="module")
def pairs(data_dir: Path) -> dict[str, list[Pair]]:
    return pairs_of(data_dir)


@pytest.mark.parametrize("name", BOUNDS)
def test_measurements_agree(pairs: dict[str, list[Pair]], name: str) -> None:
    largest, mean = BOUNDS[name]
    found = pairs[name]
    assert len(found) == 6
    for pair in found:
        assert abs(pair.difference) <= largest, pair
    assert abs(bland_altman(found)[0]) <= mean


def test_bland_altman_by_hand() -> None:
    found = [Pair("a", 10.0, 11.0), Pair("b", 10.0, 13.0)]  # differences 1 and 3: mean 2, SD sqrt 2
    bias, low, high = bland_altman(found)
    assert bias == 2.0
    assert abs(high - (2.0 + 1.96 * 2**0.5)) < 1e-12 and abs(low + high - 4.0) < 1e-12
