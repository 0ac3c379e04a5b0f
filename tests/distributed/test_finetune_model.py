"""The model folder: the model in memory, thresholds and calibration of validation alone, damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import beatray
from beatray.corpus.reader import open_corpus
from beatray.errors import CheckpointError, TrainingError
from beatray.evaluate.label_spaces import superclass_targets
from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.export.model_folder import export_model
from beatray.finetune.finish import figures, is_made, make_model, trained_model
from beatray.finetune.outputs import logits_of
from beatray.finetune.prepare import assignment
from beatray.models.calibration import Calibration, fitted
from beatray.models.model_folder import describe_model
from beatray.preprocess import prepare
from beatray.train.launch import pretrain
from beatray.train.loop import train
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec
from fewer_leads import fewer_leads, present_with
from finetuning import VARIED, prepared_of, spec_of
from pretraining import losses

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def made(tuned: Path, sample_corpus: str, pretrained: Path) -> tuple[RunSpec, dict[str, Any]]:
    spec = spec_of(sample_corpus, tuned, "all", f"encoder={pretrained}", *VARIED)
    assert not is_made(spec)
    scores = make_model(spec)
    assert is_made(spec) and scores == figures(describe_model(str(tuned / "all"))) and "test_auroc" in scores
    assert make_model(spec) == scores
    return spec, describe_model(str(tuned / "all"))


def test_the_model_folder_is_the_model_in_memory(made: tuple[RunSpec, dict[str, Any]], sample_corpus: str) -> None:
    spec, description = made
    model, head = trained_model(spec)
    assert head == description["head"] == {"name": "linear", "outputs": 5, "standardise": True}
    corpus = open_corpus(sample_corpus)
    rows = assignment(spec.settings).parts.test
    logits = logits_of(model, corpus, rows, torch.device("cpu"))
    loaded = beatray.load_model(spec.run.location)
    recordings = corpus.rows(rows)
    whole = [uv[:, :n] / 1000.0 for uv, n in zip(recordings.signal_uv, recordings.n_samples, strict=True)]
    found = loaded.predict(whole)
    expected = Calibration.from_dict(description["calibration"]).probabilities(logits)
    assert found.names == ("CD", "HYP", "MI", "NORM", "STTC") and found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.decisions is not None and found.numbers is None and found.waves is None
    np.testing.assert_array_equal(found.decisions, found.probabilities >= np.array(description["thresholds"]))
    one = loaded.predict(whole[0])
    assert one.probabilities is not None
    np.testing.assert_allclose(one.probabilities, found.probabilities[:1], atol=1e-6)
    long = loaded.predict(np.concatenate([whole[0], whole[1]], axis=1))  # 20 s: the mean over two windows
    assert whole[0].shape == whole[1].shape == (12, 5000) and long.probabilities is not None
    np.testing.assert_allclose(long.probabilities[0], found.probabilities[:2].mean(0), atol=1e-6)
    truth = superclass_targets(recordings.labels)
    area = macro_auroc(truth, found.probabilities).value
    assert description["scores"]["test"]["auroc"]["value"] == pytest.approx(area, abs=1e-9)
    assert loaded.predict(np.stack(whole)[:0]).probabilities is not None
    with pytest.raises(ValueError, match="leads must come first"):
        loaded.predict(whole[0].T)


def test_the_exported_model_gives_its_answers(
    made: tuple[RunSpec, dict[str, Any]], sample_corpus: str, tmp_path: Path
) -> None:
    spec, description = made
    rows = open_corpus(sample_corpus).rows(assignment(spec.settings).parts.test[:4])
    expected = beatray.load_model(spec.run.location).predict(rows.signal_uv / 1000.0)
    assert max(export_model(spec.run.location, tmp_path / "out").difference.values()) < 1e-4
    x_mv = prepare(torch.from_numpy(rows.signal_uv.copy()), 500.0, torch.from_numpy(rows.n_samples.astype(np.int64)))
    (found,) = torch.export.load(tmp_path / "out" / "model.pt2").module()(x_mv)
    assert expected.probabilities is not None and rows.n_samples.min() == 5000
    np.testing.assert_allclose(found.detach().numpy(), expected.probabilities, atol=1e-4)
    again = beatray.load_model(str(tmp_path / "out"))
    assert again.names == tuple(description["names"])
    np.testing.assert_array_equal(again.predict_proba(rows.signal_uv / 1000.0), expected.probabilities)


@pytest.mark.filterwarnings("ignore:leads are NaN")
@pytest.mark.parametrize("leads", [[0, 1, *range(6, 12)], [0, 1, 7], [7]])
def test_a_corpus_of_few_leads_is_learned_from(leads: list[int], sample_corpus: str, tmp_path: Path) -> None:
    """The masks come from the corpus; what was not recorded is NaN in an array and 0 for the network."""
    few = fewer_leads(sample_corpus, tmp_path / "few", leads)
    spec, found = prepared_of(few, tmp_path, "run", "train.epochs=2", "augment.lead_dropout=0.3")
    assert train(spec, Ranks())
    make_model(spec, found)
    assert all(np.isfinite(losses(tmp_path, "run")))
    test = found.parts.test[:3]
    x_mv = open_corpus(sample_corpus).rows(test).signal_uv / 1000.0
    x_mv[:, [lead for lead in range(12) if lead not in present_with(leads)]] = np.nan
    logits = logits_of(trained_model(spec)[0], open_corpus(few), test, torch.device("cpu"))
    calibration = Calibration.from_dict(describe_model(spec.run.location)["calibration"])
    answers = beatray.load_model(spec.run.location).predict_proba(x_mv)
    np.testing.assert_allclose(answers, calibration.probabilities(logits), atol=1e-6)


def test_thresholds_and_calibration_are_those_of_validation_alone(
    made: tuple[RunSpec, dict[str, Any]], sample_corpus: str
) -> None:
    spec, description = made
    found = assignment(spec.settings)
    rows = found.parts.validation
    logits = logits_of(trained_model(spec)[0], open_corpus(sample_corpus), rows, torch.device("cpu"))
    truth = found.values(rows)
    calibration = fitted("multilabel", logits, truth)
    np.testing.assert_allclose(description["calibration"]["slope"], calibration.slope, rtol=1e-6)
    np.testing.assert_allclose(
        description["thresholds"], best_thresholds(truth > 0, calibration.probabilities(logits)), rtol=1e-6
    )
    of_model = description["scores"]["validation"]["calibration"]
    assert of_model["nll"] <= of_model["nll_before"]
    records = description["records"]
    assert records == {"train": spec.rows, "validation": len(rows), "test": len(found.parts.test), "test_seen": 0}
    card = (Path(spec.run.location) / "model" / "README.md").read_text()
    assert "Not a medical device" in card and "AUROC" in card and description["manifest_hash"] in card
    of_test = description["scores"]["test"]["calibration"]
    said = ", ".join(
        f"{part} {errors['error']:.3f} ({errors['error_before']:.3f} before)"
        for part, errors in (("validation", of_model), ("test", of_test))
    )
    assert f"Expected calibration error: {said}." in card


def test_a_finished_run_without_its_checkpoints_is_left_alone(
    made: tuple[RunSpec, dict[str, Any]], sample_corpus: str, pretrained: Path
) -> None:
    spec, run = made[0], Path(made[0].run.location)
    shutil.copytree(run, run.parent / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    overrides = (f"encoder={pretrained}", *VARIED)
    bare = spec_of(sample_corpus, run.parent, "bare", *overrides)
    assert pretrain(bare).finished and make_model(bare) == make_model(spec)
    with pytest.raises(TrainingError, match="another objective or corpus"):
        pretrain(spec_of(sample_corpus, run.parent, "bare", *overrides, "hidden=4"))


def test_a_damaged_model_is_refused(made: tuple[RunSpec, dict[str, Any]], tmp_path: Path) -> None:
    for name in (Path(made[0].run.location) / "model").iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    content = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(content.replace('"thresholds"', '"thresholts"'))
    with pytest.raises(CheckpointError, match="damaged"):
        beatray.load_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="there is no model"):
        beatray.load_model(str(tmp_path / "elsewhere"))


def test_waves_numbers_and_one_class_go_the_same_way(sample_corpus: str, tmp_path: Path) -> None:
    short = ("train.epochs=2",)
    cases = {
        "waves": ("task=segment", "labels=waves"),
        "age": ("task=regress", "labels=age", "fraction=0.5"),
        "one": ("objective.one_class=true", "class_weights=balanced", "hidden=16"),
    }
    x_mv = open_corpus(sample_corpus).rows([0, 1]).signal_uv / 1000.0
    for run, overrides in cases.items():
        spec, prepared = prepared_of(sample_corpus, tmp_path, run, *short, *overrides)
        assert train(spec, Ranks())
        make_model(spec, prepared)
        description = describe_model(spec.run.location)
        found = beatray.load_model(spec.run.location).predict(x_mv)
        if run == "waves":
            assert description["task"] == "segment" and found.waves is not None and len(found.waves) == 2
            assert description["scores"]["test"]["f1"]["value"] > 0.2
            for wave in found.waves[0]:
                assert wave.kind in ("P", "QRS", "T") and 0 <= wave.onset_s < wave.offset_s < 10
        elif run == "age":
            assert found.numbers is not None and found.numbers.shape == (2, 1)
            assert description["scores"]["test"]["mae"]["value"] < 60
            assert 20 < description["mean"][0] < 90
        else:
            assert found.probabilities is not None and found.decisions is not None
            np.testing.assert_allclose(found.probabilities.sum(1), 1)
            assert (found.decisions.sum(1) == 1).all() and "accuracy" in description["scores"]["test"]
