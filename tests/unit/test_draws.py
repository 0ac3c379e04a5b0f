"""Counter-based draws: uniform, independent of the batch, and the same for ever."""

from __future__ import annotations

import numpy as np
from scipy import stats

from beatray.augment.draws import Draws, Stream, record_key, stream_of, uniform, view_stream

GOLDEN_KEY = 2999830153086922218
GOLDEN_DRAWS = [[0.7069719095555607, 0.7648694488411246], [0.6043170081116749, 0.9420970820623533]]
KEYS = np.array([record_key(f"ptbxl/{i:05d}_hr") for i in range(400)])


def test_golden_values_do_not_move() -> None:
    assert record_key("ptbxl/00001_hr") == GOLDEN_KEY
    draws = uniform(np.array([GOLDEN_KEY, 0]), seed=1, epoch=2, stream=view_stream(Stream.ANGLE, 2), n=2)
    np.testing.assert_array_equal(draws, GOLDEN_DRAWS)


def splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_chain_is_splitmix64_of_each_word() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output of the published generator seeded with 0
    state = 0
    for value in (11, 3, 2**63 + 5, 9, 1):  # seed, epoch, key, stream, counter
        state = splitmix64(state ^ value)
    key = np.array([5 - 2**63])  # the same 64 bits, signed
    assert uniform(key, 11, 3, 9, 2)[0, 1] == (state >> 11) / 2**53


def test_draws_do_not_depend_on_the_batch() -> None:
    whole = uniform(KEYS, 3, 4, Stream.CROP, 6)
    np.testing.assert_array_equal(uniform(KEYS[[17, 5]], 3, 4, Stream.CROP, 6), whole[[17, 5]])
    np.testing.assert_array_equal(uniform(KEYS[:9], 3, 4, Stream.CROP, 2), whole[:9, :2])


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform(KEYS, 0, 0, Stream.MASK, 100)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001
    counts, _ = np.histogram(draws.ravel(), bins=64, range=(0.0, 1.0))
    assert stats.chisquare(counts).pvalue > 0.001
    for other in (
        uniform(KEYS, 1, 0, Stream.MASK, 100),
        uniform(KEYS, 0, 1, Stream.MASK, 100),
        uniform(KEYS + 1, 0, 0, Stream.MASK, 100),
        uniform(KEYS, 0, 0, view_stream(Stream.MASK, 1), 100),
        np.roll(draws, 1, axis=1),
        np.roll(draws, 1, axis=0),
    ):
        # 40,000 independent pairs: |r| beyond 0.02 has probability 6e-5
        assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.02


def test_every_number_of_the_key_matters() -> None:
    seen = {
        float(uniform(np.array([key]), seed, epoch, stream, 1)[0, 0])
        for key in (-1, 0, 1)
        for seed in (0, 1, 2**40)
        for epoch in (0, 1)
        for stream in (1, 2)
    }
    assert len(seen) == 36


def test_purposes_are_streams_by_name_and_those_numbered_by_hand_keep_their_numbers() -> None:
    draws = Draws(KEYS[:5], 3, 4)
    np.testing.assert_array_equal(draws.uniform("mask", 7, 2), uniform(KEYS[:5], 3, 4, view_stream(Stream.MASK, 2), 7))
    names = ["patches", "negatives", "keep_ratio", "masks", *(name.lower() for name in Stream.__members__)]
    moved = {view_stream(stream_of(name), view) for name in names for view in range(5)}
    assert len(moved) == 5 * len(names)
    assert all(stream_of(name) >= 1 << 62 for name in names[:4])  # far above every number and view


def test_what_a_batch_shares_depends_on_seed_and_epoch_alone() -> None:
    first, other = Draws(KEYS[:3], 1, 2), Draws(KEYS[3:9], 1, 2)
    np.testing.assert_array_equal(first.shared("overlap", 4), other.shared("overlap", 4))
    assert not np.array_equal(first.shared("overlap", 4), Draws(KEYS[:3], 1, 3).shared("overlap", 4))
