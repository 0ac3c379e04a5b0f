"""Whole pretraining runs through real Ray Train: one and two workers agree, an interrupted run continues exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import beatray
from beatray.augment.draws import record_key
from beatray.corpus.reader import open_corpus
from beatray.errors import CorpusError, SettingsError, TrainingError
from beatray.models import encoder_folder
from beatray.storage.store import Store
from beatray.track.journal import read_lines
from beatray.train import checkpoint as checkpoints
from beatray.train import loop, step
from beatray.train.composed import pretrain_settings
from beatray.train.order import steps_per_epoch
from beatray.train.ranks import Ranks
from beatray.train.resources import check_resources
from beatray.train.stream import Batch
from pretraining import Poison, ids, losses, run_spec_of, same_weights, start, train_here, weights

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def runs(sample_corpus: str, on_two_workers: Path) -> Path:
    """The same run on one worker and on two."""
    assert train_here(sample_corpus, on_two_workers, "w1")
    return on_two_workers


def test_two_workers_train_on_the_same_global_batches(runs: Path, sample_corpus: str) -> None:
    one, two = ids(runs, "w1"), ids(runs, "w2")
    assert one == two
    n = len({name for step in one for name in step})
    assert sum(map(len, one)) == 3 * n
    assert len(one) == 3 * steps_per_epoch(n, 24)


def test_two_workers_have_the_loss_of_one(runs: Path) -> None:
    one, two = torch.tensor(losses(runs, "w1")), torch.tensor(losses(runs, "w2"))
    # Sums over ranks round differently; AdamW turns the rounding of near-zero gradients into steps of the full rate,
    # so that the first loss is equal but for rounding, the one after the first step nearly, the others ever less.
    assert torch.allclose(one[0], two[0], rtol=0, atol=1e-5), one[0] - two[0]
    assert torch.allclose(one[1], two[1], rtol=3e-6, atol=0), one[1] - two[1]  # 25 units in the last place
    assert torch.allclose(one, two, rtol=5e-3), (one - two).abs().max()
    assert one[-1] < one[0]


def test_the_run_folder_holds_what_it_promises(runs: Path) -> None:
    line = read_lines(runs / "w2" / "metrics.jsonl")[-1]
    for name in (
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "gradient_norm",
        "records_per_s",
        "data_wait_s",
        "core_s",
        "record/target_entropy",
        "record/positive_mass",
        "record/embedding_std",
        "beats",
    ):
        assert name in line, sorted(line)
    assert (runs / "w2" / "settings.yaml").is_file()
    encoder = beatray.load_encoder(str(runs / "w2"))
    assert encoder(torch.zeros(1, 12, 5000)).shape == (1, encoder.embed_dim)


def test_a_finished_run_is_left_alone(runs: Path, sample_corpus: str) -> None:
    before = (runs / "w1" / "metrics.jsonl").read_bytes()
    assert start(sample_corpus, runs, "w1", "train.workers=1").finished
    assert (runs / "w1" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(TrainingError, match=r"objective\.name"):
        start(sample_corpus, runs, "w1", "objective=simclr")
    with pytest.raises(TrainingError, match="already done"):
        start(sample_corpus, runs, "w1", "train.workers=1", "train.epochs=2")
    shutil.copytree(runs / "w1", runs / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(TrainingError, match="another objective or corpus"):
        start(sample_corpus, runs, "bare", "objective=simclr")


def test_an_interrupted_run_continues_to_the_bit(runs: Path, sample_corpus: str) -> None:
    assert not train_here(sample_corpus, runs, "cut", "train.stop_after_steps=4")
    assert checkpoints.newest_step(Store(str(runs / "cut"))) == 4
    with pytest.raises(TrainingError, match=r"objective\.temperature"):
        start(sample_corpus, runs, "cut", "train.workers=1", "objective.temperature=0.2")
    assert train_here(sample_corpus, runs, "cut")  # through Ray Train: chaos/test_stalls_and_stops.py
    assert losses(runs, "cut") == losses(runs, "w1")  # to the last bit
    assert len(losses(runs, "cut")) - 4 >= 5
    assert ids(runs, "cut") == ids(runs, "w1")
    assert same_weights(runs, "cut", "w1")


def test_other_objectives_and_settings_go_through_the_same_loop(sample_corpus: str, tmp_path: Path) -> None:
    variants = {
        "simclr": ["objective=simclr"],
        "views": ["objective=three_kg", "train.augment_on=workers", "train.precision=bf16"],
        "clusters": ["objective.beat_positives=clusters", "objective.rhythm=soft_2", "encoder.norm=group"],
    }
    for run, overrides in variants.items():
        assert train_here(sample_corpus, tmp_path, run, "train.epochs=1", *overrides)
        assert all(loss is not None for loss in losses(tmp_path, run))


def test_a_step_that_is_not_finite_is_refused_and_leaves_no_trace(sample_corpus: str, tmp_path: Path) -> None:
    run_spec = run_spec_of(sample_corpus, tmp_path, "nan", "train.workers=1")
    poisoned = Poison(at_calls=(2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "build_model", poisoned)
        loop.train(run_spec, Ranks())
    values = losses(tmp_path, "nan")
    assert values[2] is None and all(value is not None for n, value in enumerate(values) if n != 2)
    (refused,) = [json.loads(text) for text in (tmp_path / "nan" / "refused_steps.jsonl").read_text().splitlines()]
    assert refused["step"] == 2 and refused["record_ids"] == ids(tmp_path, "nan")[2]
    encoder = beatray.load_encoder(str(tmp_path / "nan"))
    assert all(torch.isfinite(value).all() for value in encoder.state_dict().values())


def test_steps_that_stay_not_finite_stop_the_run(sample_corpus: str, tmp_path: Path) -> None:
    run_spec = run_spec_of(sample_corpus, tmp_path, "nan", "train.workers=1", "train.max_nonfinite=3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "build_model", Poison(at_calls=(2, 4, 5, 6)))
        with pytest.raises(TrainingError, match=r"3 times in a row \(last at step 6"):
            loop.train(run_spec, Ranks())
    refused = [json.loads(text)["step"] for text in (tmp_path / "nan" / "refused_steps.jsonl").read_text().splitlines()]
    assert refused == [2, 4, 5, 6]
    newest = checkpoints.latest(run_spec.run)
    assert newest is not None and newest.state["global_step"] == 6


def test_validation_is_the_same_on_one_and_two_workers_and_keeps_the_best(runs: Path) -> None:
    one, two = (read_lines(runs / run / "metrics.jsonl") for run in ("w1", "w2"))
    validated = [line["step"] for line in one if "validation_loss" in line]
    assert validated == [one[-1]["step"]] == [line["step"] for line in two if "validation_loss" in line]
    assert abs(one[-1]["validation_loss"] - two[-1]["validation_loss"]) < 0.01 * one[-1]["validation_loss"]
    name, loss = checkpoints.best(Store(str(runs / "w1"))) or ("", 0.0)
    assert name == checkpoints.name_of(one[-1]["step"] + 1) and loss == one[-1]["validation_loss"]


def test_validation_changes_nothing_and_the_best_can_be_exported(sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("train.workers=1", "train.epochs=4", "train.learning_rate=0.02")
    variants = {
        "never": ["train.validate_every_epochs=0", "checkpoint.every_minutes=1e-9", "checkpoint.keep=100"],
        "often": ["train.validate_every_epochs=1", "train.checkpoint_every_steps=1000", "checkpoint.keep=1"],
    }
    for run, more in variants.items():
        loop.train(run_spec_of(sample_corpus, tmp_path, run, *overrides, *more), Ranks())
    assert losses(tmp_path, "never") == losses(tmp_path, "often") and same_weights(tmp_path, "never", "often")
    values = {
        line["step"]: line["validation_loss"]
        for line in read_lines(tmp_path / "often" / "metrics.jsonl")
        if "validation_loss" in line
    }
    assert len(values) == 4
    steps = len(losses(tmp_path, "never"))
    assert len(checkpoints.names(Store(str(tmp_path / "never")))) == steps  # one whenever a moment has passed
    assert len(checkpoints.names(Store(str(tmp_path / "often")))) <= 2  # the newest and the best
    run_spec = run_spec_of(
        sample_corpus, tmp_path, "best", *overrides, "train.validate_every_epochs=1", "checkpoint.export=best"
    )
    loop.train(run_spec, Ranks())
    best_step = min(values, key=lambda step: values[step])
    assert encoder_folder.describe_encoder(str(tmp_path / "best"))["steps"] == best_step + 1
    kept = checkpoints.load(run_spec.run, checkpoints.name_of(best_step + 1)).model
    exported = weights(tmp_path, "best")
    assert all(torch.equal(exported[name], kept[f"encoder.{name}"]) for name in exported)


def test_an_epoch_that_is_not_the_corpus_is_refused_by_name(sample_corpus: str, tmp_path: Path) -> None:
    """One record in the place of another: the count is right, the account is not."""
    run_spec = run_spec_of(sample_corpus, tmp_path, "swapped", "train.workers=1")
    real = loop.batches

    def swapped(*arguments: object) -> Iterator[Batch]:
        for batch in real(*arguments):  # type: ignore[arg-type]
            keys = batch.arrays["record_key"]
            if batch.step == 1:
                lost, doubled = keys[:2].tolist()
                noted.extend([lost, doubled])
                keys = np.concatenate([keys[1:2], keys[1:]])
            yield replace(batch, arrays={**batch.arrays, "record_key": keys})

    noted: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "batches", swapped)
        with pytest.raises(CorpusError) as caught:
            loop.train(run_spec, Ranks())
    index = open_corpus(sample_corpus).index
    name_of = {record_key(name): name for name in index["record_id"]}
    assert f"missing: {name_of[noted[0]]}; seen too often or not asked for: {name_of[noted[1]]}" in str(caught.value)


def test_micro_batches_train_alike_on_one_and_two_workers(sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("train.gradient_accumulation_steps=2", "train.epochs=1")
    assert train_here(sample_corpus, tmp_path, "w1", *overrides)
    assert start(sample_corpus, tmp_path, "w2", *overrides, "train.workers=2").finished
    assert ids(tmp_path, "w1") == ids(tmp_path, "w2")
    one, two = torch.tensor(losses(tmp_path, "w1")), torch.tensor(losses(tmp_path, "w2"))
    assert torch.allclose(one[:1], two[:1], rtol=0, atol=1e-5)
    assert torch.allclose(one[:2], two[:2], rtol=1e-3)  # rounding may flip a rectifier at zero (in float64 none does)


def test_views_made_on_workers_train_the_same_model(runs: Path, sample_corpus: str) -> None:
    assert train_here(sample_corpus, runs, "on_workers", "train.augment_on=workers")
    assert losses(runs, "on_workers") == losses(runs, "w1")


def test_a_plan_that_could_only_hang_is_refused_with_the_arithmetic(sample_corpus: str) -> None:
    settings = pretrain_settings(["train.workers=8", "train.batch_size=256"])
    with pytest.raises(SettingsError, match=r"8 workers need 4 CPUs and their readers at least 2.*Ray has 4"):
        check_resources(settings, {"CPU": 4.0})
    with pytest.raises(SettingsError, match="as many GPUs"):
        check_resources(pretrain_settings(["train.device=cuda"]), {"CPU": 64.0})


def test_a_model_keeps_the_recipe_it_was_made_for(runs: Path, sample_corpus: str) -> None:
    description = json.loads((runs / "w1" / "encoder" / "encoder.json").read_text())
    assert description["recipe"] == open_corpus(sample_corpus).recipe
