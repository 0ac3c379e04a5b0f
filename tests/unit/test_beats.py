from __future__ import annotations

import numpy as np
import pytest

from beatray.dsp.beats import beat_boxes, box_is_inside, cut_beats, local_rr

RATE_HZ = 500


def test_box_of_a_regular_rhythm() -> None:
    r = np.arange(400, 4800, 400)  # RR 0.8 s
    boxes = beat_boxes(r, RATE_HZ, 5000)
    assert boxes.shape == (len(r), 2)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[3], [r[3] - 0.35 * 400, r[3] + 0.65 * 400])


@pytest.mark.parametrize(
    ("rr_s", "before_s", "after_s"), [(0.4, 0.25, 0.35), (0.8, 0.28, 0.52), (1.1, 0.385, 0.715), (2.0, 0.45, 0.75)]
)
def test_sides_keep_within_limits(rr_s: float, before_s: float, after_s: float) -> None:
    r = (np.arange(1, 5) * rr_s * RATE_HZ).round().astype(int)
    start, end = beat_boxes(r, RATE_HZ, 10_000)[1]
    assert (r[1] - start) / RATE_HZ == pytest.approx(before_s, abs=0.003)
    assert (end - r[1]) / RATE_HZ == pytest.approx(after_s, abs=0.003)


def test_one_early_beat_leaves_its_neighbours_alone() -> None:
    r = np.array([400, 800, 1200, 1400, 2000, 2400, 2800])
    rr = local_rr(r, RATE_HZ)
    np.testing.assert_allclose(rr[[0, 1, 5, 6]], 400)


def test_lone_beat_and_no_beat() -> None:
    np.testing.assert_allclose(beat_boxes(np.array([2500]), RATE_HZ, 5000), [[2500 - 140, 2500 + 260]])
    assert beat_boxes(np.array([], int), RATE_HZ, 5000).shape == (0, 2)


def test_box_mostly_outside_is_not_a_region() -> None:
    r = np.array([20, 420, 820, 1220, 1300])
    boxes = beat_boxes(r, RATE_HZ, 1310)
    assert np.isnan(boxes[0]).all()  # 120 of 400 samples before the start
    assert np.isfinite(boxes[1:3]).all()
    assert np.isnan(boxes[-1]).all()
    assert box_is_inside(np.array([[-100.0, 300.0], [-101.0, 299.0]], np.float32), 1310).tolist() == [True, False]


def test_cut_beats_centres_and_marks_the_cut_off() -> None:
    x = np.arange(2 * 3 * 1000, dtype=np.int16).reshape(2, 3, 1000)
    peaks = [np.array([50, 500], np.int32), np.array([990], np.int32)]
    windows, owner, inside = cut_beats(x, peaks, 0.2, 0.4, RATE_HZ)
    assert windows.shape == (3, 3, 300)
    assert windows.dtype == np.int16
    assert owner.tolist() == [0, 0, 1]
    assert inside.tolist() == [False, True, False]
    assert windows[1, 2, 100] == x[0, 2, 500]
    np.testing.assert_array_equal(windows[1], x[0, :, 400:700])
    assert (windows[0, :, :50] == 0).all()
    np.testing.assert_array_equal(windows[0, :, 50:], x[0, :, :250])
    assert (windows[2, :, 110:] == 0).all()


def test_cut_beats_respects_the_valid_length() -> None:
    x = np.ones((1, 12, 1000), np.float32)
    windows, _, inside = cut_beats(x, [np.array([500], np.int32)], 0.2, 0.4, RATE_HZ, n_samples=[600])
    assert not inside[0]
    assert windows[0, 0].sum() == 200


def test_cut_beats_without_beats_or_length() -> None:
    windows, owner, inside = cut_beats(np.zeros((2, 12, 100)), [np.array([], np.int32)] * 2, 0.2, 0.4, RATE_HZ)
    assert windows.shape == (0, 12, 300)
    assert len(owner) == len(inside) == 0
    with pytest.raises(ValueError, match="needs some length"):
        cut_beats(np.zeros((1, 12, 100)), [np.array([5], np.int32)], 0.0, 0.0, RATE_HZ)
