"""The high-pass, the crops and whole views: against SciPy on real records, and the same bits in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from scipy.signal import butter, filtfilt
from torch import Tensor

from beatray.augment.beats import select_beats, take_beats
from beatray.augment.crops import crop, draw_starts, resized_crop
from beatray.augment.draws import Draws
from beatray.augment.two_views import ResizedViewSettings, ViewSettings, make_resized_views, make_two_views
from beatray.preprocess import prepare


def batch_of(records: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(records, 12, 5000, generator=generator).cumsum(-1) * 30
    n_samples = torch.full((records,), 5000)
    n_samples[::5] = 3777
    signal[torch.arange(5000).expand(records, 12, -1) >= n_samples[:, None, None]] = 0
    peaks = torch.arange(200, 5000, 350).expand(records, -1).clone()
    peaks[peaks >= n_samples[:, None]] = -1
    return {
        "signal_uv": signal.clamp(-32000, 32000).to(torch.int16),
        "n_samples": n_samples,
        "record_key": torch.arange(records) * 977 - 11,
        "r_peaks": peaks,
    }


def test_high_pass_is_filtfilt_on_real_records(ludb_dir: Path) -> None:
    numerator, denominator = butter(2, 0.5, "high", fs=500)
    for name in ("1", "50", "120"):
        signal_mv = wfdb.rdrecord(str(ludb_dir / "data" / name)).p_signal.T
        found = prepare(torch.as_tensor(signal_mv[None] * 1000.0)).numpy()[0]
        expected = filtfilt(numerator, denominator, signal_mv, padtype="odd", padlen=1200)
        # away from the ends, where the two continue the record differently: 1 % of the largest wave at worst
        inside = slice(1000, -1000)
        assert np.abs(found - expected)[:, inside].max() < 0.01 * np.abs(expected).max()
        assert np.sqrt(np.mean((found - expected)[:, inside] ** 2)) < 0.001


def test_ends_are_right_on_real_records(ludb_dir: Path) -> None:
    """The first and last half second of a part of a record are as in the whole record, better than filtfilt's."""
    numerator, denominator = butter(2, 0.5, "high", fs=500)
    found, theirs = [], []
    for name in range(1, 41):
        signal_mv = wfdb.rdrecord(str(ludb_dir / "data" / str(name))).p_signal.T
        whole = prepare(torch.as_tensor(signal_mv[None] * 1000.0)).numpy()[0, :, 1300:3800]
        part_mv = signal_mv[:, 1300:3800]
        part = prepare(torch.as_tensor(part_mv[None] * 1000.0)).numpy()[0]
        ends = np.r_[0:250, 2250:2500]
        found.append((part - whole)[:, ends])
        theirs.append((filtfilt(numerator, denominator, part_mv, padlen=1200) - whole)[:, ends])
    assert np.sqrt(np.mean(np.square(found))) < 0.03
    assert np.sqrt(np.mean(np.square(found))) < 0.5 * np.sqrt(np.mean(np.square(theirs)))


def test_high_pass_removes_wander_and_keeps_waves() -> None:
    t = np.arange(5000) / 500
    for frequency, gain in ((0.05, 0.0), (0.15, 0.01), (0.5, 0.5), (2.0, 0.996), (10.0, 1.0), (40.0, 1.0)):
        wave = np.sin(2 * np.pi * frequency * t) * 1000
        out = prepare(torch.as_tensor(np.tile(wave, (1, 12, 1)))).numpy()[0, 0, 1500:3500]
        assert np.abs(out).max() == pytest.approx(gain, abs=0.03), frequency
    offset = prepare(torch.full((1, 12, 5000), 3000))
    assert offset.abs().max() < 1e-4
    slope = prepare(torch.arange(5000.0).expand(1, 12, -1))
    assert slope[..., 1000:-1000].abs().max() < 0.02  # of 5 mV over the record


def test_padding_is_zero_and_does_not_matter() -> None:
    batch = batch_of(6)
    x = prepare(batch["signal_uv"], 500, batch["n_samples"])
    assert (x[0, :, 3777:] == 0).all()
    assert x[0, :, :3777].abs().mean() > 0.01
    other = batch["signal_uv"].clone()
    other[0, :, 3777:] = 20000
    assert torch.equal(prepare(other, 500, batch["n_samples"])[0], x[0])


def test_clip_and_odd_inputs() -> None:
    steps = torch.zeros(1, 12, 5000, dtype=torch.int16)
    steps[..., 2000:2050] = 32000
    assert prepare(steps).max() == 5.0
    assert prepare(torch.zeros(0, 12, 5000)).shape == (0, 12, 5000)
    assert prepare(torch.zeros(2, 12, 5000), 500, torch.tensor([0, 3])).abs().max() == 0
    assert prepare(torch.ones(1, 12, 1234), 360).shape == (1, 12, 1234)
    broken = torch.randn(2, 12, 5000)
    broken[0, 3, 100] = float("nan")
    x = prepare(broken)
    assert torch.isfinite(x[1]).all()
    assert torch.isfinite(x[0, 4:]).all()


