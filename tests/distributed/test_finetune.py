"""From an encoder to a model on bundled recordings: the stream, an interrupted run, the model folder, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import beatray
from beatray.cli import main
from beatray.commands import finetune as command
from beatray.corpus.reader import open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import CheckpointError, TrainingError
from beatray.evaluate.label_spaces import superclass_targets
from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.finetune import lessons
from beatray.finetune.finish import figures, is_made, make_model, trained_model
from beatray.finetune.outputs import logits_of
from beatray.finetune.prepare import assignment, prepare_run
from beatray.finetune.settings import finetune_settings
from beatray.models.calibration import Calibration, fitted
from beatray.models.encoder_folder import describe_encoder, trained_on
from beatray.models.model_folder import describe_model
from beatray.track.journal import read_lines
from beatray.train.composed import pretrain_settings
from beatray.train.launch import pretrain
from beatray.train.loop import train
from beatray.train.prepare import hashes_of
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec
from pretraining import losses, same_weights, train_here

pytestmark = pytest.mark.ray

SPLIT = ("corpus.test_folds=[8,9]", "corpus.validation_folds=[6,7]")
SMALL = (
    "train.batch_size=16",
    "train.epochs=6",
    "train.warmup_epochs=1",
    "train.shuffle_streams=4",
    "tracking.uri=null",
)


def spec_of(corpus: str, out: Path, run: str, *words: str) -> RunSpec:
    places = [f"corpus={corpus}", f"out={out}", f"run={run}", *SPLIT, *SMALL, "train.readers_per_worker=1"]
    encoder = [] if any(word.startswith("encoder=") for word in words) else ["encoder=random"]
    return prepare_run(finetune_settings([*places, *encoder, "labels=superdiagnostic", *words]))


@pytest.fixture(scope="module")
def pretrained(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    words = ("objective=simclr", "train.epochs=1", *SPLIT)
    assert train_here(sample_corpus, out, "encoder", *words)
    return out / "encoder"


@pytest.fixture(scope="module")
def runs(sample_corpus: str, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen and a whole fine-tune, each to its end."""
    out = tmp_path_factory.mktemp("runs")
    for run, words in {"frozen": ("trained=head",), "all": ("objective.noise_mv=0.01",)}.items():
        words = tuple(word.replace("objective.noise_mv", "augment.noise_mv") for word in words)
        assert train(spec_of(sample_corpus, out, run, f"encoder={pretrained}", *words), Ranks())
    return out


def test_a_frozen_encoder_leaves_as_it_came(runs: Path, pretrained: Path) -> None:
    came, left = (beatray.load_encoder(str(place)).state_dict() for place in (pretrained, runs / "frozen"))
    assert all(torch.equal(came[name], left[name]) for name in came)
    changed = beatray.load_encoder(str(runs / "all")).state_dict()
    assert not all(torch.equal(came[name], changed[name]) for name in came)
    lines = read_lines(runs / "frozen" / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"validation_auroc", "validation_f1", "validation_loss", "known_targets"} <= lines[-1].keys()


def test_an_interrupted_run_goes_on_to_the_bit(runs: Path, sample_corpus: str, pretrained: Path) -> None:
    words = (f"encoder={pretrained}", "augment.noise_mv=0.01")
    assert not train(spec_of(sample_corpus, runs, "cut", *words, "train.stop_after_steps=5"), Ranks())
    with pytest.raises(TrainingError, match=r"objective\.targets_sha256"):
        train(spec_of(sample_corpus, runs, "cut", *words, "labels=rhythm"), Ranks())
    assert train(spec_of(sample_corpus, runs, "cut", *words), Ranks())
    assert losses(runs, "cut") == losses(runs, "all")
    assert same_weights(runs, "cut", "all")
    on_workers = ("train.augment_on=workers", "train.stop_after_steps=4")
    assert not train(spec_of(sample_corpus, runs, "workers", *words, *on_workers), Ranks())
    assert losses(runs, "workers") == losses(runs, "all")[:4]  # targets travel with the views


def test_no_test_recording_is_trained_or_validated_on(sample_corpus: str, tmp_path: Path, pretrained: Path) -> None:
    spec = spec_of(sample_corpus, tmp_path, "r", f"encoder={pretrained}")
    corpus = open_corpus(sample_corpus)
    roles = assign_roles(corpus.index, policy_of(spec.settings.corpus))
    parts = assignment(spec.settings).parts
    assert (roles[parts.train] == Role.TRAIN).all() and (roles[parts.validation] == Role.VALIDATION).all()
    assert len(parts.test) and (roles[parts.test] == Role.TEST).all()
    assert spec.stream.targets is not None
    assert len(spec.stream.targets.keys) == len(parts.train) + len(parts.validation)
    assert spec.rows == len(parts.train)
    told = np.frombuffer(spec.trained_on, "<u8")
    mine = np.frombuffer(hashes_of(corpus.index.iloc[parts.train]), "<u8")
    assert set(told.tolist()) == {*mine.tolist(), *trained_on(str(pretrained)).tolist()}


