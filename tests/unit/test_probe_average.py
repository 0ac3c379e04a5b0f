"""scripts/probe_average.py: several encoders asked together."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, Run, TaskPart, write_results
from beatray.evaluate.settings import EvaluateSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import methods_table
import probe_average

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
    assert probe_average.main([*map(str, folders), "--csv", str(tmp_path / "t.csv")]) == 0
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


def test_other_recordings_and_no_results_are_refused_in_one_line(tmp_path: Path) -> None:
    first = written(tmp_path / "a", evaluation(1, 0.7))
    other = evaluation(2, 0.7)
    part = replace(other.parts["classify"], test_ids=tuple(f"ludb/{k}" for k in range(N)))
    second = written(tmp_path / "b", replace(other, parts={"classify": part}))
    with pytest.raises(SystemExit, match="was not tested on the recordings and classes of"):
        probe_average.main([str(first), str(second)])
    with pytest.raises(SystemExit, match=r"holds no results\.json"):
        probe_average.main([str(first), str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        probe_average.main([str(first)])


def test_the_table_of_the_docs_is_that_of_its_file() -> None:
    with (methods_table.FOLDER / "probe-average.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["probe"] == "linear_probe"]
    page = methods_table.PAGE.read_text()
    assert len(found) == 5
    for row in found:
        begin = f"| {100 * float(row['labels']):g} % | {float(row['best_auroc']):.3f} | {float(row['auroc']):.3f} |"
        assert begin in page, begin
