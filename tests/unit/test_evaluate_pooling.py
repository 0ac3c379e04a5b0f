"""What a probe reads: maps of all stages, and the median heartbeat, on real recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from beatray.corpus.reader import Rows
from beatray.dsp.peaks import find_r_peaks
from beatray.evaluate.encoders import EncoderSpec, build, pooled_features, prepared
from beatray.evaluate.pooling import BOX, median_heartbeats
from beatray.evaluate.probes import logistic
from beatray.evaluate.settings import POOLINGS
from beatray.infer.vectors import BeatBoxes, embed_rows
from beatray.models.encoder import Stage
from beatray.objectives.beat_ssl import BeatSsl
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from evaluation_rows import read_rows

SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"
TINY = (32, 32, 64)  # channels of its stages

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 12))


def test_stages_are_mean_and_sd_of_every_map(rows: Rows) -> None:
    encoder = build(EncoderSpec("tiny"), 0)
    x_mv, lengths = prepared(rows.signal_uv, rows.n_samples), rows.n_samples.astype(np.int64)
    assert (lengths == 5000).all()
    found = pooled_features(encoder, x_mv, lengths, "stages")
    with torch.no_grad():
        maps = encoder.forward_stages(torch.from_numpy(x_mv))
    expected = np.concatenate([part for fmap in maps for part in (fmap.mean(-1), fmap.std(-1, correction=0))], axis=1)
    assert found.shape == (len(rows), 2 * sum(TINY))
    assert np.allclose(found, expected, atol=0.005)  # a floor under the variance
    last = pooled_features(encoder, x_mv, lengths, "mean_std")
    assert np.allclose(found[:, -2 * TINY[-1] :], last, atol=1e-6)


def test_the_heartbeat_is_the_median_of_the_vectors_that_embed_gives(rows: Rows) -> None:
    encoder = build(EncoderSpec("tiny"), 0)
    x_mv, lengths = prepared(rows.signal_uv, rows.n_samples), rows.n_samples.astype(np.int64)
    found = pooled_features(encoder, x_mv, lengths, "stages_beat")
    peaks = find_r_peaks(x_mv, 500.0)
    padded = np.full((len(rows), max(map(len, peaks))), -1, np.int64)
    for row, at in zip(padded, peaks, strict=True):
        row[: len(at)] = at
    vectors = embed_rows(encoder, rows.signal_uv, lengths, padded, BeatBoxes(BOX.before_s, BOX.after_s, BOX.bins))
    beats = [vectors.beat[vectors.row == row] for row in range(len(rows))]
    assert min(map(len, beats)) > 3
    expected = np.stack([np.median(each, axis=0) for each in beats])
    assert np.allclose(found[:, 2 * sum(TINY) :], expected, atol=1e-5)
    assert np.array_equal(found[:, : 2 * sum(TINY)], pooled_features(encoder, x_mv, lengths, "stages"))


def test_a_heartbeat_keeps_the_order_of_its_waves() -> None:
    """Cells that hold their own time read as the time from the R-peak."""
    cells = torch.arange(313.0).mul(16.0).expand(1, 1, 313)
    peaks = [np.array([1000, 1500, 2000, 2900], np.int32)]
    (found,) = median_heartbeats(cells, Stage(1, 16), peaks, np.array([5000]))
    start, end = -BOX.before_s * 500, BOX.after_s * 500
    expected = 1750 + start + (end - start) * (np.arange(8) + 0.5) / 8
    assert np.allclose(found, expected, atol=0.01)


def test_the_box_is_that_of_the_objective() -> None:
    assert BeatSsl.beat_box(BeatSslSettings()) == BOX


def test_an_encoder_of_five_stages_is_read_at_each() -> None:
    encoder = build(EncoderSpec("xresnet1d18"), 0)
    x_mv = np.random.default_rng(0).normal(size=(2, 12, 5000)).astype(np.float32)
    width = 2 * sum(stage.channels for stage in encoder.stages) + BOX.bins * encoder.channels
    assert len(encoder.stages) == 5
    assert pooled_features(encoder, x_mv, np.array([5000, 4000]), "stages_beat").shape == (2, width)


def test_without_a_beat_the_heartbeat_is_unknown_and_a_probe_still_reads_the_rest(rows: Rows) -> None:
    encoder = build(EncoderSpec("tiny"), 0)
    x_mv, lengths = prepared(rows.signal_uv, rows.n_samples), rows.n_samples.astype(np.int64)
    x_mv[3] = 0.0
    found = pooled_features(encoder, x_mv, lengths, "stages_beat")
    unknown = np.isnan(found)
    assert unknown[3, 2 * sum(TINY) :].all() and not unknown[3, : 2 * sum(TINY)].any()
    assert not np.delete(unknown, 3, axis=0).any()
    truth = (np.arange(len(rows)) % 2 == 0)[:, None]
    assert np.isfinite(logistic(found, truth, [1e-2])(found)[0]).all()


@pytest.mark.parametrize("how", POOLINGS)
def test_what_follows_the_valid_samples_changes_nothing(rows: Rows, how: str) -> None:
    encoder = build(EncoderSpec("tiny"), 0)
    lengths = np.full(len(rows), 2000)
    x_mv = prepared(rows.signal_uv, lengths.astype(np.int32))
    longer = x_mv.copy()
    longer[:, :, 2600:] = rows.signal_uv[:, :, :2400] / 25.0  # out of reach of the convolutions, 40 times as high
    assert np.array_equal(
        pooled_features(encoder, x_mv, lengths, how), pooled_features(encoder, longer, lengths, how), equal_nan=True
    )
