"""scripts/asked_together.py: several encoders asked together."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asked_together
import methods_table
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import beatray
from beatray.corpus.reader import Rows, open_corpus
from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, Run, TaskPart, write_results
from beatray.evaluate.settings import EvaluateSettings
from beatray.models.model_folder import describe_model, read_model, write_model
from beatray.storage.store import Store
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
    assert float(row["low"]) < float(row["auroc"]) < float(row["high"]) and row["members"] == "3"
    assert float(row["gain"]) == pytest.approx(expected[0] - expected[1], abs=2e-4) and float(row["gain_low"]) > 0
    assert "| linear_probe, 3 | 100 % | `b` |" in capsys.readouterr().out


def macro(truth: np.ndarray, odds: np.ndarray) -> float:
    return float(np.mean([roc_auc_score(truth[:, k], odds[:, k]) for k in range(truth.shape[1])]))


def log_odds(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean([np.log(p / (1 - p)) for p in probabilities], axis=0)


def as_random(made: Evaluation) -> Evaluation:
    return replace(made, runs=tuple(replace(run, variant="random") for run in made.runs))


def test_random_weights_stand_beside_them(tmp_path: Path) -> None:
    made = [evaluation(seed, 0.7) for seed in range(4)]
    folders = [written(tmp_path / str(k), each if k < 2 else as_random(each)) for k, each in enumerate(made)]
    given = [*map(str, folders[:2]), "--random", *map(str, folders[2:])]
    assert asked_together.main([*given, "--csv", str(tmp_path / "t.csv")]) == 0
    table = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    found = {(row["asked"], row["labels"]): row for row in table}
    assert list(found) == [(who, share) for who in ("linear_probe", "random weights") for share in ("0.1", "1")]
    truth = made[0].parts["classify"].truth
    scores = [run.outcome.scores for each in made[2:] for run in each.runs if run.fraction == 1.0][::2]  # type: ignore[union-attr]
    row = found["random weights", "1"]
    assert row["members"] == "2" and float(row["auroc"]) == pytest.approx(macro(truth, log_odds(scores)), abs=1e-5)  # type: ignore[arg-type]


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
    models = [
        made_model(tmp_path / f"{name}-{share:g}", "multilabel", seed=k, **about(share))
        for share in (0.1, 1.0)
        for k, name in enumerate("ab")
    ]
    return folders, models, rows


def about(share: float, **objective: Any) -> dict[str, Any]:
    """What a model folder also has of the run that made it."""
    test = {"auroc": {"value": 0.8, "low": 0.7, "high": None}, "f1": {"value": 0.6}}
    return {
        "objective": {"fraction": share, "fraction_seed": 0, **objective},
        "records": {"train": 9, "test": 60},
        "made_of": {"steps": 30},
        "scores": {"validation": {"auroc": {"value": 0.75}}, "test": test},
    }


def test_models_answer_the_recordings_of_the_evaluations(
    fine_tuned: tuple[list[Path], list[str], Rows], sample_files: str, tmp_path: Path
) -> None:
    folders, runs, rows = fine_tuned
    files = [tmp_path / "t.csv", tmp_path / "each.csv"]
    given = [*map(str, folders), "--models", *runs, "--corpus", sample_files]
    assert asked_together.main([*given, "--csv", str(files[0]), "--each", str(files[1])]) == 0
    table, each = (list(csv.DictReader(file.read_text().splitlines())) for file in files)
    found = {(row["asked"], row["labels"]): row for row in table}
    expected = [
        ("both averages", "1"),
        *((who, share) for who in ("fine-tuned", "linear_probe") for share in ("0.1", "1")),
    ]
    assert list(found) == expected
    answers = [beatray.load_model(run).predict_proba(rows.signal_uv / 1000) for run in runs]
    probes = [asked_together.read(folder) for folder in folders]
    said = [next(run.outcome.scores for run in made.runs if run.fraction == 1.0) for made in probes]  # type: ignore[union-attr]
    truth = probes[0].parts["classify"].truth
    assert truth is not None
    averages = [log_odds(said), log_odds(answers[2:])]
    for name, share, odds, members in (
        ("fine-tuned", "0.1", log_odds(answers[:2]), "2"),
        ("fine-tuned", "1", averages[1], "2"),
        ("both averages", "1", np.mean(averages, axis=0), "2"),
    ):
        assert float(found[name, share]["auroc"]) == pytest.approx(macro(truth, odds), abs=2e-3), name
        assert found[name, share]["members"] == members
    assert found["both averages", "1"]["best"] == ""  # they validate differently
    assert [row["run"] for row in each] == ["a-0.1", "b-0.1", "a-1", "b-1"]
    assert each[0] == {
        "run": "a-0.1", "labels": "0.1", "auroc": "0.8", "low": "0.7", "high": "", "f1": "0.6",
        "validation_auroc": "0.75", "train_records": "9", "steps": "30",
    }  # fmt: skip


def test_a_model_that_cannot_be_asked_is_refused(
    fine_tuned: tuple[list[Path], list[str], Rows], sample_files: str, tmp_path: Path
) -> None:
    folders, runs, rows = fine_tuned
    corpus = open_corpus(sample_files)
    given = [*map(str, folders), "--corpus", sample_files, "--models"]
    waves = made_model(tmp_path / "w", "waves", **about(1.0))
    turned = made_model(tmp_path / "t", "multilabel", **about(1.0), names=CLASSES[::-1])
    other = made_model(tmp_path / "o", "multilabel", **about(1.0), recipe={**corpus.recipe, "rate_hz": 250})
    seeds = [made_model(tmp_path / f"s{k}", "multilabel", **about(0.1, fraction_seed=k)) for k in range(2)]
    at = corpus.index["record_id"].tolist().index(rows.record_id[3])
    seen = made_model(tmp_path / "seen", "multilabel", **about(1.0))
    rewrite(Path(seen), corpus.index["content_hash"][at][:8])
    for wrong, message in (
        ([waves], "is a model of waves for P, QRS, T; the evaluations are of several labels, AF, LBBB, SR"),
        ([turned], "SR, LBBB, AF; the evaluations"),
        ([other], "rate_hz"),
        (seeds, r"learned from different patients \(seeds 1 and 0\), and together from more than 10 %"),
        ([seen], "was trained on 1 of the 60 test recordings"),
        ([str(tmp_path / "none")], "none"),
        ([runs[0], runs[0]], "give the same answers"),
    ):
        with pytest.raises(SystemExit, match=message):
            asked_together.main([*given, *wrong])
    for name in "xy":
        written(tmp_path / name, evaluation(ord(name), 0.7))  # of recordings that the corpus lacks
    with pytest.raises(SystemExit, match="lacks 120 of 120 test recordings, as ptbxl/0"):
        asked_together.main([str(tmp_path / "x"), str(tmp_path / "y"), *given[2:], *runs])
    for wrong in ([*given[:2], "--models", *runs], given[:-1], [*given[:2], "--each", str(tmp_path / "each")]):
        with pytest.raises(SystemExit, match="2"):
            asked_together.main(wrong)


def rewrite(run: Path, trained_on: bytes) -> None:
    """The model of a run as if it had been trained on recordings with these content hashes."""
    model = read_model(str(run))
    description = describe_model(str(run))
    shutil.rmtree(run)
    write_model(Store(str(run)), model.network, description, trained_on, "")


def test_what_is_given_twice_or_has_nothing_in_common_is_refused(tmp_path: Path) -> None:
    made = {"a": evaluation(1, 0.7), "b": evaluation(2, 0.8, (0.1,)), "c": evaluation(3, 0.8, (1.0,))}
    folders = {name: str(written(tmp_path / name, each)) for name, each in made.items()}
    for names, message in ((["a", "a"], "give each encoder once"), (["b", "c"], "is common to all evaluations")):
        with pytest.raises(SystemExit, match=message):
            asked_together.main([folders[name] for name in names])
    with pytest.raises(SystemExit, match=r"has no probe of the classification \(random\)"):
        asked_together.main([folders["a"], folders["b"], "--random", folders["c"]])


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
        found = {(row["asked"], row["labels"]): row for row in csv.DictReader(file)}
    page = methods_table.PAGE.read_text()
    for labels in ("0.01", "0.05", "0.1", "0.5", "1"):
        cells = [f"{100 * float(labels):g} %", f"{float(found['random weights', labels]['auroc']):.3f}"]
        for who in ("linear_probe", "fine-tuned"):
            row = found.get((who, labels))
            numbers = [f"{float(row[key]):.3f}" for key in ("best_auroc", "auroc", "low", "high")] if row else []
            cells += [*numbers[:2], f"{numbers[2]} to {numbers[3]}"] if row else ["-"] * 3
        assert f"| {' | '.join(cells)} |" in page, cells
