"""`beatray finetune`: wrong words end in one line, a right one in a model that stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beatray.cli import main
from beatray.commands import finetune as command
from beatray.models.encoder_folder import describe_encoder, export_encoder, load_encoder
from beatray.storage.store import Store
from finetuning import SMALL, SPLIT

pytestmark = pytest.mark.ray


WRONG = [
    (("labels=superdiagnostik",), "did you mean 'superdiagnostic'"),
    (("labels=",), "which labels?"),
    (("labels=waves",), "task=segment"),
    (("labels=age",), "set task=regress"),
    (("task=regress",), "set task=classify"),
    (("task=clasify",), "did you mean 'classify'"),
    (("trained=heads",), "head, last, all"),
    (("labels=snomed",), "no class has 20 recordings"),
    (("encoder=/nowhere",), "there is no exported encoder at /nowhere"),
    (("fraction=0",), "fraction must be above 0"),
    (("objective.names=[a]",), "derived from the corpus"),
    (("fracton=0.5",), "did you mean"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_a_wrong_override_ends_with_one_line(
    overrides: tuple[str, ...], message: str, sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["encoder=random", "labels=superdiagnostic", f"corpus={sample_corpus}", f"out={tmp_path}", *SPLIT]
    given = {override.partition("=")[0] for override in overrides}
    assert (
        main(["finetune", *[override for override in usual if override.partition("=")[0] not in given], *overrides])
        == 2
    )
    output = capsys.readouterr().err
    assert message in output and len(output.strip().splitlines()) == 1, output


def test_networks_and_recipes_that_do_not_fit_are_refused(
    sample_corpus: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [f"corpus={sample_corpus}", f"out={tmp_path}", "labels=superdiagnostic", *SPLIT]
    assert main(["finetune", f"encoder={pretrained}", "encoder.kernel=5", *usual]) == 2
    assert "the network is that of the encoder" in capsys.readouterr().err
    assert main(["finetune", *usual]) == 2
    assert "which encoder?" in capsys.readouterr().err

    encoder = load_encoder(str(pretrained))
    description = {**describe_encoder(str(pretrained)), "recipe": {"rate_hz": 250}}
    export_encoder(Store(str(tmp_path / "other")), encoder, description)
    assert main(["finetune", f"encoder={tmp_path / 'other'}", *usual]) == 1
    assert "another corpus recipe" in capsys.readouterr().err


def test_the_command_makes_a_model_and_leaves_it_alone(
    sample_corpus: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [override for override in SMALL if not override.startswith("tracking")]
    overrides += [
        f"encoder={pretrained}",
        f"corpus={sample_corpus}",
        f"out={tmp_path}",
        "run=dx",
        "labels=superdiagnostic",
    ]
    overrides += ["trained=last", "train.workers=1", "train.epochs=2", *SPLIT]
    result = command.run(command.settings_from(overrides))
    assert result.finished
    output = capsys.readouterr().out
    assert "test auroc" in output and "beatray.load_model" in output
    assert f"MLflow: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in output  # as pretrain prints it
    assert "/#/experiments/" in output
    before = (tmp_path / "dx" / "model" / "model.json").read_bytes()
    assert command.run(command.settings_from(overrides)).finished
    assert (tmp_path / "dx" / "model" / "model.json").read_bytes() == before
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    description = json.loads(before)
    assert run.data.metrics["model/test_auroc"] == pytest.approx(description["scores"]["test"]["auroc"]["value"])
    assert {"train/validation_auroc"} <= run.data.metrics.keys()
    assert any(each.path == "model" for each in client.list_artifacts(run.info.run_id))
