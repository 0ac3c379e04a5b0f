"""A run that learns from labels: what it trains, an interruption, an early end, chance from random labels."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import beatray
from beatray.corpus.reader import open_corpus
from beatray.errors import TrainingError
from beatray.finetune.prepare import prepare_run
from beatray.models.encoder_folder import describe_encoder
from beatray.objectives.objective import Progress
from beatray.track.journal import read_lines
from beatray.train.composed import pretrain_settings
from beatray.train.launch import ended_at, pretrain
from beatray.train.loop import train
from beatray.train.ranks import Ranks
from beatray.train.step import Learner
from beatray.train.validation import Validation
from finetuning import SPLIT, VARIED, spec_of
from label_tables import written
from pretraining import OVERRIDES, kill_a_rank, losses, same_weights, strikes_at

pytestmark = pytest.mark.ray


def test_a_frozen_encoder_leaves_as_it_came(tuned: Path, pretrained: Path) -> None:
    came, left = (beatray.load_encoder(str(path)).state_dict() for path in (pretrained, tuned / "frozen"))
    assert all(torch.equal(came[name], left[name]) for name in came)
    changed = beatray.load_encoder(str(tuned / "all")).state_dict()
    assert not all(torch.equal(came[name], changed[name]) for name in came)
    lines = read_lines(tuned / "frozen" / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"validation_auroc", "validation_f1", "validation_loss", "known_targets"} <= lines[-1].keys()


def test_an_interrupted_run_goes_on_to_the_bit(tuned: Path, sample_corpus: str, pretrained: Path) -> None:
    overrides = (f"encoder={pretrained}", *VARIED)
    assert not train(spec_of(sample_corpus, tuned, "cut", *overrides, "train.stop_after_steps=5"), Ranks())
    with pytest.raises(TrainingError, match=r"objective\.targets_sha256"):
        train(spec_of(sample_corpus, tuned, "cut", *overrides, "labels=rhythm"), Ranks())
    assert train(spec_of(sample_corpus, tuned, "cut", *overrides), Ranks())
    assert losses(tuned, "cut") == losses(tuned, "all")
    assert same_weights(tuned, "cut", "all")
    on_workers = ("train.augment_on=workers", "train.stop_after_steps=4")
    assert not train(spec_of(sample_corpus, tuned, "workers", *overrides, *on_workers), Ranks())
    assert losses(tuned, "workers") == losses(tuned, "all")[:4]  # targets travel with the views


def test_a_killed_worker_changes_nothing(tuned: Path, sample_corpus: str, pretrained: Path) -> None:
    """SIGKILL in the middle: losses and weights are those of the run that nothing disturbed."""
    overrides = (f"encoder={pretrained}", *VARIED, "train.max_failures=5", "train.checkpoint_every_steps=2")
    spec = spec_of(sample_corpus, tuned, "killed", *overrides)
    with strikes_at(tuned / "killed" / "metrics.jsonl", [6], kill_a_rank) as struck:
        assert pretrain(spec).finished
    assert struck
    assert losses(tuned, "killed") == losses(tuned, "all")
    assert same_weights(tuned, "killed", "all")


def test_random_labels_are_learned_by_heart_and_give_chance(
    sample_corpus: str, pretrained: Path, tmp_path: Path
) -> None:
    index = open_corpus(sample_corpus).index
    records = index["record_id"][index["source"] == "ptbxl"]
    drawn = np.random.default_rng(5).integers(0, 2, (len(records), 4))
    lines = [f"{name},{','.join(map(str, row))}" for name, row in zip(records, drawn.tolist(), strict=True)]
    table = written(tmp_path, "record,a,b,c,d\n" + "\n".join(lines))
    overrides = (
        "corpus.validation_folds=[4,5,6,7]",
        "train.epochs=12",
        "train.patience=null",
        "train.learning_rate=0.01",
    )
    spec = spec_of(sample_corpus, tmp_path, "chance", f"encoder={pretrained}", f"labels={table}", *overrides)
    assert train(spec, Ranks())
    journal = read_lines(tmp_path / "chance" / "metrics.jsonl")
    assert journal[-1]["loss"] < 0.5 * journal[0]["loss"]
    areas = [line["validation_auroc"] for line in journal if "validation_auroc" in line]
    assert 0.3 < np.mean(areas) < 0.7, areas


@pytest.mark.parametrize("overrides", [("labels=TABLE",), ("task=segment", "labels=waves", "dice_weight=0")])
def test_a_validation_weighs_its_batches_by_what_is_known_in_them(
    overrides: tuple[str, ...], sample_corpus: str, tmp_path: Path
) -> None:
    """A mean over all known targets or scored samples does not depend on how they fall into batches."""
    records = open_corpus(sample_corpus).index["record_id"]
    cells = np.random.default_rng(5).choice(["0", "1", ""], (len(records), 4), p=[0.2, 0.2, 0.6])
    lines = [f"{name},{','.join(row)}" for name, row in zip(records, cells.tolist(), strict=True)]
    table = written(tmp_path, "record,a,b,c,d\n" + "\n".join(lines))
    filled = [override.replace("TABLE", str(table)) for override in overrides]
    found, learner = [], None
    for size in (3, 16, 1000):
        spec = spec_of(sample_corpus, tmp_path, "r", *filled, f"train.batch_size={size}")
        learner = learner or Learner(spec, Ranks())
        to_views = functools.partial(learner.views, make=True)
        found.append(Validation(spec, Ranks()).scores(learner.objective, to_views, Progress())["validation_loss"])
    assert found == pytest.approx([found[-1]] * 3, rel=1e-6) and found[-1] > 0


def test_a_run_that_gets_no_better_ends_early_and_stays_ended(sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("trained=head", "train.learning_rate=1e-12", "train.epochs=20", "train.patience=2")
    spec = spec_of(sample_corpus, tmp_path, "early", *overrides, "objective.select=f1")
    assert train(spec, Ranks())
    lines = read_lines(tmp_path / "early" / "metrics.jsonl")
    epochs = lines[-1]["epoch"] + 1
    assert epochs < 20
    made = describe_encoder(str(tmp_path / "early"))
    assert made["ended_at"] == lines[-1]["step"] + 1 and made["steps"] < made["ended_at"] < made["run_steps"]
    assert train(spec, Ranks()) and ended_at(spec) == made["ended_at"]
    assert len(read_lines(tmp_path / "early" / "metrics.jsonl")) == len(lines)
    patient = spec_of(sample_corpus, tmp_path, "early", *overrides, "objective.select=f1", "train.patience=4")
    assert ended_at(patient) is None and train(patient, Ranks())  # two more validations
    more = read_lines(tmp_path / "early" / "metrics.jsonl")
    assert more[: len(lines)] == lines and more[-1]["epoch"] + 1 == epochs + 2
    assert ended_at(patient) == describe_encoder(str(tmp_path / "early"))["ended_at"] == more[-1]["step"] + 1
    assert ended_at(spec) == ended_at(patient)  # with less patience it has ended all the more


def test_pretraining_goes_on_from_an_encoder(sample_corpus: str, pretrained: Path, tmp_path: Path) -> None:
    overrides = ("objective=vicreg", "train.epochs=1", "train.learning_rate=1e-12", *SPLIT)
    settings = pretrain_settings([f"encoder.weights={pretrained}", "corpus=c", "objective=vicreg"])
    assert settings.encoder["name"] == "tiny" and settings.encoder_weights == str(pretrained)
    usual = [override for override in OVERRIDES if override != "encoder=tiny"]  # the network is that of the weights
    paths = [f"corpus={sample_corpus}", f"out={tmp_path}", "run=on", f"encoder.weights={pretrained}"]
    spec = prepare_run(pretrain_settings([*paths, *usual, *overrides, "train.workers=1", "train.weight_decay=0"]))
    assert train(spec, Ranks())
    came, left = (beatray.load_encoder(str(path)).state_dict() for path in (pretrained, tmp_path / "on"))
    weights = [name for name in came if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(came[name], left[name], atol=1e-6) for name in weights)
