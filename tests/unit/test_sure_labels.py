"""scripts/sure_labels.py: scores where the annotators of PTB-XL were sure, and where not."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import sure_labels

from beatray.evaluate.metrics import macro_auroc
from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, Run, TaskPart, write_results
from beatray.evaluate.settings import EvaluateSettings


def evaluated(ptbxl_dir: Path, folder: Path, noise: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """results.json of an encoder on every recording of PTB-XL here that has a superclass."""
    sure = sure_labels.likelihoods([ptbxl_dir / "ptbxl_database.csv"], ptbxl_dir / "scp_statements.csv")
    ids = sorted(sure)
    truth = np.random.default_rng(1).random((len(ids), 2)) < 0.5
    odds = (2 * truth - 1) + np.random.default_rng(int(10 * noise)).normal(0, noise, truth.shape)
    outcome = Decisions(1 / (1 + np.exp(-odds)), np.full(2, 0.5))
    part = TaskPart("classify", (), tuple(ids), tuple(ids), truth, "dx", ("A", "B"))
    about = ("classify", "linear_probe", "pretrained", "e", "", 1.0, 10, 0, 0.0)
    run = Run(*about, outcome, {VALIDATION_AUROC: 0.7})
    folder.mkdir()
    write_results(Evaluation(EvaluateSettings(), {"classify": part}, (run,)), folder)
    return ids, truth, odds


def test_the_bands_are_those_of_the_least_sure_diagnostic_statement(ptbxl_dir: Path, tmp_path: Path) -> None:
    found = [evaluated(ptbxl_dir, tmp_path / name, noise) for name, noise in (("a", 1.0), ("b", 2.0))]
    given = ["--ptbxl", str(ptbxl_dir / "ptbxl_database.csv"), "--statements", str(ptbxl_dir / "scp_statements.csv")]
    out = tmp_path / "t.csv"
    assert sure_labels.main([str(tmp_path / "a"), str(tmp_path / "b"), *given, "--csv", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["likelihood"] for row in rows] == ["all", "100 %", "50 to 99 %", "below 50 %"]
    assert {row["asked"] for row in rows} == {"linear_probe, 2"}
    ids, truth, _ = found[0]
    odds = np.mean([each[2] for each in found], axis=0)
    # read off the database by eye: 1 is NORM 100 (LVOLT is a form), 2 is NORM 80, 8 is IMI 35 (ABQRS is a form)
    sure = sure_labels.likelihoods([ptbxl_dir / "ptbxl_database.csv"], ptbxl_dir / "scp_statements.csv")
    assert (sure["ptbxl/00001"], sure["ptbxl/00002"], sure["ptbxl/00008"]) == (100.0, 80.0, 35.0)
    values = np.array([sure[each] for each in ids])
    bands = (values >= 0, values == 100, (values >= 50) & (values < 100), (values > 0) & (values < 50))
    for row, here in zip(rows, bands, strict=True):
        assert int(row["recordings"]) == here.sum() > 5
        assert float(row["auroc"]) == pytest.approx(macro_auroc(truth[here], odds[here]).value, abs=1e-4)


def test_recordings_of_no_database_are_refused(ptbxl_dir: Path, tmp_path: Path) -> None:
    for name in "ab":
        evaluated(ptbxl_dir, tmp_path / name, 1.0)
    lines = (ptbxl_dir / "ptbxl_database.csv").read_text().splitlines(keepends=True)
    (tmp_path / "few.csv").write_text("".join(lines[:20]))
    given = ["--ptbxl", str(tmp_path / "few.csv"), "--statements", str(ptbxl_dir / "scp_statements.csv")]
    with pytest.raises(SystemExit, match="recordings are in no database, as ptbxl/0"):
        sure_labels.main([str(tmp_path / "a"), str(tmp_path / "b"), *given])
    given[1] = str(tmp_path / "none.csv")
    with pytest.raises(SystemExit, match=r"none\.csv"):
        sure_labels.main([str(tmp_path / "a"), str(tmp_path / "b"), *given])
