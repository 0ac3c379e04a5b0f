"""Labels as targets, probabilities that can be taken at their word, and when a run has stopped getting better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.metrics import r2_score

from beatray.commands.finetune import print_scores
from beatray.errors import SettingsError
from beatray.evaluate.metrics import record_dice, segment_counts
from beatray.finetune.scores import class_of_scores, multilabel_scores, number_scores, wave_scores_of
from beatray.finetune.targets import OwnLabel, side_by_side
from beatray.models.calibration import Calibration, fitted
from beatray.train.early_stopping import EarlyStopping
from beatray.train.targets import TargetTable


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits three times too sure of themselves and off by one, and labels of which some are unknown."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(0, 1.5, (400, 3))
    truth = (generator.random(honest.shape) < expit(honest)).astype(np.int8)
    truth[generator.random(truth.shape) < 0.1] = -1
    return 3 * honest + 1, truth


def test_platt_finds_what_was_done_to_the_logits() -> None:
    logits, truth = drawn()
    found = fitted("multilabel", logits, truth)
    np.testing.assert_allclose(found.slope, 1 / 3, atol=0.1)
    np.testing.assert_allclose(found.offset, -1 / 3, atol=0.3)
    plain = Calibration.none("multilabel", 3)
    assert found.nll(logits, truth) < 0.8 * plain.nll(logits, truth)
    other, labels = drawn(1)
    assert found.error(other, labels) < 0.5 * plain.error(other, labels)


def test_platt_is_the_minimum_of_the_smoothed_likelihood() -> None:
    logits, truth = drawn()
    found = fitted("multilabel", logits, truth)
    known = truth[:, 1] >= 0
    z, y = logits[known, 1], truth[known, 1] > 0
    expected = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))

    def lost(at: np.ndarray) -> float:
        chance = expit(at[0] * z + at[1])
        return float(-(expected * np.log(chance) + (1 - expected) * np.log(1 - chance)).sum())

    best = minimize(lost, [0.1, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert (found.slope[1], found.offset[1]) == pytest.approx(tuple(best.x), abs=1e-5)


@pytest.mark.parametrize("kind", ["multilabel", "classes"])
def test_of_several_windows_the_means_of_recordings_are_calibrated(kind: str) -> None:
    logits, labels = drawn()
    starts = np.array([0, 1, 4, 6, *range(7, 395, 3), 395, 399])
    of_recording = np.repeat(np.arange(len(starts)), np.diff([*starts, 400]))
    truth = labels[starts] if kind == "multilabel" else np.where(labels[starts, 0] < 0, -1, logits[starts].argmax(1))
    logits = logits + np.random.default_rng(2).normal(0, 2, logits.shape)  # windows do not say the same
    found = fitted(kind, logits, truth, starts)

    def chances(calibration: Calibration) -> np.ndarray:
        each = calibration.probabilities(logits)
        return np.stack([each[of_recording == number].mean(0) for number in range(len(starts))])

    np.testing.assert_allclose(found.probabilities(logits, starts), chances(found))
    known = truth >= 0

    def lost(calibration: Calibration) -> float:
        chance = chances(calibration)
        if kind == "classes":
            return float(-np.log(chance[known, truth[known]]).sum())
        positives, negatives = (truth == 1).sum(0), (truth == 0).sum(0)
        expected = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        return float(-(expected * np.log(chance) + (1 - expected) * np.log(1 - chance))[known].sum())

    best = lost(found)
    for step in (1.01, 0.99):
        assert lost(replace(found, slope=tuple(step * slope for slope in found.slope))) > best
        if kind == "multilabel":
            assert lost(replace(found, offset=tuple(step * offset for offset in found.offset))) > best
    chance = chances(found)
    likelihood = np.where(truth == 1, chance, 1 - chance) if kind == "multilabel" else chance
    likelihood = likelihood[known] if kind == "multilabel" else likelihood[known, truth[known]]
    assert found.nll(logits, truth, starts) == pytest.approx(-np.log(likelihood).mean())
    one_each = fitted(kind, logits[starts], truth, np.arange(len(starts)))
    assert one_each == fitted(kind, logits[starts], truth)


@pytest.mark.parametrize("level", [0.0, 1e9, -3e12])
def test_r_squared_is_that_of_scikit_learn_whatever_the_size_of_the_numbers(level: float) -> None:
    generator = np.random.default_rng(0)
    truth = level + generator.normal(0, 10, (60, 3))
    predicted = truth + generator.normal(0, 5, truth.shape)
    truth[:20, 1], truth[:, 2] = np.nan, level + 0.1
    scores = number_scores(predicted, truth, [f"p{k}" for k in range(60)], ["all", "some", "constant"])["each"]
    for name, column, rows in (("all", 0, slice(None)), ("some", 1, slice(20, None))):
        expected = r2_score(truth[rows, column], predicted[rows, column])
        assert scores[name]["r2"]["value"] == pytest.approx(expected, rel=1e-9)
        assert scores[name]["r2"]["low"] < expected < scores[name]["r2"]["high"]
    assert scores["constant"]["r2"] == {"value": None, "low": None, "high": None}


def test_one_patient_has_no_interval_and_errors_of_several_numbers_no_mean() -> None:
    """A width of zero would pass for certainty."""
    truth = np.array([[1.0, 3.0], [2.0, np.nan], [4.0, np.nan], [5.0, 7.0]])
    scores = number_scores(truth + 0.25, truth, ["a", "a", "b", "a"], ["lvef", "k"])
    assert "mae" not in scores and scores["r2"]["low"] is not None
    assert scores["each"]["k"]["mae"] == {"value": 0.25, "low": None, "high": None}
    assert scores["each"]["lvef"]["mae"] == {"value": 0.25, "low": 0.25, "high": 0.25}  # two patients, alike
    alone = number_scores(truth[:, :1] + 0.25, truth[:, :1], ["a"] * 4, ["lvef"])
    assert alone["mae"] == alone["each"]["lvef"]["mae"] == {"value": 0.25, "low": None, "high": None}
    yes = np.array([[1], [0], [1], [0]])
    chance = np.array([[0.9], [0.2], [0.8], [0.1]])
    assert multilabel_scores(chance, yes, np.array([0.5]), ["a"] * 4, ["AF"])["auroc"]["low"] is None
    assert multilabel_scores(chance, yes, np.array([0.5]), list("abcd"), ["AF"])["auroc"]["low"] == 1.0
    both = np.hstack([1 - chance, chance])
    assert class_of_scores(both, yes[:, 0], ["a"] * 4, ["SR", "AF"])["accuracy"] == {
        "value": 1.0,
        "low": None,
        "high": None,
    }


def test_scores_are_printed_whatever_an_output_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.array([[1.0], [2.0], [4.0]])
    scores = number_scores(truth + 0.5, truth, list("abc"), ["value"])
    records = {"train": 3, "validation": 1, "test": 3, "test_seen": 0}
    print_scores({"records": records, "scores": {"test": scores}})
    assert "test mae: 0.500 (0.500 to 0.500)" in capsys.readouterr().out


def test_the_dice_of_a_recording_is_of_all_its_windows() -> None:
    truth, predicted = np.random.default_rng(0).integers(0, 4, (2, 5, 2, 500)).astype(np.int8)
    scores = wave_scores_of(predicted, truth, ["a", "b"], np.array([0, 3]))
    of_recordings = []
    for windows in (slice(0, 3), slice(3, 5)):
        long = (masks[windows].swapaxes(0, 1).reshape(2, -1) for masks in (truth, predicted))
        of_recordings.append(record_dice(segment_counts(*long)))
    expected = np.concatenate(of_recordings).mean()
    assert scores["dice"]["value"] == pytest.approx(expected)
    assert wave_scores_of(predicted, truth, list("abcde"), np.arange(5))["dice"]["value"] != pytest.approx(expected)


def test_a_temperature_keeps_the_order_of_classes() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, (500, 4))
    truth = np.array([generator.choice(4, p=chance) for chance in softmax(honest, axis=1)], np.int16)
    truth[:20] = -1
    found = fitted("classes", 2.5 * honest, truth)
    assert found.slope[0] == pytest.approx(1 / 2.5, rel=0.15) and len(set(found.slope)) == 1
    np.testing.assert_array_equal(found.probabilities(honest).argmax(1), honest.argmax(1))
    np.testing.assert_allclose(found.probabilities(honest).sum(1), 1)
    assert found.nll(2.5 * honest, truth) < Calibration.none("classes", 4).nll(2.5 * honest, truth)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([2.0, 1.0, -1.0], [1, 1, 1]),  # one value only
        ([-2.0, -1.0, 3.0, 1.0], [1, 1, 0, 0]),  # worse than chance: the order would turn round
        ([3.0, -3.0], [-1, -1]),  # nothing known
    ],
)
def test_logits_stay_as_they_are_where_nothing_can_be_learned(logits: list[float], labels: list[int]) -> None:
    found = fitted("multilabel", np.array(logits)[:, None], np.array(labels, np.int8)[:, None])
    assert (found.slope, found.offset) == ((1.0,), (0.0,))
    assert Calibration.from_dict(found.to_dict()) == found


def test_a_run_ends_after_so_many_validations_without_a_better_one() -> None:
    def stopped_at(values: list[float], patience: int | None, cut: int = 0) -> int | None:
        stopping = EarlyStopping.of(patience, None)
        for number, value in enumerate(values):
            if number == cut:
                stopping = EarlyStopping.of(patience, stopping.state)  # as a checkpoint keeps it
            stopping.add(value)
            if stopping.over:
                return number
        return None

    values = [3.0, 2.0, 2.5, 1.0, float("nan"), 1.0, 1.5, 0.5]
    assert stopped_at(values, 2) == 5 == stopped_at(values, 2, cut=5)
    assert stopped_at(values, 3) == 6 and stopped_at(values, 4) is None and stopped_at(values, None) is None


def test_labels_side_by_side_are_what_one_head_learns() -> None:
    yes, no = [True], [False]
    sick = OwnLabel("sick", "binary", ("sick",), np.array([yes, no, no, no]), np.array([True, True, False, False]))
    codes = OwnLabel(
        "codes",
        "multilabel",
        ("a", "b"),
        np.array([[1, 1], [0, 0], [1, 0], [0, 0]], bool),
        np.array([1, 0, 1, 0], bool),
    )
    both = side_by_side([sick, codes], "two")
    assert (both.kind, both.names) == ("multilabel", ("sick", "a", "b"))
    assert both.rows.tolist() == [0, 1, 2] and both.values.tolist() == [[1, 1, 1], [0, -1, -1], [-1, 1, 0]]
    assert side_by_side([codes, codes], "twice").names == ("codes: a", "codes: b", "codes: a", "codes: b")
    numbers = OwnLabel("lvef", "numbers", (), np.array([[40.0], [7.0], [55.0], [0.0]]), np.array([1, 0, 1, 0], bool))
    found = side_by_side([numbers, numbers], "numbers")
    assert found.rows.tolist() == [0, 2] and found.values.tolist() == [[40, 40], [55, 55]]
    one = OwnLabel("class", "classes", ("x", "y"), np.eye(2)[[1, 0, 1, 0]].astype(bool), np.array([1, 0, 1, 1], bool))
    chosen = side_by_side([one], "one")
    assert chosen.kind == "classes" and chosen.rows.tolist() == [0, 2, 3] and chosen.values.tolist() == [1, 1, 0]
    with pytest.raises(SettingsError, match=r"one model cannot learn sick \(binary\), lvef \(numbers\)"):
        side_by_side([sick, numbers], "mixed")


def test_targets_are_found_by_key() -> None:
    table = TargetTable.of(np.array([7, -3, 5]), np.array([[1, 0], [0, -1], [1, 1]], np.int8))
    np.testing.assert_array_equal(table.rows(np.array([5, 8, -3, -9])), [[1, 1], [-1, -1], [0, -1], [-1, -1]])
    empty = TargetTable.of(np.empty(0, np.int64), np.empty((0, 2), np.float32), np.nan)
    assert np.isnan(empty.rows(np.array([1, 2]))).all()
    assert table.sha256() == TargetTable.of(np.array([-3, 5, 7]), np.array([[0, -1], [1, 1], [1, 0]], np.int8)).sha256()
    assert table.sha256() != TargetTable.of(np.array([-3, 5, 7]), np.array([[0, 0], [1, 1], [1, 0]], np.int8)).sha256()
    with pytest.raises(ValueError, match="twice"):
        TargetTable.of(np.array([1, 1]), np.zeros(2))
