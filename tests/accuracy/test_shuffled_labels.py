"""With permuted labels every probe falls to chance, and with true ones it does not: no label leaks into the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beatray.corpus.reader import Rows
from beatray.evaluate import segment
from beatray.evaluate.classify import shuffled_labels
from beatray.evaluate.encoders import EncoderSpec, build, feature_maps, pooled_features, prepared
from beatray.evaluate.label_spaces import superclass_targets
from beatray.evaluate.labels import wave_masks
from beatray.evaluate.metrics import macro_auroc, pooled_f1, segment_counts
from beatray.evaluate.probes import ProbeResult, chosen_probe, inner_folds, probe
from beatray.evaluate.settings import ClassifySettings, EvaluateSettings, FitSettings
from evaluation_rows import read_rows

SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"
PERMUTATIONS = 8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ptbxl_rows() -> Rows:
    every = read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 1000))
    return every.take(superclass_targets(every.labels).any(axis=1))


def probed(rows: Rows, features: np.ndarray, truth: np.ndarray) -> ProbeResult:
    train, test = np.flatnonzero(rows.fold < 8), np.flatnonzero(rows.fold >= 8)
    return probe(features, truth, rows.patient_id, train, test, (1e-3, 1e-2, 1e-1), 4, seed=0)


def scored(rows: Rows, truth: np.ndarray, result: ProbeResult) -> float:
    return macro_auroc(truth[rows.fold >= 8], result.scores).value


@pytest.mark.parametrize("source", ["measured features", "random encoder"])
def test_the_probe_finds_diagnoses_and_nothing_in_permuted_labels(ptbxl_rows: Rows, source: str) -> None:
    rows = ptbxl_rows
    truth = superclass_targets(rows.labels)
    features = rows.record_features
    if source == "random encoder":
        x_mv = prepared(rows.signal_uv, rows.n_samples)
        features = pooled_features(build(EncoderSpec("tiny"), 0), x_mv, rows.n_samples.astype(np.int64))
    result = probed(rows, features, truth)
    assert scored(rows, truth, result) > 0.7
    train = np.flatnonzero(rows.fold < 8)
    permuted = [shuffled_labels(truth, train, seed) for seed in range(PERMUTATIONS)]
    assert all(np.array_equal(p.sum(axis=0), truth.sum(axis=0)) for p in permuted)
    by_chance = [probed(rows, features, p) for p in permuted]
    assert abs(np.mean([scored(rows, truth, chance) for chance in by_chance]) - 0.5) < 0.1
    assert abs(np.mean([chance.inner_auroc for chance in by_chance]) - 0.5) < 0.1


@pytest.mark.parametrize("protocol", ["mlp", "knn"])
def test_the_other_probes_find_diagnoses_and_nothing_in_permuted_labels(ptbxl_rows: Rows, protocol: str) -> None:
    rows = ptbxl_rows
    truth, features = superclass_targets(rows.labels), rows.record_features
    train, test = np.flatnonzero(rows.fold < 8), np.flatnonzero(rows.fold >= 8)
    short = FitSettings(steps=100, batch_size=64, head_lr=1e-3)
    settings = EvaluateSettings(classify=ClassifySettings(mlp=short, mlp_weight_decays=(0.1,)))

    def reached(labels: np.ndarray, seed: int) -> float:
        folds = inner_folds(rows.patient_id, train, 4, seed)
        found = chosen_probe(protocol, features, labels, train, folds, settings, seed)
        return macro_auroc(truth[test], found.scores(features[test])).value

    assert reached(truth, 0) > 0.7
    chance = [reached(shuffled_labels(truth, train, seed), seed) for seed in range(PERMUTATIONS)]
    assert abs(np.mean(chance) - 0.5) < 0.1


def test_test_labels_do_not_reach_the_probe(ptbxl_rows: Rows) -> None:
    truth = superclass_targets(ptbxl_rows.labels)
    hidden = truth.copy()
    hidden[ptbxl_rows.fold >= 8] = ~truth[ptbxl_rows.fold >= 8]
    first = probed(ptbxl_rows, ptbxl_rows.record_features, truth)
    second = probed(ptbxl_rows, ptbxl_rows.record_features, hidden)
    assert np.array_equal(first.scores, second.scores) and np.array_equal(first.thresholds, second.thresholds)


def test_the_decoder_finds_waves_and_little_in_masks_of_other_records() -> None:
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 60))
    encoder = build(EncoderSpec("tiny"), 0)
    maps = feature_maps(encoder, prepared(rows.signal_uv, rows.n_samples))
    target = wave_masks(rows.waves)
    train, test = np.arange(40), np.arange(40, 60)
    settings = FitSettings(steps=80, head_lr=5e-3)

    def reached(train_target: np.ndarray) -> float:
        decoder = segment.train_decoder(maps[train], train_target, encoder.stages[-1], settings, seed=0)
        return pooled_f1(segment_counts(target[test], segment.predict_from_maps(decoder, maps[test], 5000))).value

    assert reached(target[train]) > 0.8
    assert reached(np.random.default_rng(0).permutation(target[train])) < 0.35
