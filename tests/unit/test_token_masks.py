"""Blocks of masked tokens: exact numbers, no short runs, every token within reach, and the rule written plainly."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from beatray.augment.draws import Draws
from beatray.augment.token_masks import block_mask, rounds

KEYS = np.arange(1000)


def drawn(tokens: int, valid: int, quota: int, shortest: int, longest: int | None = None, epoch: int = 0) -> np.ndarray:
    rows = np.full(len(KEYS), valid), np.full(len(KEYS), quota)
    return block_mask(Draws(KEYS, 3, epoch), "blocks", tokens, *rows, shortest, longest)


def runs(row: np.ndarray) -> list[int]:
    """Lengths of the runs of masked tokens."""
    return [len(list(members)) for masked, members in groupby(row.tolist()) if masked]


def slow_mask(
    numbers: np.ndarray, tokens: int, valid: int, quota: int, shortest: int, longest: int | None
) -> list[int]:
    """The rule for one recording, interval by interval; `numbers` (rounds, 3) in [0, 1)."""
    free, masked = [(0, valid)], []
    for which, length_drawn, place_drawn in numbers:
        if len(masked) == quota:
            break
        nth = int(which * (valid - len(masked)))
        for begin, end in free:
            if nth < end - begin:
                break
            nth -= end - begin
        free.remove((begin, end))
        left = quota - len(masked)
        if left >= shortest:
            most = left if longest is None else min(left, longest)
            length = min(shortest + int(length_drawn * (most - shortest + 1)), end - begin)
            start = begin + int(place_drawn * (end - begin - length + 1))
        else:
            length = min(left, end - begin)
            start = begin + int(place_drawn * (end - begin - length + 1))
            at_begin, at_end = begin > 0, end < valid
            if at_begin and (not at_end or place_drawn < 0.5):
                start = begin
            elif at_end:
                start = end - length
        masked += range(start, start + length)
        free = sorted(piece for piece in [*free, (begin, start), (start + length, end)] if piece[0] < piece[1])
    return sorted(masked)


CASES = [
    (200, 200, 160, 10, None),
    (100, 100, 85, 10, None),
    (100, 37, 31, 10, None),
    (100, 12, 7, 10, None),  # all that is to be masked is shorter than a block
    (312, 312, 156, 10, 16),
    (312, 100, 50, 20, 31),
    (40, 1, 0, 10, None),
    (40, 2, 1, 10, 12),
    (30, 30, 29, 3, 5),
]


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_rule_written_plainly(case: tuple[int, int, int, int, int | None]) -> None:
    tokens, valid, quota, shortest, longest = case
    found = drawn(*case)
    numbers = Draws(KEYS, 3, 0).uniform("blocks", 3 * rounds(quota, shortest)).reshape(len(KEYS), -1, 3)
    for row in range(60):
        assert found[row].nonzero()[0].tolist() == slow_mask(numbers[row], tokens, valid, quota, shortest, longest)


@pytest.mark.parametrize("case", CASES)
def test_the_number_is_exact_and_no_run_is_short(case: tuple[int, int, int, int, int | None]) -> None:
    _, valid, quota, shortest, _ = case
    found = drawn(*case)
    assert (found.sum(1) == quota).all() and not found[:, valid:].any()
    assert min((length for row in found for length in runs(row)), default=quota) >= min(shortest, quota)


@pytest.mark.parametrize("case", [case for case in CASES if case[2]])
def test_every_token_is_masked_in_some_epoch(case: tuple[int, int, int, int, int | None]) -> None:
    _, valid, quota, shortest, _ = case
    found = drawn(*case)[:200, :valid]
    assert found.any(0).all()  # the first and the last token, too
    if valid - quota >= shortest:  # with fewer left, those near the ends could only be kept beside a run that is short
        assert not found.all(0).any()


def test_rows_depend_on_themselves_alone() -> None:
    valid = np.array([200, 40, 7, 1, 120])
    quota = np.array([170, 33, 5, 0, 60])
    together = block_mask(Draws(KEYS[:5], 3, 1), "blocks", 200, valid, quota, 10)
    for row in range(5):
        one = slice(row, row + 1)
        alone = block_mask(Draws(KEYS[one], 3, 1), "blocks", 200, valid[one], quota[one], 10)
        np.testing.assert_array_equal(alone[0], together[row])
    assert block_mask(Draws(KEYS[:0], 3, 1), "blocks", 200, valid[:0], quota[:0], 10).shape == (0, 200)


def test_blocks_are_no_longer_than_asked_and_as_long_as_is_left() -> None:
    alone = drawn(1000, 1000, 16, 10, 16)  # mostly one block, or one and a remainder that is laid against it
    assert {length for row in alone for length in runs(row)} == {16}
    single = drawn(200, 200, 160, 10)
    assert any(runs(row) == [160] for row in single)  # a first block that takes all
    assert np.mean([len(runs(row)) for row in drawn(625, 625, 312, 20, 31)]) > 2.0


def test_an_interval_is_taken_in_proportion_to_its_length() -> None:
    """One block of 10 leaves two intervals; where the second block of 10 comes to lie shows which was taken."""
    numbers = Draws(KEYS, 3, 0).uniform("blocks", 3 * rounds(20, 10)).reshape(len(KEYS), -1, 3)
    found = drawn(110, 110, 20, 10, 10)
    first = (numbers[:, 0, 2] * 101).astype(int)
    before = np.array([row.nonzero()[0].min() < start for row, start in zip(found, first, strict=True)])
    inner = (first >= 10) & (first <= 90)  # both intervals have room
    assert before[inner].mean() == pytest.approx((first[inner] / 100).mean(), abs=0.04)
    assert before[inner & (first < 30)].mean() < 0.3 and before[inner & (first > 70)].mean() > 0.7
