"""AAMI beat classes: the mapping, windows as a corpus row gives them, training on real annotated recordings, use in the
objective, and an artifact that cannot be swapped unseen."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beatray.beat_classifier import folder
from beatray.beat_classifier.annotations import CLASS_OF, JITTER, SYMBOLS_OF, read_beats
from beatray.beat_classifier.fit import FitSettings, fit
from beatray.beat_classifier.labels import BeatLabels
from beatray.beat_classifier.network import BEFORE, CLASSES, WINDOW, BeatNet, cut_windows, rr_ratios
from beatray.cli import main
from beatray.errors import CheckpointError, SettingsError
from beatray.ingest.formats.wfdb_annotation import SYMBOLS
from beatray.ingest.tree import open_tree
from beatray.models.registry import build_encoder
from beatray.objectives.beat_ssl import BeatSsl
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.registry import build_objective
from beatray.preprocess import prepare
from beatray.train.composed import pretrain_settings
from beatray.train.prepare import resolved
from beatray.train.run_spec import build_model
from stepping import step_of, views_of

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def mitdb(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records 100, 106 and 217 of the MIT-BIH Arrhythmia Database."""
    folder = tmp_path_factory.mktemp("mitdb")
    with tarfile.open(data_dir / "misc" / "mitdb" / "mitdb_dev.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "mitdb_dev"


@pytest.fixture(scope="module")
def artifact(mitdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "beats"
    assert main(["beats", "train", str(mitdb), "--out", str(out), "--epochs", "4"]) == 0
    return out


def test_the_mapping_covers_the_beats_and_nothing_else() -> None:
    """The beat symbols of the WFDB annotation codes; every other symbol marks something that is no beat."""
    beats = set("NLRBAaJSVrFejnE/fQ?")
    assert set(CLASS_OF) == beats <= set(SYMBOLS)
    assert sum(len(symbols) for symbols in SYMBOLS_OF.values()) == len(beats)
    # de Chazal et al. 2004, table 1
    published = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
    assert all(CLASSES[CLASS_OF[symbol]] == name for name, symbols in published.items() for symbol in symbols)
    assert not set('!"~+|[]x()pt') & set(CLASS_OF)


def test_beats_of_real_records_are_the_published_ones(mitdb: Path) -> None:
    """Counts of the database's own table: 100 has 2239 N, 33 A, 1 V; 106 1507 N, 520 V; 217 244 N, 162 V, 1542 paced,
    260 fusions of paced and normal."""
    tree = open_tree(str(mitdb))
    for name, expected in (
        ("100", [2239, 33, 1, 0, 0]),
        ("106", [1507, 0, 520, 0, 0]),
        ("217", [244, 0, 162, 0, 1802]),
    ):
        beats = read_beats(tree, f"{name}.hea", ("II",))
        assert beats is not None
        assert np.bincount(beats.kind, minlength=5).tolist() == expected
        assert beats.windows.shape == (sum(expected), 1, WINDOW + 2 * JITTER) and beats.rr.shape == (sum(expected), 2)
        assert np.isfinite(beats.windows).all() and np.abs(beats.windows).max() <= 5.0
    one = read_beats(tree, "100.hea", ("II",))
    assert one is not None
    middle = one.windows[one.kind == 0, 0, JITTER : JITTER + WINDOW].mean(0)
    assert abs(int(middle.argmax()) - BEFORE) <= 5 and middle.max() > 0.5  # the R-peak lies where it should
    # premature beats come early and are followed by a pause
    early, normal = one.rr[one.kind == 1], one.rr[one.kind == 0]
    assert np.median(early[:, 0]) < 0.9 < np.median(normal[:, 0]) < 1.1
    assert np.median(early[:, 1]) > 1.05
    two = read_beats(tree, "106.hea", ("II", "V1"))
    assert two is not None and two.windows.shape[1] == 2
    assert read_beats(tree, "100.hea", ("II", "V1")) is None  # 100 has V5 beside MLII


def test_training_and_use_see_the_same_window() -> None:
    """A beat of a corpus row gives the window and the RR ratios that the same beat of a long recording gives."""
    rng = np.random.default_rng(0)
    signal_uv = torch.from_numpy(rng.normal(0, 300, (3, 12, 5000)).cumsum(-1).clip(-3e4, 3e4)).to(torch.int16)
    x_mv = prepare(signal_uv[:, 1:2])
    owner, peak = torch.tensor([0, 2, 2]), torch.tensor([700, 20, 4990])
    windows = cut_windows(x_mv, owner, peak)
    assert windows.shape == (3, 1, WINDOW)
    torch.testing.assert_close(windows[0, 0], x_mv[0, 0, 700 - BEFORE : 700 - BEFORE + WINDOW])
    assert windows[1, 0, : BEFORE - 20].abs().max() == 0 and windows[2, 0, BEFORE + 10 :].abs().max() == 0
    assert float(windows[1, 0, BEFORE]) == float(x_mv[2, 0, 20])
    peaks = torch.tensor([[100, 500, 700, 1100, 1500, -1, -1], [300, -1, -1, -1, -1, -1, -1]])
    ratios = rr_ratios(peaks)
    assert ratios[0, :5].tolist() == [[1.0, 1.0], [1.0, 0.5], [0.5, 1.0], [1.0, 1.0], [1.0, 1.0]]
    assert ratios[1].tolist() == [[1.0, 1.0]] * 7
    assert torch.equal(rr_ratios(peaks[:, :1]), torch.ones(2, 1, 2))


def test_real_beats_are_learnt_and_the_weakness_is_said(artifact: Path) -> None:
    about = json.loads((artifact / "beats.json").read_text())
    confusion = np.array(about["confusion"])
    assert about["split"] == "time" and "no estimate for anybody else" in about["split_means"]
    assert confusion.sum() == sum(about["test_beats"].values()) == 1952
    assert confusion[2, 2] / confusion[2].sum() > 0.8 and confusion[0, 0] / confusion[0].sum() > 0.8
    assert about["sensitivity"]["V"] == pytest.approx(confusion[2, 2] / confusion[2].sum(), abs=1e-4)
    assert about["known"] == [True, True, True, False, True]  # no fusion beat in these three
    assert confusion[:, 3].sum() == 0 and about["sensitivity"]["F"] is None
    assert about["train_beats"]["N"] > 2000 and about["symbols"]["Q"] == ["/", "f", "Q", "?"]


def test_the_fit_is_deterministic_and_needs_two_classes(mitdb: Path) -> None:
    tree = open_tree(str(mitdb))
    beats = read_beats(tree, "106.hea", ("II",))
    assert beats is not None
    settings = FitSettings(epochs=1)
    first, second = (fit([beats], ("II",), settings) for _ in range(2))
    for a, b in zip(first[0].net.state_dict().values(), second[0].net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first[1] == second[1]
    with pytest.raises(ValueError, match="two classes with 600 beats each"):
        fit([beats], ("II",), FitSettings(epochs=1, least=600))
    many = [type(beats)(f"r{n:02d}", beats.windows[:200], beats.rr[:200], beats.kind[:200]) for n in range(10)]
    report = fit(many, ("II",), FitSettings(epochs=1, least=1))[1]
    assert report["split"] == "record" and sum(report["test_beats"].values()) == 400


def batch(records: int = 5) -> dict[str, torch.Tensor]:
    """Slow waves with a narrow spike at each beat; lead II of the last record is flat."""
    rng = np.random.default_rng(1)
    peaks = np.full((records, 14), -1)
    signal = rng.normal(0, 20, (records, 12, 5000))
    for b in range(records):
        at = np.arange(200 + 17 * b, 5000, 400 + 30 * b)[:14]
        peaks[b, : len(at)] = at
        for p in at:
            signal[b, :, p - 15 : p + 15] += 900 * np.hanning(30)
    signal[-1, 1] = 0
    return {
        "signal_uv": torch.from_numpy(signal).to(torch.int16),
        "n_samples": torch.full((records,), 5000),
        "record_key": torch.arange(records),
        "r_peaks": torch.from_numpy(peaks),
    }


def test_labels_in_the_objective(artifact: Path) -> None:
    settings: dict[str, Any] = {
        "name": "beat_ssl",
        "rhythm": "hard",
        "beat_positives": "aami",
        "beat_classifier": str(artifact),
        "augment": {"crop_seconds": 5.0},
    }
    table = {"names": [], "mean": [], "sd": [], "min": [], "max": []}
    made = build_model(settings, {"name": "tiny"}, 0, {"record": table, "beat": table})
    assert "beat_class" not in made.reads and "r_peaks" in made.reads
    assert not [name for name in made.state_dict() if "label" in name]
    views = views_of(made, batch())
    classes = views["beat_class"]
    assert classes.shape == (5, 4) and set(classes.unique().tolist()) <= {-1, 0, 1, 2}
    assert (classes[-1] == -1).all() and (classes[:-1] >= 0).any()
    alone = views_of(made, {name: value[2:3] for name, value in batch().items()})
    assert torch.equal(alone["beat_class"][0], classes[2])
    given = batch()
    lost = {**given, "signal_uv": torch.zeros_like(given["signal_uv"]), "recorded_uv": given["signal_uv"]}
    assert torch.equal(views_of(made, lost)["beat_class"], classes)  # of the recording, whatever leads a view has left
    result = step_of(made, batch())
    result.loss.backward()
    assert torch.isfinite(result.loss) and result.counts["beats"] == (views["beat_index"] >= 0).sum()
    with pytest.raises(ValueError, match="needs beat=hard and beat_classifier=FOLDER"):
        bare = {name: value for name, value in settings.items() if name != "name"}
        build_objective("beat_ssl", build_encoder("tiny"), {**bare, "beat_classifier": None})
    for wrong, overrides in (
        ({"beat_positives": "mit"}, "not one of same_record, clusters, aami"),
        ({"beat": "soft_1"}, "needs beat=hard"),
    ):
        with pytest.raises(ValueError, match=overrides):
            build_model({**settings, **wrong}, {"name": "tiny"}, 0, {"record": table, "beat": table})


def test_what_is_not_sure_is_unknown() -> None:
    labels = BeatLabels(BeatNet(1), ("II",), (True, True, True, False, True), 0.6)
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0, 0, 9, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 9, 5], [0, 0, 5, 9, 0]])
    # N; V; not sure; F is not known, and Q is not compared; F is not known, so V
    assert labels.decide(logits).tolist() == [0, 2, -1, -1, 2]


