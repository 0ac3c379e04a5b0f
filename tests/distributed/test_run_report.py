"""`beatray report RUN`: of a single run, before and after it was evaluated, with and without its corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from beatray.cli import main
from beatray.commands import evaluate
from beatray.corpus.reader import open_corpus
from beatray.corpus.splits import Role, SplitPolicy, assign_roles
from beatray.train.run_folder import SETTINGS
from beatray.train.run_spec import shown_settings
from pretraining import run_spec_of, train_here

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_thread")]

QUICK = [
    "evaluate.protocols=[linear_probe,frozen_decoder]", "evaluate.seeds=[0]", "evaluate.permutations=0",
    "evaluate.inner_folds=2", "evaluate.bootstraps=20", "evaluate.decoder.steps=4", "evaluate.segment_fractions=[1.0]",
    "evaluate.workers=1", "tracking.uri=null", "corpus.test_folds=[8,9]", "corpus.validation_folds=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reported")
    overrides = ("train.workers=1", "train.epochs=2", *QUICK[-2:])
    run_spec = run_spec_of(sample_corpus, out, "one", *overrides)
    run_spec.run.write(SETTINGS, yaml.safe_dump(shown_settings(run_spec.settings)).encode())  # as a start leaves them
    assert train_here(sample_corpus, out, "one", *overrides)
    return out / "one"


def test_a_run_that_was_not_evaluated_shows_how_it_learned(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    page = (run / "report" / "report.html").read_text()
    assert "It has not been evaluated" in page and "How it learned" in page and "A recording" in page
    assert "Scores of the encoder" not in page and "For whom it is worse" not in page
    assert f"report: {run}" in capsys.readouterr().out


def test_its_evaluation_is_found_and_its_errors_are_shown(
    run: Path, sample_corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run={run}", f"corpus={sample_corpus}", f"out={run / 'evaluation'}", *QUICK]
    evaluate.run(evaluate.settings_from(overrides))
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    page = (run / "report" / "report.html").read_text()
    for heading in ("Scores of the encoder", "For whom it is worse", "What it gets most wrong", "Waves found"):
        assert heading in page, heading
    index = open_corpus(sample_corpus).index
    tested = index["record_id"][assign_roles(index, SplitPolicy((), (8, 9))) == Role.TEST]
    assert any(f"{name}: " in page for name in tested[tested.str.startswith("ptbxl")])
    assert page.count(" and the training recordings nearest to it: ") == min(
        10, int(np.sum(tested.str.startswith("ptbxl")))
    )


def test_results_of_another_encoder_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((run / "evaluation" / "results.json").read_text())
    assert list(document["encoder_sha256"]) == ["pretrained"]
    document["encoder_sha256"]["pretrained"] = "0" * 64
    (tmp_path / "results.json").write_text(json.dumps(document))
    assert main(["report", str(run), "--results", str(tmp_path)]) == 2
    assert "is from another encoder than" in capsys.readouterr().err


def test_it_can_be_made_where_the_corpus_is_not(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--corpus", str(tmp_path / "moved")]) == 0
    assert "without pictures of recordings" in capsys.readouterr().out
    page = (run / "report" / "report.html").read_text()
    assert "How it learned" in page and "What it gets most wrong" not in page


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, message in (
        ([str(tmp_path)], "holds neither sweep.json nor settings.yaml"),
        ([str(run), "--against", "simclr"], "--against is for the report of a sweep"),
        ([str(run), "--results", str(tmp_path / "no.json")], "no.json: there is no such file"),
    ):
        assert main(["report", *overrides]) == 2
        assert message in capsys.readouterr().err