@pytest.mark.parametrize(
    "settings",
    [ViewSettings(), ViewSettings(crop_seconds=None, mode="project", keep_beats=True), ViewSettings(transform="kors")],
)
def test_views_do_not_depend_on_the_batch(settings: ViewSettings) -> None:
    batch = batch_of(64)
    together = make_two_views(batch, settings, Draws.of(batch, 3, 4))
    for rows in (slice(0, 1), slice(5, 6), slice(6, 7), slice(20, 50)):
        some = {key: value[rows] for key, value in batch.items()}
        apart = make_two_views(some, settings, Draws.of(some, 3, 4))
        for key, value in apart.items():
            assert torch.equal(value, together[key][rows]), key
    length = 2500 if settings.crop_seconds else 5000
    assert together["view_1"].shape == together["view_2"].shape == (64, 12, length)
    assert not torch.equal(together["view_1"], together["view_2"])
    other_epoch = make_two_views(batch, settings, Draws.of(batch, 3, 5))
    assert not torch.equal(other_epoch["view_1"], together["view_1"])


def test_resized_views_do_not_depend_on_the_batch() -> None:
    batch = batch_of(16)
    together = make_resized_views(batch, ResizedViewSettings(), Draws.of(batch, 3, 4))
    some = {key: value[3:4] for key, value in batch.items()}
    apart = make_resized_views(some, ResizedViewSettings(), Draws.of(some, 3, 4))
    for key, value in apart.items():
        assert torch.equal(value, together[key][3:4]), key


def test_views_with_two_threads_are_the_same() -> None:
    batch = batch_of(20)
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2):
        torch.set_num_threads(count)
        made.append(make_two_views(batch, ViewSettings(), Draws.of(batch, 0, 0)))
    torch.set_num_threads(threads)
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_crop_stays_inside_the_signal() -> None:
    starts = draw_starts(np.array([0.0, 0.999999, 0.5]), np.array([5000, 3000, 2000]), 2500)
    assert starts.tolist() == [0, 500, 0]
    x = torch.arange(20.0).expand(3, 12, -1)
    cut = crop(x, torch.tensor([0, 5, 15]), 8)
    assert cut[:, 0].tolist() == [
        list(range(8)),
        list(range(5, 13)),
        [15, 16, 17, 18, 19, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="crop starts"):
        crop(x, torch.tensor([0, -1, 0]), 8)


def test_resized_crop_of_a_ramp_is_a_slower_ramp() -> None:
    x = torch.arange(101.0).expand(2, 12, -1)
    out = resized_crop(x, np.array([[0.0, 0.0], [1.0, 0.7]]), smallest=0.5)
    torch.testing.assert_close(out[0, 0], torch.arange(101.0) / 2)
    torch.testing.assert_close(out[1], x[1])


def test_beats_are_those_mostly_inside() -> None:
    peaks = torch.tensor([[20, 300, 700, 985, -1], [-1, -1, -1, -1, -1]])
    start, valid = torch.tensor([0, 0]), torch.tensor([1000, 1000])

    def select(most: int) -> tuple[Tensor, Tensor]:
        return select_beats(
            peaks, start, valid, Draws(np.array([1, 2]), 0, 0), before_smp=50.0, after_smp=50.0, max_beats=most
        )

    boxes, index = select(8)
    # 20 loses 30 of 100 samples, 985 loses 35: both out
    assert index.tolist() == [[1, 2, -1, -1, -1, -1, -1, -1], [-1] * 8]
    assert boxes[0, :2].tolist() == [[250, 350], [650, 750]]
    _, one = select(1)
    assert one[0, 0] in (1, 2)
    values = take_beats(torch.arange(10.0).view(2, 5), index, -7.0)
    assert values[0].tolist() == [1, 2, *[-7] * 6]
    cut_short = select_beats(
        peaks,
        start,
        torch.tensor([720, 0]),
        Draws(np.array([1, 2]), 0, 0),
        before_smp=50.0,
        after_smp=50.0,
        max_beats=3,
    )[1]
    assert cut_short[0].tolist() == [1, -1, -1]


def test_few_beats_are_chosen_evenly_and_for_good() -> None:
    peaks = torch.arange(100, 2400, 200).expand(600, -1)
    keys = np.arange(600)
    args = (torch.zeros(600, dtype=torch.int64), torch.full((600,), 2500), Draws(keys, 0, 0))
    _, index = select_beats(peaks, *args, before_smp=50.0, after_smp=50.0, max_beats=4)
    counts = torch.bincount(index.flatten(), minlength=12)
    assert counts.min() > 150
    assert (torch.diff(index, dim=1) > 0).all()
    _, alone = select_beats(
        peaks[9:10], args[0][9:10], args[1][9:10], Draws(keys[9:10], 0, 0), before_smp=50.0, after_smp=50.0, max_beats=4
    )
    assert torch.equal(alone, index[9:10])
