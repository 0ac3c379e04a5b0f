from __future__ import annotations

import numpy as np
import pytest
from synthetic_ecg import synthetic_ecg

from beatray.dsp import neurokit
from beatray.dsp.analyse import DETECTORS, VERSION, Analysis, AnalysisSettings, Detector, analyse
from beatray.dsp.clean import decimate
from beatray.dsp.delineate import BEAT_WAVES, FIELDS, find_waves
from beatray.dsp.features import BEAT_FEATURES, HRV_FEATURES, RECORD_FEATURES
from beatray.dsp.peaks import find_r_peaks
from beatray.dsp.quality import Flag, assess

R = np.arange(450, 4700, 430).astype(np.int32)


def _rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of every kind: whole, short, one lead flat, one lead missing, empty, noise, and enough to fill chunks."""
    rng = np.random.default_rng(5)
    whole = np.rint(synthetic_ecg(R) * 1000)[0]
    rows, lengths, masks = [], [], []
    for k in range(37):
        row = whole * (0.5 + rng.random()) + rng.normal(0, 5 + k, whole.shape)
        length, mask = 5000, 4095
        if k % 5 == 1:
            length = int(rng.integers(100, 4999))
            row[:, length:] = 0
        if k % 5 == 2:
            row[k % 12] = 7
        if k % 5 == 3:
            mask &= ~(1 << (k % 12))
            row[k % 12] = 0
        if k == 20:
            row[:] = 0
        if k == 21:
            length = 0
        rows.append(row)
        lengths.append(length)
        masks.append(mask)
    return np.rint(np.stack(rows)).astype(np.int16), np.array(lengths), np.array(masks)


def _same(one: Analysis, i: int, other: Analysis, j: int) -> bool:
    return (
        one.r_peaks[i].tobytes() == other.r_peaks[j].tobytes()
        and one.waves[i].tobytes() == other.waves[j].tobytes()
        and one.beat_features[i].tobytes() == other.beat_features[j].tobytes()
        and one.record_features[i].tobytes() == other.record_features[j].tobytes()
        and one.flags[i] == other.flags[j]
        and one.lead_mask[i] == other.lead_mask[j]
    )


def test_shapes_and_types() -> None:
    signal, lengths, masks = _rows()
    found = analyse(signal, lengths, masks)
    assert len(found.r_peaks) == len(found.waves) == len(found.beat_features) == len(signal)
    assert found.record_features.shape == (len(signal), len(RECORD_FEATURES))
    assert found.record_features.dtype == np.float32
    assert found.flags.dtype == np.int32
    assert found.lead_mask.dtype == np.int16
    for r, waves, beats, length in zip(found.r_peaks, found.waves, found.beat_features, lengths, strict=True):
        assert r.dtype == np.int32
        assert waves.dtype == BEAT_WAVES
        assert beats.shape == (len(r), len(BEAT_FEATURES))
        assert beats.dtype == np.float32
        assert (np.diff(r) > 0).all()
        assert ((r >= 0) & (r < max(length, 1))).all()
    assert VERSION


def test_same_bits_alone_and_in_any_batch() -> None:
    signal, lengths, masks = _rows()
    together = analyse(signal, lengths, masks)
    order = np.random.default_rng(0).permutation(len(signal))
    shuffled = analyse(signal[order], lengths[order], masks[order])
    for k in range(len(signal)):
        alone = analyse(signal[k : k + 1], lengths[k : k + 1], masks[k : k + 1])
        assert _same(alone, 0, together, k), k
    for position, k in enumerate(order):
        assert _same(shuffled, position, together, k), k


def test_a_recording_without_a_beat() -> None:
    found = analyse(np.zeros((1, 12, 5000), np.int16), 5000, 4095)
    assert len(found.r_peaks[0]) == 0
    assert np.isnan(found.record_features).all()
    assert Flag(int(found.flags[0])) >= Flag.NO_BEATS | Flag.FLAT_LEAD
    assert found.lead_mask[0] == 0


def test_flat_lead_has_no_amplitudes() -> None:
    signal = np.rint(synthetic_ecg(R) * 1000).astype(np.int16)
    signal[0, 6] = 5
    found = analyse(signal, 5000, 4095)
    record = dict(zip(RECORD_FEATURES, found.record_features[0].tolist(), strict=True))
    assert np.isnan(record["r_v1_mv"])
    assert np.isfinite(record["r_v2_mv"])


@pytest.mark.parametrize("detector", [name for name in DETECTORS if name != "beatray"])
def test_neurokit_gives_the_same_beats_and_waves_where_it_is_asked_for(detector: Detector) -> None:
    signal = np.rint(synthetic_ecg(R) * 1000).astype(np.int16)
    plain, theirs = analyse(signal, 5000, 4095), analyse(signal, 5000, 4095, AnalysisSettings(detector))
    assert np.abs(plain.r_peaks[0] - theirs.r_peaks[0]).max() <= 3
    late = signal.copy()
    late[:, 1] = np.roll(signal[:, 1], 100)  # the only lead that NeuroKit2 reads
    behind = np.median(analyse(late, 5000, 4095, AnalysisSettings(detector)).r_peaks[0] - plain.r_peaks[0])
    assert behind < 50 if detector.startswith("beatray") else behind > 50
    assert plain.waves[0].tobytes() != theirs.waves[0].tobytes()
    both = (plain.waves[0]["t_peak"] >= 0) & (theirs.waves[0]["t_peak"] >= 0)
    assert both.sum() >= 5 and np.abs(plain.waves[0]["t_peak"] - theirs.waves[0]["t_peak"])[both].max() <= 20
    silent = analyse(np.zeros((1, 12, 5000), np.int16), 5000, 4095, AnalysisSettings(detector))
    assert len(silent.r_peaks[0]) == 0


def test_the_two_methods_of_neurokit_differ_and_both_keep_the_order_of_a_beat() -> None:
    signal = np.rint(synthetic_ecg(R) * 1000 + np.random.default_rng(1).normal(0, 60, (1, 12, 5000))).astype(np.int16)
    found = [
        analyse(signal, 5000, 4095, AnalysisSettings(name)).waves[0] for name in ("beatray+prominence", "beatray+dwt")
    ]
    assert found[0].tobytes() != found[1].tobytes()
    for waves in found:
        for beat in waves:
            there = [beat[name] for name in FIELDS if beat[name] >= 0]
            assert there == sorted(there)


def test_a_boundary_out_of_order_is_left_out_and_the_qrs_stays() -> None:
    waves = np.array([(10, 30, 60, 50, 70, 90, 80, 120, 140), (60, 40, -1, 50, 70, 60, 100, 130, 120)], BEAT_WAVES)
    assert neurokit._ordered(waves).tolist() == [
        (10, 30, -1, 50, 70, 90, -1, 120, 140),
        (-1, 40, -1, 50, 70, -1, 100, 130, -1),
    ]


def test_heart_rate_variability_of_neurokit_is_that_of_the_definitions() -> None:
    """Task Force, Circulation 1996, 93:1043, table 1: SDNN, RMSSD, and the share of differences beyond 50 ms."""
    r = np.array([300, 730, 1180, 1560, 2100, 2530, 2890, 3400, 3850, 4300], np.int32)
    rr_ms = np.diff(r) * 2.0
    three = neurokit.hrv([r, r[:2], r[:3]], 500)
    known = dict(zip(HRV_FEATURES, three[0].tolist(), strict=True))
    assert known["HRV_MeanNN"] == pytest.approx(rr_ms.mean())
    assert known["HRV_SDNN"] == pytest.approx(rr_ms.std(ddof=1))
    assert known["HRV_RMSSD"] == pytest.approx(np.sqrt(np.mean(np.diff(rr_ms) ** 2)))
    assert known["HRV_MinNN"] == rr_ms.min() and known["HRV_MaxNN"] == rr_ms.max()
    assert np.isfinite(three[0]).all()
    assert np.isnan(three[1]).all()
    assert three[2][HRV_FEATURES.index("HRV_MeanNN")] == pytest.approx(880.0)


def test_quality_and_variability_of_neurokit_are_added_and_change_nothing_else() -> None:
    signal, lengths, masks = _rows()
    signal, lengths, masks = signal[18:24], lengths[18:24], masks[18:24]
    signal[0, 1] = np.cumsum(np.random.default_rng(3).normal(0, 50, 5000))  # the lead that NeuroKit2 reads
    plain = analyse(signal, lengths, masks)
    both = analyse(signal, lengths, masks, AnalysisSettings(quality="beatray+neurokit", hrv="neurokit"))
    assert both.record_feature_names == (*RECORD_FEATURES, *HRV_FEATURES)
    assert both.record_features.shape == (6, len(both.record_feature_names))
    assert both.record_features[:, : len(RECORD_FEATURES)].tobytes() == plain.record_features.tobytes()
    assert (both.flags & ~Flag.NEUROKIT_UNACCEPTABLE == plain.flags).all() and (plain.flags < 4096).all()
    refused = both.flags & Flag.NEUROKIT_UNACCEPTABLE != 0
    assert refused[[0, 2, 3]].all()  # drift, zeros, no samples
    assert not refused[[1, 4]].any()
    mean_nn, enough = both.record_features[:, len(RECORD_FEATURES)], [len(r) >= 3 for r in plain.r_peaks]
    assert (np.isfinite(mean_nn) == enough).all()
    rr_ms = 1e3 * plain.record_features[:, RECORD_FEATURES.index("rr_mean_s")]
    assert mean_nn[enough] == pytest.approx(rr_ms[enough], rel=1e-5)


def test_empty_batch_and_bad_arguments() -> None:
    assert analyse(np.zeros((0, 12, 5000), np.int16), [], []).record_features.shape == (0, len(RECORD_FEATURES))
    with pytest.raises(ValueError, match="detector must be one of"):
        AnalysisSettings("other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch, 12, time"):
        analyse(np.zeros((1, 8, 5000), np.int16), 5000, 255)


def test_a_shared_thinning_out_changes_nothing() -> None:
    signal, lengths, masks = _rows()
    x_mv = signal * np.float32(1e-3)
    low_mv = decimate(x_mv, 4, tuple(range(12)))
    kept = low_mv.copy()
    alone = find_r_peaks(x_mv, 500, n_samples=lengths, lead_mask=masks)
    shared = find_r_peaks(x_mv, 500, n_samples=lengths, lead_mask=masks, low_mv_blt=low_mv)
    assert low_mv.tobytes() == kept.tobytes()
    assert all(one.tobytes() == other.tobytes() for one, other in zip(alone, shared, strict=True))
    waves = find_waves(x_mv, 500, alone, n_samples=lengths, lead_mask=masks)
    by_itself = assess(x_mv, lengths, masks, r_peaks=alone, waves=waves)
    given = assess(x_mv, lengths, masks, r_peaks=alone, waves=waves, low_mv_blt=low_mv)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(by_itself, given, strict=True))
