"""The report of a sweep over labels: means, gains paired by repeat, and what is missing, of known scores."""

from __future__ import annotations

import csv
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from beatray.cli import main
from beatray.corpus.manifest import Manifest, write_manifest
from beatray.corpus.schema import VERSION
from beatray.models.model_folder import describe_model, read_model, write_model
from beatray.report.model_sweep import gains_of, table_of
from beatray.storage.store import Store
from beatray.sweep.model_results import read_models
from beatray.sweep.record import RunningSweep, TrialRecord, read
from beatray.sweep.settings import SweepSettings
from made_models import made_model

FRACTIONS, SEEDS = (0.1, 1.0), (0, 1)
ROWS: dict[str, dict[str, Any]] = {
    "pretrained": {"objective.trained": "all"},
    "random": {"objective.trained": "all", "objective.from_scratch": True},
}
GAIN = {0.1: (0.2, 0.1), 1.0: (0.03, -0.01)}
"""What pretraining is made to give, by fraction and seed."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a sweep leaves it: eight trials with models whose scores are known, and one that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    model = made_model(tmp_path_factory.mktemp("model"), "multilabel")
    trials = []
    for (row, changes), fraction, seed in itertools.product(ROWS.items(), FRACTIONS, SEEDS):
        name = f"{row}__fraction-{fraction:g}__seed-{seed}"
        auroc = 0.6 + 0.1 * fraction + (GAIN[fraction][seed] if row == "pretrained" else 0.0)
        _leave(model, folder / name, fraction, {"auroc": auroc, "f1": 0.5})
        swept = {**changes, "objective.fraction": fraction, "seed": seed}
        trials.append(TrialRecord(name, swept, "finished", 1, 5, 60.0, {"validation_auroc": auroc}))
    trials.append(TrialRecord("random__fraction-1__seed-2", {**ROWS["random"], "seed": 2}, "failed", error="no"))
    RunningSweep(Store(str(folder)), "labels", SweepSettings(metric="validation_auroc", mode="max"), trials)
    return folder


def _leave(model: str, run: Path, fraction: float, scores: dict[str, float]) -> None:
    run.mkdir()
    test = {name: {"value": value, "low": value - 0.05, "high": value + 0.05} for name, value in scores.items()}
    description = {
        **describe_model(model),
        "scores": {"validation": {}, "test": test},
        "objective": {"fraction": fraction},
        "records": {"train": round(100 * fraction), "validation": 20, "test": 30, "test_seen": 0},
        "manifest_hash": "0" * 64,
    }
    write_model(Store(str(run)), read_model(model).network, description, b"", "# a model of a test\n")
    settings = {"encoder_weights": "/runs/first", "corpus": {"path": "/c", "test_folds": [9]}, "train": {"epochs": 3}}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))


def test_means_counts_and_gains_are_those_of_the_models(sweep: Path) -> None:
    record = read(Store(str(sweep)))
    assert record is not None
    results = read_models(Store(str(sweep)), record)
    assert [method.name for method in results.methods] == ["pretrained", "random"]
    assert results.fractions == FRACTIONS and results.score_names == ("auroc", "f1")
    assert results.missing == ("random__fraction-1__seed-2",)
    header, lines = table_of(results, "auroc")
    assert header == ["method", "10% of the labels", "100% of the labels"]
    assert lines == [
        ["pretrained", "0.760 ± 0.071", "0.710 ± 0.028"],
        ["random", "0.610 ± 0.000", "0.700 ± 0.000"],
        ["recordings trained on", "10", "100"],
    ]
    assert gains_of(results, "auroc")[1] == [["pretrained", "+0.150 (2 of 2)", "+0.010 (1 of 2)"]]


def test_the_command_writes_the_page_and_the_tables(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    assert "0.760 ± 0.071" in capsys.readouterr().out
    page = (sweep / "report" / "report.html").read_text()
    assert "What pretraining gave" in page and "+0.150 (2 of 2)" in page and page.count("<figure>") == 1
    assert "random__fraction-1__seed-2" in page and "7 of 8" not in page
    assert "c (/c), manifest 0000000000000000<" in page and "tested on 9, validated on none" in page
    table = (sweep / "report" / "table.md").read_text()
    assert "| pretrained | 0.760 ± 0.071 | 0.710 ± 0.028 |" in table
    with (sweep / "report" / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16 and {line["trained"] for line in lines} == {"10", "100"}
    assert float(lines[0]["value"]) == pytest.approx(0.81) and float(lines[0]["low"]) == pytest.approx(0.76)
    assert main(["report", str(sweep), "--against", "random"]) == 2
    assert "over labels" in capsys.readouterr().err


def test_a_corpus_that_has_moved_is_found(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(
        Store(str(tmp_path / "corpus")), Manifest(0, {"schema_version": VERSION}, (), {}, {"recordings": 1234})
    )
    assert main(["report", str(sweep), "--corpus", str(tmp_path / "corpus")]) == 0
    assert "manifest 0000000000000000, 1,234 recordings" in (sweep / "report" / "report.html").read_text()
    capsys.readouterr()
    assert main(["report", str(sweep), "--corpus", str(tmp_path / "nowhere")]) == 0
    assert "without the number of recordings: " in capsys.readouterr().out


def test_of_errors_less_is_better(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    shutil.copytree(sweep, folder, ignore=shutil.ignore_patterns("report"))
    for run in folder.iterdir():
        if run.is_dir():
            value = describe_model(str(run))["scores"]["test"]["auroc"]["value"]
            fraction = describe_model(str(run))["objective"]["fraction"]
            model = str(run / "model")
            kept = tmp_path / "kept"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(model, kept)
            shutil.rmtree(run)
            _leave(str(kept), run, fraction, {"mae": value})
    record = read(Store(str(folder)))
    assert record is not None
    assert gains_of(read_models(Store(str(folder)), record), "mae")[1] == [
        ["pretrained", "+0.150 (0 of 2)", "+0.010 (1 of 2)"]
    ]