def test_fractions_are_nested_and_by_patient(sample_corpus: str, tmp_path: Path) -> None:
    index = open_corpus(sample_corpus).index
    for words in ((), ("corpus.validation_folds=[]",)):
        found = [
            assignment(spec_of(sample_corpus, tmp_path, "r", f"fraction={share}", *words).settings).parts
            for share in (0.2, 0.5, 1.0)
        ]
        for part in ("train", "validation"):
            few, half, whole = (set(getattr(parts, part).tolist()) for parts in found)
            assert few <= half <= whole and few
        assert len(found[0].train) < len(found[1].train) < len(found[2].train)
        patients = [
            set(index["patient_id"].iloc[rows]) for rows in (found[2].train, found[2].validation, found[2].test)
        ]
        assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]


@pytest.fixture(scope="module")
def made(runs: Path, sample_corpus: str, pretrained: Path) -> tuple[RunSpec, dict[str, Any]]:
    spec = spec_of(sample_corpus, runs, "all", f"encoder={pretrained}", "augment.noise_mv=0.01")
    assert not is_made(spec)
    told = make_model(spec)
    assert is_made(spec) and told == figures(describe_model(str(runs / "all"))) and "test_auroc" in told
    assert make_model(spec) == told
    return spec, describe_model(str(runs / "all"))


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
    told = description["scores"]["validation"]["calibration"]
    assert told["nll"] <= told["nll_before"]
    records = description["records"]
    assert records == {"train": spec.rows, "validation": len(rows), "test": len(found.parts.test), "test_seen": 0}
    card = (Path(spec.run.location) / "model" / "README.md").read_text()
    assert "Not a medical device" in card and "AUROC" in card and description["manifest_hash"] in card


def test_a_finished_run_without_its_checkpoints_is_left_alone(
    made: tuple[RunSpec, dict[str, Any]], sample_corpus: str, pretrained: Path
) -> None:
    spec, run = made[0], Path(made[0].run.location)
    shutil.copytree(run, run.parent / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    words = (f"encoder={pretrained}", "augment.noise_mv=0.01")
    bare = spec_of(sample_corpus, run.parent, "bare", *words)
    assert pretrain(bare).finished and make_model(bare) == make_model(spec)
    with pytest.raises(TrainingError, match="another objective or corpus"):
        pretrain(spec_of(sample_corpus, run.parent, "bare", *words, "hidden=4"))


def test_a_damaged_model_is_refused(made: tuple[RunSpec, dict[str, Any]], tmp_path: Path) -> None:
    for name in (Path(made[0].run.location) / "model").iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    content = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(content.replace('"thresholds"', '"thresholts"'))
    with pytest.raises(CheckpointError, match="damaged"):
        beatray.load_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="there is no model"):
        beatray.load_model(str(tmp_path / "elsewhere"))


def test_what_an_encoder_was_pretrained_on_is_no_clean_test(sample_corpus: str, tmp_path: Path) -> None:
    assert train_here(
        sample_corpus, tmp_path, "sees", "objective=simclr", "train.epochs=1", "corpus.pretrain_sees_test=true"
    )
    words = (f"encoder={tmp_path / 'sees'}", "trained=head", "train.epochs=1")
    spec = spec_of(sample_corpus, tmp_path, "tuned", *words)
    assert train(spec, Ranks())
    assert make_model(spec) == {}
    description = describe_model(spec.run.location)
    assert description["records"]["test"] == 0 and description["records"]["test_seen"] > 0
    assert "left out" in (tmp_path / "tuned" / "model" / "README.md").read_text()


