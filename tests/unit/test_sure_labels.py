"""scripts/sure_labels.py: scores where the annotators of PTB-XL were sure, and where not."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import replace
from pathlib import Path

import methods_table
import numpy as np
import pytest
import sure_labels

from beatray.evaluate.label_spaces import label_space
from beatray.evaluate.metrics import macro_auroc
from beatray.evaluate.results import VALIDATION_AUROC, Decisions, Evaluation, Run, TaskPart, write_results
from beatray.evaluate.settings import EvaluateSettings
from beatray.ingest.plan import SAMPLE


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """ptbxl_database.csv of the bundled recordings."""
    with zipfile.ZipFile(SAMPLE / "ptbxl-sample.zip") as bundle:
        name = next(name for name in bundle.namelist() if name.endswith("ptbxl_database.csv"))
        return Path(bundle.extract(name, tmp_path))


def evaluation(ids: list[str], seed: int, classes: tuple[str, ...]) -> Evaluation:
    """An encoder that tells the truth with noise of its own."""
    truth = np.random.default_rng(1).random((len(ids), len(classes))) < 0.5
    odds = (2 * truth - 1) + np.random.default_rng(seed).normal(0, 1 + seed, truth.shape)
    part = TaskPart("classify", (), tuple(ids), tuple(ids), truth, "dx", classes)
    about = ("classify", "linear_probe", "pretrained", "e", "", 1.0, 10, 0, 0.0)
    run = Run(*about, Decisions(1 / (1 + np.exp(-odds)), np.full(len(classes), 0.5)), {VALIDATION_AUROC: 0.7})
    return Evaluation(EvaluateSettings(), {"classify": part}, (run,))


def written(folder: Path, made: Evaluation) -> str:
    folder.mkdir()
    write_results(made, folder)
    return str(folder)


SUPERCLASSES = label_space("superdiagnostic", (), 1).classes


def test_the_bands_are_those_of_the_least_sure_diagnostic_statement(database: Path, tmp_path: Path) -> None:
    sure = sure_labels.likelihoods([database])
    # by eye: 7 is NORM 100 (SR 0 is a rhythm), 8 IMI 35 (ABQRS 0 is a form), 39 IMI 15 and others, 17 AFLT, a rhythm
    assert [sure.get(f"ptbxl/{number:05d}") for number in (7, 8, 39, 17)] == [100.0, 35.0, 15.0, None]
    ids = sorted(sure)
    made = [evaluation(ids, seed, SUPERCLASSES) for seed in range(3)]
    made[2] = replace(made[2], runs=tuple(replace(run, variant="random") for run in made[2].runs))
    folders = [written(tmp_path / str(k), each) for k, each in enumerate(made)]
    out = tmp_path / "t.csv"
    given = [*folders[:2], "--random", folders[2], "--ptbxl", str(database), "--csv", str(out)]
    assert sure_labels.main(given) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["likelihood"] for row in rows[::2]] == ["all", "100 %", "50 to 99 %", "below 50 %"]
    assert [row["asked"] for row in rows[:2]] == ["random weights, 1", "linear_probe, 2"]
    truth = made[0].parts["classify"].truth
    assert truth is not None
    scores = [run.outcome.scores for each in made[:2] for run in each.runs]  # type: ignore[union-attr]
    odds = np.mean([np.log(p / (1 - p)) for p in scores], axis=0)
    values = np.array([sure[each] for each in ids])
    bands = (values >= 0, values == 100, (values >= 50) & (values < 100), (values > 0) & (values < 50))
    for row, here in zip(rows[1::2], bands, strict=True):
        score = macro_auroc(truth[here], odds[here])
        assert (int(row["recordings"]), int(row["classes"])) == (here.sum(), score.counted)
        assert float(row["auroc"]) == pytest.approx(score.value, abs=1e-5)


def test_a_band_without_recordings_has_no_row_and_a_class_of_one_answer_is_not_counted() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 1]], bool)
    part = TaskPart("classify", (), tuple("abcd"), tuple("abcd"), truth, "dx", ("A", "B"))
    shown = {"all of them": Decisions(np.array([[0.9, 0.2], [0.1, 0.9], [0.8, 0.7], [0.3, 0.6]]), np.full(2, 0.5))}
    rows = sure_labels.rows(shown, part, np.array([100.0, 100.0, 60.0, 60.0]))
    assert [(row["likelihood"], row["recordings"], row["classes"]) for row in rows] == [
        ("all", "4", "2"), ("100 %", "2", "2"), ("50 to 99 %", "2", "1")
    ]  # fmt: skip


def test_other_classes_recordings_and_files_are_refused(database: Path, tmp_path: Path) -> None:
    ids = sorted(sure_labels.likelihoods([database]))
    pair = [written(tmp_path / f"s{k}", evaluation(ids, k, SUPERCLASSES)) for k in range(2)]
    others = [written(tmp_path / f"o{k}", evaluation(ids, k, ("SR", "AF"))) for k in range(2)]
    few = tmp_path / "few.csv"
    few.write_text("".join(database.read_text().splitlines(keepends=True)[:20]))
    no_database = tmp_path / "n.csv"
    no_database.write_text("a,b\n1,2\n")
    for folders, file, message in (
        (others, database, "are of SR, AF, not of PTB-XL's superclasses"),
        (pair, few, "recordings have no diagnostic statement in the databases that are given, as ptbxl/0"),
        (pair, no_database, r"n\.csv is not PTB-XL's ptbxl_database\.csv \(KeyError\('scp_codes'\)\)"),
        (pair, tmp_path / "none.csv", r"none\.csv is not PTB-XL's"),
    ):
        with pytest.raises(SystemExit, match=message):
            sure_labels.main([*folders, "--ptbxl", str(file)])


def test_the_table_of_the_docs_is_that_of_its_file() -> None:
    with (methods_table.FOLDER / "sure-labels.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {row["classes"] for row in found} == {"5"}
    page = methods_table.PAGE.read_text()
    for band in ("all", "100 %", "50 to 99 %", "below 50 %"):
        here = [row for row in found if row["likelihood"] == band and not row["asked"].startswith("both")]
        values = [f"{float(r['auroc']):.3f} ({float(r['low']):.3f} to {float(r['high']):.3f})" for r in here]
        assert f"| {band} | {here[0]['recordings']} | {' | '.join(values)} |" in page
