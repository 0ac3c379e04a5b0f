"""A sweep that evaluates its trials, through real Ray: scores, controls, what is done again, and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from beatray.cli import main
from beatray.evaluate.names import of_variant
from beatray.models.encoder_folder import load_encoder
from beatray.storage.store import Store
from beatray.sweep.plan import plan_from
from beatray.sweep.progress import prepare
from beatray.sweep.record import read
from beatray.sweep.results import read_results
from beatray.train.timing import STEPS, time_step

pytestmark = pytest.mark.ray

TRIALS = ("01-hard__seed-0", "09-soft_1-hard-50__seed-0")
AUROC, F1 = "eval/classify/linear_probe/100pct/auroc", "eval/segment/frozen_decoder/100pct/f1"


@pytest.fixture(scope="module")
def swept(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The words of two rows of the ablation, run to the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        overrides = [
            "sweep=ablation", "run=two", f"corpus={sample_corpus}", f"out={tmp_path_factory.mktemp('evaluated')}",
            "sweep.only=[01-hard,09-soft_1-hard-50]", "sweep.space.seed=[0]", "encoder=tiny", "train=small",
            "train.workers=1", "train.batch_size=24", "train.epochs=2", "train.warmup_epochs=0.5",
            "corpus.test_folds=[8,9]", "corpus.validation_folds=[7]", "evaluate.seeds=[0]",
            "evaluate.decoder.steps=4", "evaluate.decoder.batch_size=4", "evaluate.permutations=1",
            "evaluate.bootstraps=20", "evaluate.segment_fractions=[0.5,1.0]", "evaluate.classify_fractions=[1.0]",
            "evaluate.workers=1",
        ]  # fmt: skip
        assert main(["sweep", *overrides]) == 0
        yield overrides


def folder_of(overrides: list[str]) -> Path:
    return Path(next(override.removeprefix("out=") for override in overrides if override.startswith("out="))) / "two"


def test_every_trial_has_scores_and_all_share_the_controls(swept: list[str]) -> None:
    folder = folder_of(swept)
    record = read(Store(str(folder)))
    assert record is not None and [trial.name for trial in record.trials] == list(TRIALS)
    (control,) = (folder / "controls").iterdir()
    for trial in record.trials:
        kept = json.loads((folder / trial.name / "evaluation" / "scores.json").read_text())
        assert kept["controls"] == control.name
        assert {AUROC, F1} <= trial.figures.keys()
        assert trial.figures[F1] == kept["scores"]["pretrained"][F1] and 0 < trial.figures[F1] < 1
        assert set(kept["scores"]) == {"pretrained", "encoder_features"}
        assert trial.figures[of_variant(AUROC, "encoder_features")] == kept["scores"]["encoder_features"][AUROC]
    controls = json.loads((control / "scores.json").read_text())["scores"]
    assert set(controls) == {"random", "features", "permuted_labels"} and AUROC in controls["features"]
    results = read_results(Store(str(folder)), record)
    assert [method.name for method in results.methods] == ["01-hard", "09-soft_1-hard-50"] and not results.missing
    assert results.methods[0].control_scores(F1, "random").tolist() == pytest.approx([controls["random"][F1]])


def test_the_scores_stand_in_the_mlflow_runs(swept: list[str]) -> None:
    folder = folder_of(swept)
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "beatray"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for name in TRIALS:
        assert {AUROC, F1} <= runs[name].data.metrics.keys()
        spent = [metric.value for metric in client.get_metric_history(runs[name].info.run_id, "train/core_s")]
        assert runs[name].data.metrics["core_minutes"] == pytest.approx(sum(spent) / 60) and min(spent) > 0
        below = {item.path for item in client.list_artifacts(runs[name].info.run_id, "evaluation")}
        assert {"evaluation/results.json", "evaluation/table.md"} <= below


def test_a_step_is_timed_in_a_process_of_its_own_on_the_recordings_of_the_corpus(swept: list[str]) -> None:
    run_spec = prepare(plan_from(swept)).run_specs[TRIALS[0]]
    cost = time_step(run_spec)
    assert cost.batch_size == 24 and cost.steps == STEPS and cost.step_s > 0
    assert cost.encoder_parameters == sum(each.numel() for each in load_encoder(run_spec.run.location).parameters())


def test_only_what_is_missing_is_evaluated_again(swept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(swept)

    def encoders() -> list[int]:
        return [(folder / name / "encoder" / "files.json").stat().st_mtime_ns for name in TRIALS]

    before = encoders()
    assert main(["sweep", *swept]) == 0 and "nothing to do" in capsys.readouterr().out
    lost = folder / TRIALS[0] / "evaluation"
    was = json.loads((lost / "scores.json").read_text())
    (lost / "results.json").write_bytes(b"damaged")
    assert main(["sweep", *swept]) == 0 and "1 of 2 trials to run" in capsys.readouterr().out
    assert json.loads((lost / "scores.json").read_text()) == was and encoders() == before


def test_the_report_of_the_sweep(swept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(swept)
    assert main(["report", str(folder)]) == 0
    assert "soft_1^50 / hard" in capsys.readouterr().out
    page = (folder / "report" / "report.html").read_text()
    for title in (
        "Scores of each method",
        "Findings of the paper, and those here",
        "Class by class",
        "Where recordings lie",
    ):
        assert title in page
    assert "http://" not in page.replace("http://www.w3.org", "") and page.count("<img") >= 6
    with (folder / "report" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["1", "9", "", "", ""]
    assert rows[2]["method"].startswith("chosen on validation")
    assert rows[1]["LUDB F1 paper"] == "0.911" and rows[1]["LUDB F1 direction"] in ("same", "opposite")
    assert (folder / "report" / "table.tex").read_text().startswith(r"\begin{tabular}")
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "beatray"]
    (parent,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "two"]
    assert "report/report.html" in {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'mlflow.db'}")
        assert main(["report", parent.info.run_id]) == 0


def test_what_cannot_be_reported_or_evaluated_says_so(
    swept: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2 and "no folder of a sweep or a run" in capsys.readouterr().err
    others = [override for override in swept if not override.startswith(("out=", "corpus.", "evaluate."))]
    overrides = [*others, f"out={tmp_path}", "corpus.test_folds=[]", "corpus.hashed_test_sources=[]"]
    assert main(["sweep", *overrides]) == 2
    assert "could not be evaluated: nothing to evaluate" in capsys.readouterr().err
    assert not list(tmp_path.rglob("metrics.jsonl")), "nothing is trained for an evaluation that cannot work"
    assert main(["sweep", *overrides, "sweep.only=[15-none]"]) == 2
    assert "there is no row 15-none" in capsys.readouterr().err
