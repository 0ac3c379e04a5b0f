"""What the hand-made record features are worth: a logistic regression on them finds PTB-XL's superclasses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from reference_beats import SUPERCLASSES, read_ptbxl
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from beatray.dsp.analyse import Analysis, analyse
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)


@pytest.fixture(scope="module")
def ptbxl(ptbxl_dir: Path) -> tuple[pd.DataFrame, Analysis, NDArray[np.bool_]]:
    table, signal_mv, labels = read_ptbxl(ptbxl_dir)
    signal_uv = np.rint(signal_mv * 1000).astype(np.int16)
    return table, analyse(signal_uv, 5000, 4095), labels


def test_superclasses_by_logistic_regression(ptbxl: tuple[pd.DataFrame, Analysis, NDArray[np.bool_]]) -> None:
    """Folds 1-7 train, 8-9 test; the penalty is chosen within folds 1-7, so the test folds are looked at once."""
    table, analysis, labels = ptbxl
    fold = table["strat_fold"].to_numpy()
    known = labels.any(axis=1)
    train, test = known & (fold <= 7), known & (fold >= 8) & (fold <= 9)
    assert (train.sum(), test.sum()) == (301, 112)
    x = analysis.record_features
    inner = {c: _cross_validated(x[train], labels[train], fold[train], c) for c in STRENGTHS}
    best = max(inner, key=lambda c: inner[c])
    scores = [
        roc_auc_score(labels[test, k], _model(best).fit(x[train], labels[train, k]).predict_proba(x[test])[:, 1])
        for k in range(len(SUPERCLASSES))
    ]
    detail = ", ".join(f"{name} {score:.3f}" for name, score in zip(SUPERCLASSES, scores, strict=True))
    print(f"macro AUROC {np.mean(scores):.3f} ({detail}); C = {best}, inner {inner[best]:.3f}")
    assert np.mean(scores) >= 0.88


def _model(c: float) -> Pipeline:
    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(C=c, max_iter=2000))


def _cross_validated(x: NDArray[np.float32], y: NDArray[np.bool_], fold: NDArray[np.int64], c: float) -> float:
    scores = []
    for k in range(y.shape[1]):
        predicted = np.zeros(len(y))
        for left_out in np.unique(fold):
            inside, outside = fold != left_out, fold == left_out
            predicted[outside] = _model(c).fit(x[inside], y[inside, k]).predict_proba(x[outside])[:, 1]
        scores.append(roc_auc_score(y[:, k], predicted))
    return float(np.mean(scores))


def test_values_are_physiological(ptbxl: tuple[pd.DataFrame, Analysis, NDArray[np.bool_]]) -> None:
    """Medians over the collection against textbook normal ranges."""
    _, analysis, _ = ptbxl
    median = dict(zip(RECORD_FEATURES, np.nanmedian(analysis.record_features, axis=0), strict=True))
    limits = {
        "heart_rate_per_10s": (10, 14),
        "p_s": (0.08, 0.13),
        "pr_s": (0.13, 0.19),
        "qrs_s": (0.075, 0.105),
        "qtc_fridericia_s": (0.38, 0.43),
        "qrs_axis_half_turns": (0, 0.5),
        "t_axis_half_turns": (0, 0.5),
        "r_ii_mv": (0.5, 1.3),
        "s_v1_mv": (-1.3, -0.4),
        "t_ii_mv": (0.1, 0.4),
        "st_v5_mv": (-0.05, 0.05),
    }
    for name, (low, high) in limits.items():
        assert low <= median[name] <= high, f"{name}: {median[name]}"
    assert np.isfinite(analysis.record_features).mean() > 0.97


def test_raw_cosine_is_squeezed_below_one(ptbxl: tuple[pd.DataFrame, Analysis, NDArray[np.bool_]]) -> None:
    """The soft targets raise this cosine to the 50th power, which needs it close to 1 but not at 1."""
    x = ptbxl[1].record_features.astype(np.float64)
    x = np.where(np.isfinite(x), x, np.nanmean(x, axis=0))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    quartiles = np.percentile((x @ x.T)[np.triu_indices(len(x), 1)], [25, 50, 75])
    print("cosine quartiles", np.round(quartiles, 4))
    assert 0.96 <= quartiles[0] <= quartiles[2] <= 0.998


def test_fibrillation_shows_in_the_features(ptbxl: tuple[pd.DataFrame, Analysis, NDArray[np.bool_]]) -> None:
    table, analysis, _ = ptbxl
    fibrillation = table["scp_codes"].str.contains("'AFIB'").to_numpy()
    sinus = table["scp_codes"].str.contains("'SR'").to_numpy()
    column = {name: analysis.record_features[:, k] for k, name in enumerate(RECORD_FEATURES)}
    assert fibrillation.sum() >= 10
    assert np.nanmedian(column["rr_rmssd_s"][fibrillation]) > 3 * np.nanmedian(column["rr_rmssd_s"][sinus])
    assert np.nanmean(column["p_fraction"][fibrillation]) < 0.25
    assert np.nanmean(column["p_fraction"][sinus]) > 0.93


def test_beat_features_mark_early_beats(ptbxl: tuple[pd.DataFrame, Analysis, NDArray[np.bool_]]) -> None:
    """Recordings with ventricular ectopy hold beats that come early and are wide; sinus recordings hardly any."""
    table, analysis, _ = ptbxl
    ratio, width = BEAT_FEATURES.index("rr_ratio"), BEAT_FEATURES.index("qrs_s")
    early = np.array([np.any((b[:, ratio] < 0.7) & (b[:, width] > 0.11)) for b in analysis.beat_features])
    ectopic = table["scp_codes"].str.contains("'PVC'").to_numpy()
    plain = table["scp_codes"].str.contains("'NORM'").to_numpy() & ~ectopic
    assert ectopic.sum() >= 10
    assert early[ectopic].mean() > 0.5
    assert early[plain].mean() < 0.02
