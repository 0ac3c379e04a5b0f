"""`beatray.EcgEncoder` on real recordings: the ingest's path, scikit-learn's manners, errors that name the cause."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import decimate, resample_poly
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import beatray
from beatray.commands.demo import SAMPLE
from beatray.infer.transform import window_number, windows_of
from beatray.ingest.canonical import to_windows
from beatray.ingest.formats.leads import compute_limb_leads
from beatray.ingest.sources.ludb import find, read
from beatray.ingest.tree import open_tree
from beatray.models import encoder_folder
from beatray.models.registry import build_encoder
from beatray.record import ALL_LEADS_MASK, Record
from beatray.storage.store import Store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("run"))
    torch.manual_seed(3)
    encoder = build_encoder("tiny").train()
    for _ in range(3):
        encoder(torch.randn(4, 12, 2000))
    encoder_folder.export_encoder(Store(folder), encoder, {"name": "tiny", "settings": {}, "recipe": {}})
    return folder


@pytest.fixture(scope="module")
def ecgs() -> NDArray[np.float64]:
    """24 real recordings, 12 leads of 10 s at 500 Hz, mV."""
    tree = open_tree(str(SAMPLE / "ludb-sample.zip"))
    return np.stack([record.signal_mv for item in find(tree)[:24] for record in read(tree, item)])


@pytest.fixture(scope="module")
def vectors(path: str, ecgs: NDArray[np.float64]) -> NDArray[np.float32]:
    return beatray.EcgEncoder(path).transform(ecgs)


def same(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_one_recording_many_and_a_list_give_the_same_rows(
    path: str, ecgs: NDArray[np.float64], vectors: NDArray[np.float32]
) -> None:
    encoder = beatray.EcgEncoder(path, batch_size=5)
    assert vectors.shape == (24, 128) and vectors.dtype == np.float32
    assert len(np.unique(vectors.round(4), axis=0)) == 24
    same(encoder.transform(ecgs), vectors)
    same(encoder.transform(ecgs[7]), vectors[7:8])
    same(encoder.transform(list(ecgs[:6])), vectors[:6])
    same(encoder.transform(ecgs[:2].tolist()), vectors[:2])
    same(encoder.transform(torch.from_numpy(ecgs[:3])), vectors[:3])
    assert encoder.transform(ecgs[:0]).shape == encoder.transform([]).shape == (0, 128)


def test_lengths_may_differ_and_long_recordings_are_the_mean_of_their_windows(
    path: str, ecgs: NDArray[np.float64], vectors: NDArray[np.float32]
) -> None:
    encoder = beatray.EcgEncoder(path, batch_size=4)
    long = np.concatenate([ecgs[0], ecgs[1], ecgs[2][:, :2400]], axis=1)  # the last 4.8 s are too short for a window
    mixed = [ecgs[3], long, ecgs[4][:, :3000], ecgs[5]]
    out = encoder.transform(mixed)
    same(out[[0, 3]], vectors[[3, 5]])
    same(out[1], vectors[:2].mean(axis=0))
    same(out[2], encoder.transform(ecgs[4][:, :3000])[0])
    assert np.abs(out[2] - vectors[4]).max() > 1e-3


def test_other_rates_are_resampled_and_must_be_told(
    path: str, ecgs: NDArray[np.float64], vectors: NDArray[np.float32]
) -> None:
    slow = decimate(ecgs, 2, axis=-1)

    def distance(found: NDArray[np.float32]) -> float:
        spread = vectors.std(axis=0) + 1e-9
        return float(np.median(np.abs(found - vectors) / spread))

    difference = distance(beatray.EcgEncoder(path).transform(slow, rate_hz=250))
    assert difference < 0.05
    same(
        beatray.EcgEncoder(path, rate_hz=250).transform(slow[:2]),
        beatray.EcgEncoder(path).transform(slow[:2], rate_hz=250.0),
    )
    doubled = np.concatenate([slow, slow], axis=-1)  # the same samples, taken for 500 Hz
    assert distance(beatray.EcgEncoder(path).transform(doubled)) > 5 * difference


def test_a_third_of_a_kilohertz_may_be_given_as_any_of_its_decimals(path: str, ecgs: NDArray[np.float64]) -> None:
    """1000/3 Hz is no decimal: three samples are 9 ms, whatever digits stand for it."""
    slow = resample_poly(ecgs[:2], 2, 3, axis=-1, padtype="line")
    encoder = beatray.EcgEncoder(path)
    exact = encoder.transform(slow, rate_hz=1000 / 3)
    for rate_hz in (333.333, 333.3333333):
        np.testing.assert_array_equal(encoder.transform(slow, rate_hz=rate_hz), exact)


def test_leads_and_samples_that_were_not_recorded(
    path: str, ecgs: NDArray[np.float64], vectors: NDArray[np.float32]
) -> None:
    encoder = beatray.EcgEncoder(path)
    gaps = ecgs[:4].copy()
    gaps[:, 1, 1000:1008] = np.nan
    assert np.abs(encoder.transform(gaps) - vectors[:4]).max() < 0.01 * np.abs(vectors).max()
    without, computed = ecgs[:4].copy(), ecgs[:4].copy()
    without[:, 2], computed[:, 2] = np.nan, ecgs[:4, 1] - ecgs[:4, 0]
    same(encoder.transform(without), encoder.transform(computed))
    lost, silent = ecgs[:4].copy(), ecgs[:4].copy()
    lost[:, 8, 100:], silent[:, 8] = np.nan, 0.0
    with pytest.warns(UserWarning, match=r"read as zero: V3 in 4 of 6 recordings"):
        same(encoder.transform([*lost, *ecgs[:2]])[:4], encoder.transform(silent))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # III is computed: nothing is missing from the vector
        encoder.transform(without)
    with pytest.warns(UserWarning, match=r"About 250 Hz would fit"):
        encoder.transform(decimate(ecgs, 2, axis=-1))


def test_an_array_of_few_leads_is_read_as_a_file_of_them(path: str, ecgs: NDArray[np.float64]) -> None:
    """NaN throughout is a lead that was not recorded, however many there are: a file would not have it at all."""
    few = np.full_like(ecgs[:2], np.nan)
    few[:, [0, 1, 6]] = ecgs[:2, [0, 1, 6]]  # I, II, V1
    for recording, full in zip(few, ecgs, strict=False):
        signal = np.zeros_like(full)
        signal[[0, 1, 6]] = full[[0, 1, 6]]
        mask = compute_limb_leads(signal, 0b1000011, [])
        (as_file,) = to_windows(Record("files/a", "files", signal, 500.0, mask))
        (as_array,) = windows_of(recording, 500.0, "a")
        assert as_array.lead_mask == as_file.lead_mask == 0b1111111
        np.testing.assert_array_equal(as_array.signal_uv, as_file.signal_uv)
    with pytest.warns(UserWarning, match=r"read as zero: V2 in 2, .*V6 in 2 of 2 recordings"):
        assert np.isfinite(beatray.EcgEncoder(path).transform(few)).all()


def test_a_long_recording_is_judged_window_by_window(tmp_path: Path, ecgs: NDArray[np.float64]) -> None:
    """As the ingest does it: an electrode that falls off for a second costs the lead in those 10 s alone."""
    three = np.concatenate(list(ecgs[:3]), axis=1)
    three[6, 5500:6000] = np.nan
    masks = [window.lead_mask for window in windows_of(three, 500.0, "r")]
    assert masks == [ALL_LEADS_MASK, ALL_LEADS_MASK & ~(1 << 6), ALL_LEADS_MASK]
    three[6:, 5500:6000] = np.nan  # without a chest lead a window is none
    left = windows_of(three, 500.0, "r")
    assert [window_number(window) for window in left] == [0, 2]
    whole = [windows_of(ecgs[k], 500.0, "r")[0].signal_uv for k in (0, 2)]
    np.testing.assert_array_equal([window.signal_uv for window in left], whole)
    three[3] = np.nan  # never recorded: computed from I and II
    assert [window.lead_mask for window in windows_of(three, 500.0, "r")] == [ALL_LEADS_MASK] * 2


def _cut(x_mv: NDArray[np.float64], leads: int) -> NDArray[np.float64]:
    """Without the second half of the first leads."""
    cut = x_mv.copy()
    cut[:, :leads, 2500:] = np.nan
    return cut


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:, :8], r"recording 0 has 8 leads; twelve are needed, in the order I II III"),
        (lambda x: x.transpose(0, 2, 1), r"the leads must come first. Give its transpose"),
        (lambda x: x[0, 0], r"not of shape \(5000,\)"),
        (lambda x: [x[0], x[1, 0]], r"recording 1 must be \(12, T\)"),
        (lambda x: [x[0], x[1, :, :2400]], r"recording 1: 4\.8 s, at least 5 s are needed. Is rate_hz right\?"),
        (lambda x: np.full_like(x, np.nan), r"recording 0: it holds nothing but NaN"),
        (lambda x: _cut(x, 7), r"recording 0: 7 of 12 leads have a gap"),
        (lambda x: x / 1000, r"recording 0: no lead spans 10 uV.*Are these volts\?"),
        (lambda x: x * 1000, r"Are these microvolts\?"),
        (lambda x: np.zeros_like(x), r"recording 0: no lead spans 10 uV; the largest 0 uV$"),
        (lambda x: [["a"] * 12], r"not an array of numbers"),
    ],
)
def test_errors_name_the_recording_and_the_cause(
    path: str, ecgs: NDArray[np.float64], spoil: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        beatray.EcgEncoder(path).transform(spoil(ecgs[:2]))


def test_a_rate_out_of_range_a_missing_encoder_and_small_voltages(path: str, ecgs: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"recording 0: sampling rate 5\.0 Hz, allowed 50 to 10000"):
        beatray.EcgEncoder(path).transform(ecgs[:1], rate_hz=5)
    with pytest.raises(ValueError, match="nowhere"):
        beatray.EcgEncoder("/nowhere").transform(ecgs[:1])
    with pytest.warns(UserWarning, match=r"recording 0 spans only 0\.0.* mV. Are these volts\?"):
        beatray.EcgEncoder(path).transform(ecgs[:1] / 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beatray.EcgEncoder(path).transform(ecgs)


def test_it_behaves_as_scikit_learn_expects(path: str, ecgs: NDArray[np.float64], vectors: NDArray[np.float32]) -> None:
    encoder = beatray.EcgEncoder(path, rate_hz=500, batch_size=7)
    assert encoder.get_params() == {"path": path, "rate_hz": 500, "batch_size": 7, "device": "cpu"}
    copy = clone(encoder.fit(ecgs))
    assert copy.get_params() == encoder.get_params() and not hasattr(copy, "_loaded")
    same(encoder.fit_transform(ecgs), vectors)
    assert list(encoder.get_feature_names_out()[[0, 127]]) == ["ecg0", "ecg127"]
    frame = beatray.EcgEncoder(path).set_output(transform="pandas").transform(ecgs)
    assert frame.shape == (24, 128) and frame.columns[5] == "ecg5"
    stored = pickle.dumps(encoder)
    assert len(stored) < 1000  # the settings alone
    same(pickle.loads(stored).transform(ecgs[:2]), vectors[:2])
    labels = np.arange(24) % 2
    model = make_pipeline(beatray.EcgEncoder(path), StandardScaler(), LogisticRegression())
    assert model.fit(ecgs, labels).predict(ecgs).shape == (24,)
    assert cross_val_score(model, ecgs, labels, cv=2).shape == (2,)
    model.set_params(ecgencoder__rate_hz=250.0)
    assert model.named_steps["ecgencoder"].rate_hz == 250.0


def test_importing_the_package_stays_light_until_the_class_is_asked_for() -> None:
    code = (
        "import sys, beatray\n"
        "assert not {'torch', 'sklearn', 'numpy', 'ray'} & set(sys.modules)\n"
        "beatray.EcgEncoder\n"
        "assert 'sklearn' in sys.modules and 'ray' not in sys.modules\n"
        "try: beatray.EcgEncoders\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "has no attribute 'EcgEncoders'" in done.stdout, done.stderr
    assert Path(beatray.__file__).name == "__init__.py"
