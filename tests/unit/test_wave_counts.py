"""Waves of masks: by hand, against an optimal assignment, and on the real marks of LUDB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from beatray.evaluate.intervals import patient_weights, row_patients, wave_intervals
from beatray.evaluate.labels import closed_waves, lead_masks, wave_mask, wave_masks
from beatray.evaluate.metrics import IGNORE
from beatray.evaluate.waves import joined, runs_of, wave_counts, wave_scores, weighted_wave_scores
from beatray.record import LEADS
from evaluation_rows import read_rows

SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"


def mask(*waves: tuple[int, int, int], region: tuple[int, int] = (500, 4500)) -> np.ndarray:
    """A truth mask with waves (class, first, last) in a scored region."""
    made = np.full(5000, IGNORE, np.int8)
    made[slice(*region)] = 0
    for kind, first, last in waves:
        made[first : last + 1] = kind
    return made


def prediction(*waves: tuple[int, int, int]) -> np.ndarray:
    return mask(*waves, region=(0, 5000))


def counted(truth: np.ndarray, predicted: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    counts = wave_counts(truth[None], predicted[None])
    return counts.hits[0].tolist(), counts.missed[0].tolist(), counts.extra[0].tolist()


def test_runs_are_unbroken_and_long_enough() -> None:
    made = prediction((2, 0, 9), (2, 100, 108), (2, 200, 260), (1, 230, 231), (2, 4990, 4999))
    assert runs_of(made, 2).tolist() == [[0, 9], [200, 229], [232, 260], [4990, 4999]]
    assert runs_of(np.zeros(10, np.int8), 1).shape == (0, 2)


def test_hits_misses_and_inventions_of_each_kind() -> None:
    truth = mask((1, 1000, 1050), (2, 1100, 1150), (3, 1300, 1400), (2, 2000, 2050), (1, 3000, 3040))
    found = prediction((1, 1010, 1045), (2, 1100, 1150), (3, 1300, 1480), (2, 2600, 2650), (1, 3000, 3004))
    hits, missed, extra = counted(truth, found)
    assert hits == [1, 1, 0] and missed == [1, 1, 1] and extra == [0, 1, 1]  # a T wave 160 ms too long is none
    scores = wave_scores(wave_counts(truth[None], found[None]))
    assert scores["sensitivity_p"] == 0.5 and scores["ppv_p"] == 1.0
    assert scores["onset_ms_p"] == 20.0 and scores["offset_ms_p"] == -10.0 and scores["onset_ms_qrs"] == 0.0
    assert scores["sensitivity_t"] == 0.0 and np.isnan(scores["onset_ms_t"])


def test_each_wave_is_used_once_and_the_nearest_wins() -> None:
    truth = mask((2, 1000, 1040))
    found = prediction((2, 960, 1000), (2, 1010, 1049))
    counts = wave_counts(truth[None], found[None])
    assert (counts.hits[0, 1], counts.extra[0, 1]) == (1, 1)
    assert counts.onset_ms[0, 1] == 20.0 and counts.offset_ms[0, 1] == 18.0
    assert counts.onset_square[0, 1] == 400.0


def test_waves_at_the_edge_are_no_question() -> None:
    truth = mask((3, 500, 560), (2, 1000, 1050), (1, 4460, 4499))
    nothing = prediction((2, 1000, 1050))
    assert counted(truth, nothing) == ([0, 1, 0], [0, 0, 0], [0, 0, 0])
    over_the_edge = prediction((3, 470, 560), (2, 1000, 1050), (1, 4455, 4530), (2, 480, 520), (2, 10, 60))
    assert counted(truth, over_the_edge) == ([0, 1, 0], [0, 0, 0], [0, 0, 0])
    late = mask((2, 800, 850), region=(800, 4000))  # the first mark of the record, whole
    assert counted(late, prediction((2, 795, 850))) == ([0, 1, 0], [0, 0, 0], [0, 0, 0])
    assert counted(np.full(5000, IGNORE, np.int8), nothing) == ([0, 0, 0], [0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("seed", range(4))
def test_as_many_hits_as_an_optimal_assignment(seed: int) -> None:
    generator = np.random.default_rng(seed)
    starts = 600 + 260 * np.arange(14)
    waves = [(2, int(s), int(s) + int(generator.integers(30, 60))) for s in starts]
    moved = [(2, s + int(generator.integers(-90, 91)), e + int(generator.integers(-90, 91))) for _, s, e in waves]
    moved = [w for w in moved if w[2] - w[1] >= 9]
    truth, found = mask(*waves), prediction(*moved)
    a, b = runs_of(truth, 2), runs_of(found, 2)
    errors = np.abs(a[:, None] - b[None]).max(axis=2)
    rows, columns = linear_sum_assignment(-(errors <= 75).astype(int))
    expected = int((errors[rows, columns] <= 75).sum())
    hits, missed, extra = counted(truth, found)
    assert (hits[1], missed[1], extra[1]) == (expected, len(a) - expected, len(b) - expected)


@pytest.fixture(scope="module")
def marks() -> list[np.ndarray]:
    return read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 12)).waves


def test_the_masks_of_real_records_find_themselves_and_a_shift_is_seen(marks: list[np.ndarray]) -> None:
    truth = wave_masks(marks)
    found = np.where(truth == IGNORE, 0, truth).astype(np.int8)
    same = wave_scores(wave_counts(truth, found))
    moved = wave_scores(wave_counts(truth, np.roll(found, 6, axis=1)))
    for kind in ("p", "qrs", "t"):
        assert same[f"sensitivity_{kind}"] == same[f"ppv_{kind}"] == 1.0
        assert same[f"onset_ms_{kind}"] == same[f"offset_sd_ms_{kind}"] == 0.0
        assert moved[f"onset_ms_{kind}"] == pytest.approx(12.0, abs=0.5)
        assert moved[f"sensitivity_{kind}"] > 0.99


def test_every_mark_of_a_lead_is_asked_for_once(marks: list[np.ndarray]) -> None:
    """Counted again from the marks: those inside the scored region, without the ones that another kind paints over."""
    masks = lead_masks(marks)
    assert masks.shape == (len(marks), 12, 5000)
    asked = wave_counts(masks.reshape(-1, 5000), np.zeros_like(masks).reshape(-1, 5000))
    expected = np.zeros((len(marks) * 12, 3), int)
    for record, waves in enumerate(marks):
        for lead in range(len(LEADS)):
            closed = closed_waves(waves[waves["lead"] == lead])
            assert np.array_equal(masks[record, lead], wave_mask(waves[waves["lead"] == lead], min_leads=1))
            for wave in closed:
                whole = wave["onset"] > 500 and wave["offset"] < 4499
                long_enough = wave["offset"] - wave["onset"] >= 9
                expected[record * 12 + lead, wave["kind"]] += whole and long_enough
    assert asked.extra.sum() == asked.hits.sum() == 0
    assert abs(asked.missed.sum(axis=0) - expected.sum(axis=0)).max() <= 0.005 * expected.sum()
    assert expected.sum() > 3000


def test_weighted_scores_are_those_of_repeated_records_and_intervals_hold_them(marks: list[np.ndarray]) -> None:
    truth = wave_masks(marks)
    generator = np.random.default_rng(0)
    found = np.where(truth == IGNORE, 0, truth).astype(np.int8)
    for row in found:
        for first, last in runs_of(row, 3)[::3]:
            row[first : last + 1] = 0
        row[:] = np.roll(row, int(generator.integers(-8, 9)))
    counts = wave_counts(truth, found)
    weights = patient_weights([f"p{i // 2}" for i in range(12)], 3, generator)
    scores = weighted_wave_scores(counts, weights)
    for row in range(3):
        repeated = np.repeat(np.arange(12), weights[row].astype(int))
        plain = wave_scores(wave_counts(truth[repeated], found[repeated]))
        for name, values in scores.items():
            assert values[row].tolist() == pytest.approx([plain[f"{name}_{k}"] for k in ("p", "qrs", "t")])
    whole = wave_intervals([counts, counts], [f"p{i}" for i in range(12)], 100)["sensitivity"][2]
    assert whole.low <= whole.value <= whole.high and whole.value < 0.75
    halves = [wave_counts(truth[6:], found[6:]), wave_counts(truth[:6], found[:6])]
    again = joined(halves, np.r_[6:12, 0:6])
    assert np.array_equal(again.hits, counts.hits) and np.array_equal(again.offset_square, counts.offset_square)
    assert row_patients(("a", "b"), 4) == ["a", "a", "b", "b"]