def test_another_classifier_is_not_taken_for_the_first(artifact: Path, tmp_path: Path) -> None:
    digest = folder.digest_of(str(artifact))
    assert folder.load(str(artifact), digest).leads == ("II",)
    with pytest.raises(CheckpointError, match="not the one this run began with"):
        folder.load(str(artifact), "0" * 64)
    labels = folder.load(str(artifact))
    folder.write(tmp_path / "other", BeatLabels(BeatNet(1), labels.leads, labels.known, 0.6), {})
    assert folder.digest_of(str(tmp_path / "other")) != digest
    (tmp_path / "other" / "beats.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        folder.load(str(tmp_path / "other"))


def test_a_run_names_the_classifier_it_used(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(artifact.parent)
    overrides = ["corpus=/c", "objective.beat_positives=aami", f"objective.beat_classifier={artifact.name}"]
    objective = resolved(pretrain_settings(overrides)).objective
    assert objective["beat_classifier"] == str(artifact)  # workers do not share the driver's folder
    assert objective["beat_classifier_digest"] == folder.digest_of(str(artifact))
    plain = pretrain_settings(["corpus=/c"])
    assert resolved(plain) == plain
    overrides[2] = "objective.beat_classifier=nowhere"
    with pytest.raises(SettingsError, match=r"objective\.beat_classifier=nowhere: .*nowhere"):
        resolved(pretrain_settings(overrides))


def test_wrong_arguments_are_answered(mitdb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, message in (
        ([str(mitdb), "--out", str(mitdb)], "exists already"),
        ([str(mitdb), "--out", str(tmp_path / "x"), "--leads", "MLII"], "one or two of I, II"),
        ([str(mitdb), "--out", str(tmp_path / "x"), "--leads", "I,V4"], "no WFDB recording with leads I, V4"),
        ([str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")], "nowhere"),
    ):
        assert main(["beats", "train", *overrides]) == 2
        assert message in capsys.readouterr().err


def test_a_classifier_that_is_not_used_is_named(caplog: pytest.LogCaptureFixture) -> None:
    settings = BeatSslSettings(beat="hard", beat_positives="same_record", beat_classifier="/beats")
    assert BeatSsl.resolved(settings) == settings
    assert "objective.beat_classifier is not used: beat_positives is same_record" in caplog.text