def test_random_labels_are_learned_by_heart_and_give_chance(
    sample_corpus: str, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = lessons._codes

    def shuffled(*arguments: Any) -> lessons.Taught:
        found = taught(*arguments)
        order = np.random.default_rng(5).permutation(len(found.rows))
        return lessons.Taught(found.kind, found.names, found.rows, found.values[order], found.title)

    monkeypatch.setattr(lessons, "_codes", shuffled)
    words = ("corpus.validation_folds=[4,5,6,7]", "train.epochs=12", "train.patience=null", "train.learning_rate=0.01")
    assert train(spec_of(sample_corpus, tmp_path, "chance", f"encoder={pretrained}", *words), Ranks())
    lines = read_lines(tmp_path / "chance" / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    areas = [line["validation_auroc"] for line in lines if "validation_auroc" in line]
    assert 0.3 < np.mean(areas) < 0.7, areas


def test_waves_numbers_and_one_class_go_the_same_way(sample_corpus: str, tmp_path: Path) -> None:
    short = ("train.epochs=2",)
    cases = {
        "waves": ("task=segment", "labels=waves"),
        "age": ("task=regress", "labels=age", "fraction=0.5"),
        "one": ("objective.one_class=true", "class_weights=balanced", "hidden=16"),
    }
    x_mv = open_corpus(sample_corpus).rows([0, 1]).signal_uv / 1000.0
    for run, words in cases.items():
        spec = spec_of(sample_corpus, tmp_path, run, *short, *words)
        assert train(spec, Ranks())
        make_model(spec)
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


def test_a_run_that_gets_no_better_ends_early_and_stays_ended(sample_corpus: str, tmp_path: Path) -> None:
    words = ("trained=head", "train.learning_rate=1e-12", "train.epochs=20", "train.patience=2")
    spec = spec_of(sample_corpus, tmp_path, "early", *words, "objective.select=f1")
    assert train(spec, Ranks())
    lines = read_lines(tmp_path / "early" / "metrics.jsonl")
    epochs = lines[-1]["epoch"] + 1
    assert epochs < 20
    made = describe_encoder(str(tmp_path / "early"))
    assert made["ended_at"] == lines[-1]["step"] + 1 and made["steps"] < made["ended_at"] < made["run_steps"]
    assert train(spec, Ranks())
    assert len(read_lines(tmp_path / "early" / "metrics.jsonl")) == len(lines)


def test_pretraining_goes_on_from_an_encoder(sample_corpus: str, pretrained: Path, tmp_path: Path) -> None:
    words = ("objective=vicreg", "train.epochs=1", "train.learning_rate=1e-12", *SPLIT)
    settings = pretrain_settings([f"encoder.weights={pretrained}", "corpus=c", "objective=vicreg"])
    assert settings.encoder["name"] == "tiny" and settings.encoder_weights == str(pretrained)
    from pretraining import WORDS  # the usual words choose a network, which the weights do as well

    usual = [word for word in WORDS if word != "encoder=tiny"]
    places = [f"corpus={sample_corpus}", f"out={tmp_path}", "run=on", f"encoder.weights={pretrained}"]
    spec = prepare_run(pretrain_settings([*places, *usual, *words, "train.workers=1", "train.weight_decay=0"]))
    assert train(spec, Ranks())
    came, left = (beatray.load_encoder(str(place)).state_dict() for place in (pretrained, tmp_path / "on"))
    weights = [name for name in came if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(came[name], left[name], atol=1e-6) for name in weights)


WRONG = [
    (("labels=superdiagnostik",), "did you mean 'superdiagnostic'"),
    (("labels=",), "which labels?"),
    (("labels=waves",), "task=segment"),
    (("labels=age",), "say task=regress"),
    (("task=regress",), "say task=classify"),
    (("task=clasify",), "did you mean 'classify'"),
    (("trained=heads",), "head, last, all"),
    (("labels=snomed",), "no class has 20 recordings"),
    (("encoder=/nowhere",), "there is no exported encoder at /nowhere"),
    (("fraction=0",), "fraction must be above 0"),
    (("objective.names=[a]",), "found in the corpus"),
    (("fracton=0.5",), "did you mean"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_wrong_word_ends_with_one_line(
    words: tuple[str, ...], message: str, sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["encoder=random", "labels=superdiagnostic", f"corpus={sample_corpus}", f"out={tmp_path}", *SPLIT]
    said = {word.partition("=")[0] for word in words}
    assert main(["finetune", *[word for word in usual if word.partition("=")[0] not in said], *words]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1, told


def test_networks_and_recipes_that_do_not_fit_are_refused(
    sample_corpus: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [f"corpus={sample_corpus}", f"out={tmp_path}", "labels=superdiagnostic", *SPLIT]
    assert main(["finetune", f"encoder={pretrained}", "encoder.kernel=5", *usual]) == 2
    assert "the network is that of the encoder" in capsys.readouterr().err
    assert main(["finetune", *usual]) == 2
    assert "which encoder?" in capsys.readouterr().err
    from beatray.models.encoder_folder import export_encoder, load_encoder
    from beatray.storage.store import Store

    encoder = load_encoder(str(pretrained))
    description = {**describe_encoder(str(pretrained)), "recipe": {"rate_hz": 250}}
    export_encoder(Store(str(tmp_path / "other")), encoder, description)
    assert main(["finetune", f"encoder={tmp_path / 'other'}", *usual]) == 1
    assert "another corpus recipe" in capsys.readouterr().err


def test_the_command_makes_a_model_and_leaves_it_alone(
    sample_corpus: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in SMALL if not word.startswith("tracking")]
    words += [f"encoder={pretrained}", f"corpus={sample_corpus}", f"out={tmp_path}", "run=dx", "labels=superdiagnostic"]
    words += ["trained=last", "train.workers=1", "train.epochs=2", *SPLIT]
    result = command.run(command.settings_from(words))
    assert result.finished
    told = capsys.readouterr().out
    assert "test auroc" in told and "beatray.load_model" in told
    before = (tmp_path / "dx" / "model" / "model.json").read_bytes()
    assert command.run(command.settings_from(words)).finished
    assert (tmp_path / "dx" / "model" / "model.json").read_bytes() == before
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    description = json.loads(before)
    assert run.data.metrics["model/test_auroc"] == pytest.approx(description["scores"]["test"]["auroc"]["value"])
    assert {"train/validation_auroc"} <= run.data.metrics.keys()
    assert any(each.path == "model" for each in client.list_artifacts(run.info.run_id))
