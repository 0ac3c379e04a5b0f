"""Scores against scikit-learn, and the bootstrap's weighted scores against the plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from beatray.evaluate.intervals import (
    class_intervals,
    class_scores,
    own_intervals,
    paired_differences,
    patient_weights,
    weighted_scores,
)
from beatray.evaluate.metrics import (
    IGNORE,
    SegmentCounts,
    auroc,
    average_precision,
    best_thresholds,
    macro_auroc,
    macro_average_precision,
    macro_f1,
    pooled_f1,
    record_dice,
    segment_counts,
)
from beatray.evaluate.results import Decisions, score


def random_labels(seed: int, n: int = 90, c: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Truth and scores that carry some signal, with many ties."""
    generator = np.random.default_rng(seed)
    truth = generator.random((n, c)) < np.linspace(0.1, 0.6, c)
    scores = np.round(np.clip(0.3 * truth + generator.random((n, c)) * 0.7, 0, 1), 2)
    return truth, scores


def random_masks(seed: int, n: int = 7, t: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Truth with unscored ends and a prediction that is right two times in three."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 4, (n, t)).astype(np.int8)
    predicted = np.where(generator.random((n, t)) < 0.66, truth, generator.integers(0, 4, (n, t))).astype(np.int8)
    truth[:, :37] = IGNORE
    truth[0, 200:] = IGNORE
    return truth, predicted


def test_ties_of_infinite_scores_enter_together_and_nan_ranks_nowhere() -> None:
    truth, inf = np.array([True, False, False, True]), np.inf
    weights = np.ones((1, 4))
    for high, low in ((inf, 0.0), (1.0, -inf), (inf, -inf)):
        scores = np.array([high, high, low, low])
        finite = np.array([1.0, 1.0, 0.0, 0.0])
        assert average_precision(truth, scores) == average_precision(truth, finite) == 0.5
        assert auroc(truth, scores) == auroc(truth, finite)
        of_weights = class_scores(Decisions(scores[:, None], np.array([0.5])), truth[:, None], weights)
        assert (of_weights["auprc"].item(), of_weights["auroc"].item()) == (0.5, auroc(truth, finite))
    assert average_precision(np.array([True, False, True, False]), np.array([inf, inf, inf, 0.0])) == 2 / 3
    nan = np.array([np.nan, 0.5, 0.2, 0.1])
    assert np.isnan([average_precision(truth, nan), auroc(truth, nan)]).all()
    found = class_scores(Decisions(nan[:, None], np.array([0.5])), truth[:, None], weights)
    assert np.isnan([found["auprc"].item(), found["auroc"].item()]).all()


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_sklearn(seed: int) -> None:
    truth, scores = random_labels(seed)
    found = macro_auroc(truth, scores)
    assert found.counted == 5
    assert found.value == pytest.approx(roc_auc_score(truth, scores, average="macro"), abs=1e-12)
    for k in range(5):
        assert found.per_class[k] == pytest.approx(roc_auc_score(truth[:, k], scores[:, k]), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_sklearn(seed: int) -> None:
    truth, scores = random_labels(seed)
    found = macro_average_precision(truth, scores)
    assert found.value == pytest.approx(average_precision_score(truth, scores, average="macro"), abs=1e-12)
    assert average_precision(truth[:, 1], scores[:, 1]) == pytest.approx(found.per_class[1])
    truth[:, 3] = False
    left = [0, 1, 2, 4]
    without = macro_average_precision(truth, scores)
    assert without.counted == 4 and np.isnan(without.per_class[3])
    expected = average_precision_score(truth[:, left], scores[:, left], average="macro")
    assert without.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_each_class_under_weights_are_those_of_sklearn(seed: int) -> None:
    truth, scores = random_labels(seed)
    weights = patient_weights([f"p{i // 2}" for i in range(90)], 4, np.random.default_rng(seed))
    found = class_scores(Decisions(scores, np.full(5, 0.4)), truth, weights)
    for row in range(4):
        for k in range(5):
            plain = {"sample_weight": weights[row]}
            assert found["auroc"][row, k] == pytest.approx(roc_auc_score(truth[:, k], scores[:, k], **plain))
            assert found["auprc"][row, k] == pytest.approx(average_precision_score(truth[:, k], scores[:, k], **plain))
            assert found["f1"][row, k] == pytest.approx(f1_score(truth[:, k], scores[:, k] >= 0.4, **plain))


def test_intervals_of_one_arm_hold_its_scores_and_narrow_with_more_patients() -> None:
    widths = []
    for n in (60, 960):
        truth, scores = random_labels(1, n=n)
        decisions, patients = Decisions(scores, np.full(5, 0.5)), [f"p{i}" for i in range(n)]
        own = own_intervals([decisions], truth, patients, 200)
        by_class = class_intervals([decisions], truth, patients, 200)
        plain = score(decisions, truth)
        for name, interval in own.items():
            assert interval.value == pytest.approx(plain[name]) and interval.low < interval.value < interval.high
        assert [each.value for each in by_class["auroc"]] == pytest.approx(macro_auroc(truth, scores).per_class)
        widths.append(own["auroc"].high - own["auroc"].low)
    assert widths[1] < 0.5 * widths[0]  # four times narrower in theory


def test_a_class_with_one_value_is_skipped_and_counted_out() -> None:
    truth, scores = random_labels(1)
    truth[:, 2] = False
    truth[:, 4] = True
    found = macro_auroc(truth, scores)
    assert found.counted == 3
    assert np.isnan(found.per_class[[2, 4]]).all()
    assert found.value == pytest.approx(roc_auc_score(truth[:, [0, 1, 3]], scores[:, [0, 1, 3]]), abs=1e-12)
    assert np.isnan(auroc(np.zeros(4, bool), np.arange(4.0)))


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_that_of_sklearn(seed: int) -> None:
    truth, scores = random_labels(seed)
    predicted = scores >= 0.5
    assert macro_f1(truth, predicted).value == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_beats_the_chosen_one(seed: int) -> None:
    truth, scores = random_labels(seed, n=40)
    chosen = best_thresholds(truth, scores)
    for k in range(truth.shape[1]):
        tried = [f1_score(truth[:, k], scores[:, k] >= t) for t in np.linspace(-0.01, 1.01, 205)]
        reached = f1_score(truth[:, k], scores[:, k] >= chosen[k])
        assert reached == pytest.approx(max(tried), abs=1e-12)


def test_threshold_of_a_class_without_positives_is_a_half() -> None:
    assert best_thresholds(np.zeros((6, 1), bool), np.linspace(0, 1, 6)[:, None])[0] == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_segmentation_scores_are_those_of_sklearn(seed: int) -> None:
    truth, predicted = random_masks(seed)
    counts = segment_counts(truth, predicted)
    scored = truth != IGNORE
    expected = f1_score(truth[scored], predicted[scored], labels=[1, 2, 3], average=None)
    assert pooled_f1(counts).per_class == pytest.approx(expected, abs=1e-12)
    per_record = [
        f1_score(t[s], p[s], labels=[1, 2, 3], average="macro")
        for t, p, s in zip(truth, predicted, scored, strict=True)
    ]
    assert record_dice(counts) == pytest.approx(per_record, abs=1e-12)


def test_dice_leaves_out_waves_that_nobody_marked() -> None:
    counts = SegmentCounts(np.array([[0, 8, 0]]), np.array([[0, 10, 5]]), np.array([[0, 10, 0]]))
    assert record_dice(counts)[0] == pytest.approx((0.8 + 0.0) / 2)  # P neither present nor found; T missed


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        segment_counts(np.zeros((2, 10), np.int8), np.zeros((2, 11), np.int8))


@pytest.mark.parametrize("seed", range(3))
def test_weighted_scores_equal_scores_of_repeated_records(seed: int) -> None:
    truth, scores = random_labels(seed)
    decisions = Decisions(scores, np.full(5, 0.5))
    counts = segment_counts(*random_masks(seed, n=90))
    weights = patient_weights([f"p{i // 2}" for i in range(90)], 6, np.random.default_rng(seed))
    for outcome, known in ((decisions, truth), (counts, None)):
        resampled = weighted_scores(outcome, known, weights)
        for row in range(6):
            repeated = np.repeat(np.arange(90), weights[row].astype(int))
            plain = score(outcome, known, repeated)
            for name, values in resampled.items():
                assert values[row] == pytest.approx(plain[name], abs=1e-12), name


def test_paired_interval_sees_a_difference_and_no_difference() -> None:
    truth, weak = random_labels(0, n=200)
    strong = np.clip(weak + 0.4 * truth, 0, 1)
    patients = [f"p{i}" for i in range(200)]
    good, bad = Decisions(strong, np.full(5, 0.5)), Decisions(weak, np.full(5, 0.5))
    gap = paired_differences([good, good], [bad, bad], truth, patients, 300)["auroc"]
    assert gap.low > 0 and gap.excludes_zero()
    assert gap.value == pytest.approx(macro_auroc(truth, strong).value - macro_auroc(truth, weak).value)
    same = paired_differences([bad], [bad], truth, patients, 50)["auroc"]
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="paired"):
        paired_differences([good], [], truth, patients, 10)


def test_resampled_patients_keep_all_their_records() -> None:
    weights = patient_weights(["a", "b", "a", "c", "b"], 200, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    drawn = weights[:, 0] + weights[:, 1] + weights[:, 3]
    assert (drawn == 3).all()
