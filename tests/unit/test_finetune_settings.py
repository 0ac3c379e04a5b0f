"""The words of `beatray finetune`, and a sweep over the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from beatray.cli import main
from beatray.errors import SettingsError
from beatray.finetune.settings import finetune_settings
from beatray.models.encoder_folder import export_encoder
from beatray.models.registry import build_encoder
from beatray.storage.store import Store
from beatray.sweep.plan import config_of, plan_from
from beatray.train.composed import pretrain_settings


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """An exported encoder with wider maps than usual."""
    made = build_encoder("tiny", channels=[16, 16, 48])
    described = {"name": "tiny", "settings": made.described_settings(), "recipe": {}}
    export_encoder(Store(str(tmp_path)), made, json.loads(json.dumps(described)))
    return str(tmp_path)


def test_the_network_is_that_of_the_weights(encoder: str) -> None:
    for made in (
        finetune_settings([f"encoder={encoder}", "corpus=/c", "labels=rhythm"]),
        pretrain_settings([f"encoder.weights={encoder}", "corpus=/c", "objective=simclr"]),
        pretrain_settings([f"encoder.weights={encoder}", "encoder=tiny", "encoder.channels=[16,16,48]", "corpus=/c"]),
    ):
        assert made.encoder["name"] == "tiny" and list(made.encoder["channels"]) == [16, 16, 48]
        assert made.encoder_weights == encoder
    with pytest.raises(SettingsError, match=r"encoder=xresnet1d18.*the network is that of the encoder"):
        pretrain_settings([f"encoder.weights={encoder}", "encoder=xresnet1d18", "corpus=/c"])
    with pytest.raises(SettingsError, match="there is no exported encoder at"):
        pretrain_settings([f"encoder.weights={encoder}/elsewhere", "corpus=/c"])


def test_settings_of_the_objective_may_be_given_by_their_own_names() -> None:
    overrides = [
        "encoder=random",
        "encoder.name=xresnet1d18",
        "corpus=/c",
        "labels=rhythm",
        "trained=last",
        "fraction=0.1",
    ]
    made = finetune_settings([*overrides, "augment.lead_dropout=0.2", "select=f1", "train.epochs=7"])
    assert made.encoder["name"] == "xresnet1d18" and made.encoder_weights is None
    about = made.objective
    assert (about["name"], about["labels"], about["trained"], about["fraction"]) == (
        "supervised",
        "rhythm",
        "last",
        0.1,
    )
    assert about["augment"]["lead_dropout"] == 0.2 and about["augment"]["crop_seconds"] == 5.0
    assert made.train.epochs == 7 and made.train.patience == 10 and made.checkpoint.export == "best"
    waves = finetune_settings(["encoder=random", "corpus=/c", "task=segment", "decoder=unet"])
    assert waves.objective["name"] == "segmentation" and waves.objective["decoder"] == "unet"
    with pytest.raises(SettingsError, match=r"checkpoint\.export=best needs a validation"):
        finetune_settings([*overrides, "train.validate_every_epochs=0"])


def test_what_is_printed_is_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["encoder=random", "corpus=/c", "task=regress", "labels=age", "train.patience=null"]
    assert main(["finetune", *overrides, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["objective"]["labels"] == "age" and printed["train"]["patience"] is None
    assert printed["encoder"]["name"] == "tiny" and printed["run"] == "finetune"


def test_fractions_parts_and_seeds_are_a_sweep(encoder: str, tmp_path: Path) -> None:
    overrides = [
        "objective=supervised",
        "objective.labels=superdiagnostic",
        f"encoder.weights={encoder}",
        "train=finetune",
    ]
    overrides += ["checkpoint=best", "sweep.metric=validation_auroc", "sweep.mode=max", "corpus=/c", f"out={tmp_path}"]
    space = ["sweep.space.objective.fraction=[0.1,1.0]", "sweep.space.objective.trained=[head,all]"]
    plan = plan_from([*overrides, *space])
    assert [trial.name for trial in plan.trials][:2] == ["fraction-0.1__trained-head", "fraction-0.1__trained-all"]
    assert {trial.settings.objective["trained"] for trial in plan.trials} == {"head", "all"}
    assert all(list(trial.settings.encoder["channels"]) == [16, 16, 48] for trial in plan.trials)
    with pytest.raises(SettingsError, match="did you mean 'validation_auroc'"):
        plan_from([*(override.replace("_auroc", "_auroq") for override in overrides), *space])


def test_what_pretraining_saves_in_labels_is_a_sweep(encoder: str, tmp_path: Path) -> None:
    overrides = ["sweep=label_efficiency", f"encoder.weights={encoder}", "corpus=/c", f"out={tmp_path}"]
    plan = plan_from([*overrides, "labels=sex", "train.epochs=3"])
    rows, fractions, seeds = 4, 5, 3
    assert len(plan.trials) == rows * fractions * seeds and plan.sweep.metric == "validation_auroc"
    first, last = plan.trials[0], plan.trials[-1]
    assert first.name == "pretrained_frozen__fraction-0.01__seed-0" and first.settings.first_weights == encoder
    assert last.settings.first_weights is None and last.settings.encoder_weights == encoder
    assert {trial.settings.objective["labels"] for trial in plan.trials} == {"sex"}
    assert {trial.settings.train.epochs for trial in plan.trials} == {3}
    assert {trial.settings.objective["fraction_seed"] for trial in plan.trials} == {None}  # that of the training
    assert config_of([*overrides, "labels=sex"])["objective"]["labels"] == "sex"

    table = ["labels=./labels.csv", "labels.targets.low=lvef < 40", "labels.columns=[lvef]"]
    learned = plan_from([*overrides, *table]).trials[0].settings.objective
    assert learned["labels"] == "table" and learned["table"]["table"] == "./labels.csv"
    assert learned["table"]["targets"] == {"low": "lvef < 40"} and list(learned["table"]["columns"]) == ["lvef"]

    numbers = ["labels=age", "objective.task=regress", "sweep.metric=validation_mae", "sweep.mode=min"]
    assert plan_from([*overrides, *numbers]).trials[0].settings.objective["task"] == "regress"
