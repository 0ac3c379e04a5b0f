"""scripts/asked_together.py: several encoders asked together."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import asked_together
import methods_table
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import beatray
from beatray.corpus.reader import Rows, open_corpus
from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, Run, TaskPart, write_results
from beatray.evaluate.settings import EvaluateSettings
from made_models import CLASSES, made_model

N = 120


def evaluation(seed: int, validation: float, fractions: tuple[float, ...] = (0.1, 1.0)) -> Evaluation:
    """An encoder whose probabilities are the truth with noise of its own."""
    draw = np.random.default_rng(0)
    truth = draw.random((N, 3)) < 0.4
    ids = tuple(f"ptbxl/{k}" for k in range(N))
    part = TaskPart("classify", (), ids, tuple(f"p{k // 2}" for k in range(N)), truth, "dx", ("A", "B", "C"))
    noise = np.random.default_rng(seed).normal(0, 2, (N, 3))
    runs = []
    for fraction in fractions:
        odds = (2 * truth - 1) * fraction + noise
        outcome = Decisions(1 / (1 + np.exp(-odds)), np.full(3, 0.5))
        about = ("classify", "linear_probe", "pretrained", f"e{seed}", "", fraction, 10, 0, 0.0)
        runs.append(Run(*about, outcome, {VALIDATION_AUROC: validation}))
        runs.append(replace(runs[-1], condition="noise 3"))
    return Evaluation(EvaluateSettings(), {"classify": part}, tuple(runs))


def written(folder: Path, made: Evaluation) -> Path:
    folder.mkdir(parents=True)
    write_results(made, folder)
    return folder


def test_the_average_is_of_the_log_odds_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {"a": evaluation(1, 0.7), "b": evaluation(2, 0.8), "c": evaluation(3, 0.6, (1.0,))}
    folders = [written(tmp_path / name / "evaluation", each) for name, each in made.items()]
    assert asked_together.main([*map(str, folders), "--csv", str(tmp_path / "t.csv")]) == 0
    with (tmp_path / "t.csv").open() as file:
        (row,) = csv.DictReader(file)  # only what all of them have
    truth = made["a"].parts["classify"].truth
    scores = [run.outcome.scores for each in made.values() for run in each.runs if run.fraction == 1.0][::2]  # type: ignore[union-attr]
    odds = np.mean([np.log(p / (1 - p)) for p in scores], axis=0)
    expected = [np.mean([roc_auc_score(truth[:, k], each[:, k]) for k in range(3)]) for each in (odds, scores[1])]  # type: ignore[index]
    assert float(row["auroc"]) == pytest.approx(expected[0], abs=1e-4)
    assert (row["best"], float(row["best_auroc"])) == ("b", pytest.approx(expected[1], abs=1e-4))
    assert float(row["low"]) < float(row["auroc"]) < float(row["high"]) and row["encoders"] == "3"
    assert float(row["gain"]) == pytest.approx(expected[0] - expected[1], abs=2e-4) and float(row["gain_low"]) > 0
    assert "| linear_probe | 100 % | `b` |" in capsys.readouterr().out


def test_random_weights_stand_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [evaluation(seed, 0.7) for seed in range(3)]
    runs = tuple(replace(run, variant="random") for run in made[2].runs)
    folders = [written(tmp_path / str(k), each) for k, each in enumerate((*made[:2], replace(made[2], runs=runs)))]
    assert asked_together.main([str(folders[0]), str(folders[1]), "--random", str(folders[2])]) == 0
    lines = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == [[f"| {name}", share] for name in ("linear_probe", "random weights") for share in ("10 %", "100 %")]


@pytest.fixture
def fine_tuned(sample_files: str, tmp_path: Path) -> tuple[list[Path], list[str], Rows]:
    """Two evaluations on recordings of a corpus, two models of the same classes, and the recordings."""
    corpus = open_corpus(sample_files)
    rows = corpus.rows(np.flatnonzero(corpus.index["source"] == "ptbxl")[::-1])
    n = len(rows)
    truth = np.random.default_rng(0).random((n, 3)) < 0.4
    part = TaskPart("classify", (), tuple(rows.record_id), tuple(f"p{k}" for k in range(n)), truth, "dx", CLASSES)
    folders = []
    for seed in range(2):
        whole = evaluation(seed, 0.7)
        own = (replace(run, outcome=Decisions(run.outcome.scores[:n], np.full(3, 0.5))) for run in whole.runs)  # type: ignore[union-attr]
        folders.append(written(tmp_path / f"e{seed}", replace(whole, parts={"classify": part}, runs=tuple(own))))
    score = {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}, "f1": {"value": 0.6}}
    about = {
        "objective": {"fraction": 0.1},
        "records": {"train": 9, "test": n},
        "train": {"epochs": 30},
        "scores": {"validation": {"auroc": {"value": 0.75}}, "test": score},
    }
    models = [made_model(tmp_path / name, "multilabel", seed=k, **about) for k, name in enumerate(("a", "b"))]
    return folders, models, rows


def test_models_answer_the_recordings_of_the_evaluations(
    fine_tuned: tuple[list[Path], list[str], Rows], sample_files: str, tmp_path: Path
) -> None:
    folders, runs, rows = fine_tuned
    files = [str(tmp_path / "t.csv"), str(tmp_path / "each.csv")]
    given = [*map(str, folders), "--models", *runs, "--corpus", sample_files]
    assert asked_together.main([*given, "--csv", files[0], "--each", files[1]]) == 0
    table, each = (list(csv.DictReader(Path(file).read_text().splitlines())) for file in files)
    found = {(row["probe"], row["labels"]): row for row in table}
    assert sorted(found) == [
        ("finetune", "0.1"), ("linear_probe", "0.1"), ("linear_probe", "1"), ("linear_probe+finetune", "0.1")
    ]  # fmt: skip
    answers = [beatray.load_model(run).predict_proba(rows.signal_uv / 1000) for run in runs]
    part, probes = asked_together.read(folders[0]).parts["classify"], [asked_together.read(each) for each in folders]
    said = [next(run.outcome.scores for run in made.runs if run.fraction == 0.1) for made in probes]  # type: ignore[union-attr]
    assert part.truth is not None
    for name, given_by in (("finetune", answers), ("linear_probe+finetune", [*said, *answers])):
        odds = np.mean([np.log(p / (1 - p)) for p in given_by], axis=0)
        expected = np.mean([roc_auc_score(part.truth[:, k], odds[:, k]) for k in range(3)])
        assert float(found[name, "0.1"]["auroc"]) == pytest.approx(expected, abs=2e-3), name
        assert found[name, "0.1"]["encoders"] == str(len(given_by))
    assert each[0] == {
        "method": "a", "labels": "0.1", "auroc": "0.8000", "low": "0.7000", "high": "0.9000", "f1": "0.6000",
        "validation_auroc": "0.7500", "train_records": "9", "epochs": "30",
    }  # fmt: skip


def test_a_model_of_other_classes_or_recordings_is_refused(
    fine_tuned: tuple[list[Path], list[str], Rows], sample_files: str, tmp_path: Path
) -> None:
    folders, runs, _ = fine_tuned
    given = [*map(str, folders), "--corpus", sample_files, "--models"]
    waves = made_model(tmp_path / "w", "waves")
    for run, message in ((waves, "tells P, QRS, T apart"), (str(tmp_path / "none"), "none")):
        with pytest.raises(SystemExit, match=message):
            asked_together.main([*given, run])
    fewer = evaluation(0, 0.7)  # of recordings that the corpus lacks
    with pytest.raises(SystemExit, match="lacks 120 of 120 test recordings, as ptbxl/0"):
        asked_together.main(
            [str(written(tmp_path / name, fewer)) for name in "xy"] + ["--corpus", sample_files, "--models", *runs]
        )
    for wrong in ([*given[:2], "--models", *runs], given[:-1]):
        with pytest.raises(SystemExit):
            asked_together.main(wrong)


def test_other_recordings_and_no_results_are_refused_in_one_line(tmp_path: Path) -> None:
    first = written(tmp_path / "a", evaluation(1, 0.7))
    other = evaluation(2, 0.7)
    part = replace(other.parts["classify"], test_ids=tuple(f"ludb/{k}" for k in range(N)))
    second = written(tmp_path / "b", replace(other, parts={"classify": part}))
    with pytest.raises(SystemExit, match="was not tested on the recordings and classes of"):
        asked_together.main([str(first), str(second)])
    with pytest.raises(SystemExit, match=r"holds no results\.json"):
        asked_together.main([str(first), str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        asked_together.main([str(first)])


def test_the_table_of_the_docs_is_that_of_its_file() -> None:
    with (methods_table.FOLDER / "asked-together.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["probe"] == "linear_probe"]
    page = methods_table.PAGE.read_text()
    assert len(found) == 5
    for row in found:
        begin = f"| {100 * float(row['labels']):g} % | {float(row['best_auroc']):.3f} | {float(row['auroc']):.3f} |"
        assert begin in page, begin
