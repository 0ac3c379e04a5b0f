"""A user's own table as the label space of `beatray evaluate`: on real recordings behind a corpus's face."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from beatray.cli import main
from beatray.commands.evaluate import settings_from
from beatray.commands.job import main as job
from beatray.corpus.label_settings import LabelSettings
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import LabelError, SettingsError
from beatray.evaluate.classify import Classifier, train_classifier
from beatray.evaluate.detail_tables import class_rows
from beatray.evaluate.encoders import EncoderSpec, build
from beatray.evaluate.files import write_tables
from beatray.evaluate.held_out import evaluate_encoder
from beatray.evaluate.intervals import class_scores
from beatray.evaluate.label_spaces import label_space
from beatray.evaluate.metrics import IGNORE, best_thresholds, macro_auroc, macro_average_precision, macro_f1
from beatray.evaluate.older import settings_today
from beatray.evaluate.probes import choose_and_fit, known_only, logistic, neighbours
from beatray.evaluate.results import Decisions, plain
from beatray.evaluate.settings import EvaluateSettings, FitSettings, quick
from beatray.schema import as_dict
from beatray.settings import CorpusSettings
from beatray.sweep.evaluation import _made_of
from corpus_of_rows import RowsOfCorpus
from evaluation_rows import read_rows
from label_tables import written

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"
POLICY = CorpusSettings(validation_folds=(8,), test_folds=(9,))


@pytest.fixture(scope="module")
def corpus() -> RowsOfCorpus:
    return RowsOfCorpus(
        read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 90), ludb=(str(SAMPLE / "ludb-sample.zip"), 4))
    )


def plan(labels: str = "table", **changes: Any) -> EvaluateSettings:
    base = replace(quick(), protocols=("classify/linear_probe",), permutations=1, tasks=("classify",))
    own = changes.pop("own", LabelSettings())
    return replace(base, classify=replace(base.classify, labels=labels), labels=own, **changes)


def evaluated(corpus: RowsOfCorpus, settings: EvaluateSettings) -> Any:
    return evaluate_encoder(corpus, POLICY, EncoderSpec("tiny"), settings)[0]  # type: ignore[arg-type]


def superclasses(corpus: RowsOfCorpus, folder: Path, form: str) -> Path:
    """The superclasses of every recording that has one, as a user would write them down."""
    space, rows = label_space("superdiagnostic"), corpus.rows(np.arange(len(corpus.index)))
    lines = ["ecg_id,superclass" if form == "words" else "ecg_id," + ",".join(space.classes)]
    for record, row in zip(rows.record_id, space.targets(rows.labels), strict=True):
        names = "|".join(name for name, here in zip(space.classes, row, strict=True) if here)
        cells = names if form == "words" else ",".join("" if not row.any() else str(int(here)) for here in row)
        lines.append(f"{record.partition('/')[2] if record.startswith('ptbxl') else record},{cells}")
    return written(folder, "\n".join(lines))


@pytest.mark.parametrize("form", ["words", "columns"])
def test_superclasses_as_a_table_score_as_those_of_the_corpus_to_the_last_digit(
    corpus: RowsOfCorpus, tmp_path: Path, form: str
) -> None:
    changes: dict[str, Any] = {
        "classify_fractions": (0.5, 1.0),
        "protocols": ("linear_probe", "knn", "classify/finetune"),
    }
    from_table = evaluated(corpus, plan(own=LabelSettings(table=str(superclasses(corpus, tmp_path, form))), **changes))
    theirs = evaluated(corpus, plan("superdiagnostic", **changes))
    mine, published = from_table.parts["classify"], theirs.parts["classify"]
    assert mine.classes == published.classes and mine.test_ids == published.test_ids
    assert mine.train_ids == published.train_ids and np.array_equal(mine.truth, published.truth)
    assert [run.metrics for run in from_table.runs] == [run.metrics for run in theirs.runs] and len(
        from_table.runs
    ) >= 12
    for one, two in zip(from_table.runs, theirs.runs, strict=True):
        assert np.array_equal(one.outcome.scores, two.outcome.scores)
    assert mine.title == "labels.csv" and published.title == "PTB-XL superclasses"


def test_a_class_is_trained_and_scored_where_it_is_known(corpus: RowsOfCorpus, tmp_path: Path) -> None:
    """Of a table with holes: the other column's numbers are as if the holes were not there."""
    table = superclasses(corpus, tmp_path, "columns").read_text().splitlines()
    draw = np.random.default_rng(2)
    holes = [",".join([*line.split(",")[:4], "" if draw.random() < 0.4 else line.split(",")[4]]) for line in table[1:]]
    text = "ecg_id,CD,HYP,MI,NORM\n" + "\n".join(holes)
    own = LabelSettings(table=str(written(tmp_path, text, "holes.csv")))
    found = evaluated(corpus, plan(own=own, baselines=True, classify_fractions=(0.5, 1.0)))
    part = found.parts["classify"]
    assert part.truth is not None and part.truth.dtype == np.int8
    unknown = part.truth == IGNORE
    assert unknown[:, 3].sum() > 3 and not unknown[:, :3].any()
    full = evaluated(corpus, plan(own=LabelSettings(table=str(written(tmp_path, "\n".join(",".join(
        line.split(",")[:4]) for line in table), "three.csv"))), classify_fractions=(0.5, 1.0)))  # fmt: skip
    assert full.parts["classify"].test_ids == part.test_ids
    for run in found.runs:
        assert run.outcome.scores.shape == part.truth.shape and np.isfinite(run.outcome.scores).all()
        known = ~unknown[:, 3]
        areas = [roc_auc_score(part.truth[:, k] == 1, run.outcome.scores[:, k]) for k in range(3)]
        areas.append(roc_auc_score(part.truth[known, 3] == 1, run.outcome.scores[known, 3]))
        assert run.metrics["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    rows = {row.name: row for row in class_rows(found) if row.variant == "random" and row.fraction == 1.0}
    assert list(rows) == ["CD", "HYP", "MI", "NORM"] and rows["NORM"].test_positives == (part.truth[:, 3] == 1).sum()
    write_tables(found, tmp_path / "out", corpus.rows(np.arange(len(corpus.index))))
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["tasks"]["classify"]["classes"] == ["CD", "HYP", "MI", "NORM"]
    assert [
        [-1 if v is None else v for v in row] for row in stored["tasks"]["classify"]["truth"]
    ] == part.truth.tolist()
    for name in ("classes.md", "table.md"):
        assert {"classes.md": "| NORM |", "table.md": "holes.csv"}[name] in (tmp_path / "out" / name).read_text()


def test_scores_with_unknown_labels_are_those_of_scikit_learn_on_the_known_ones() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, (60, 3)).astype(np.int8)
    truth[draw.random((60, 3)) < 0.3] = IGNORE
    truth[:, 2] = IGNORE  # known nowhere
    scores = draw.random((60, 3)).round(2)
    for k in range(2):
        known = truth[:, k] != IGNORE
        y, s = truth[known, k] == 1, scores[known, k]
        assert macro_auroc(truth, scores).per_class[k] == pytest.approx(roc_auc_score(y, s))
        assert macro_average_precision(truth, scores).per_class[k] == pytest.approx(average_precision_score(y, s))
        assert macro_f1(truth, scores >= 0.5).per_class[k] == pytest.approx(f1_score(y, s >= 0.5))
        assert best_thresholds(truth, scores)[k] == best_thresholds(y[:, None], s[:, None])[0]
        weighted = class_scores(Decisions(scores, np.full(3, 0.5)), truth, np.ones((2, 60)))
        assert weighted["auroc"][1, k] == pytest.approx(roc_auc_score(y, s))
        assert weighted["auprc"][0, k] == pytest.approx(average_precision_score(y, s))
        assert weighted["f1"][0, k] == pytest.approx(f1_score(y, s >= 0.5))
    assert np.isnan(macro_auroc(truth, scores).per_class[2]) and macro_auroc(truth, scores).counted == 2
    assert np.isnan(weighted["auroc"][:, 2]).all() and np.isnan(weighted["f1"][:, 2]).all()
    assert best_thresholds(truth, scores)[2] == 0.5


def test_probes_learn_a_class_from_the_records_where_it_is_known() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(80, 5)).astype(np.float32)
    y = (x[:, :2] + 0.5 * draw.normal(size=(80, 2)) > 0).astype(np.int8)
    masked = np.concatenate([y, y[:, :1]], axis=1)
    masked[::3, 1] = IGNORE
    masked[:, 2] = IGNORE
    known = masked[:, 1] != IGNORE
    found = known_only(logistic)(x, masked, [1.0])(x)[0]
    whole, part = logistic(x, y[:, :1] == 1, [1.0])(x)[0], logistic(x[known], y[known, 1:] == 1, [1.0])(x)[0]
    assert np.array_equal(found[:, :1], whole) and np.array_equal(found[:, 1:2], part) and (found[:, 2] == 0).all()
    z = (x[known] - x[known].mean(axis=0)) / x[known].std(axis=0)
    plain = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(z, y[known, 1])
    assert found[known, 1] == pytest.approx(plain.predict_proba(z)[:, 1], abs=1e-4)
    votes = known_only(neighbours)(x, masked, [3])(x)[0]
    assert np.array_equal(votes[:, 1:2], neighbours(x[known], y[known, 1:] == 1, [3])(x)[0])


def test_a_choice_with_unknown_labels_is_that_without_their_records() -> None:
    """Candidate, thresholds, validation AUROC and scores, for one class of which a third is not known."""
    draw = np.random.default_rng(4)
    x = draw.normal(size=(90, 4)).astype(np.float32)
    truth = (x[:, :1] + draw.normal(size=(90, 1)) > 0).astype(np.int8)
    truth[draw.random(90) < 0.33] = IGNORE
    train, validation = np.arange(60), np.arange(60, 90)
    known = [part[truth[part, 0] != IGNORE] for part in (train, validation)]
    penalties = [1e-4, 1e-2, 1.0]
    masked = choose_and_fit(logistic, penalties, x, truth, train, [(train, validation)])
    plain = choose_and_fit(logistic, penalties, x, truth == 1, known[0], [(known[0], known[1])])
    assert masked.candidate == plain.candidate and masked.validation_auroc == plain.validation_auroc
    assert np.array_equal(masked.thresholds, plain.thresholds) and np.array_equal(masked.scores(x), plain.scores(x))


def test_fine_tuning_does_not_learn_from_what_is_unknown() -> None:
    """The output of a class that is known nowhere stays where it began; all known is the usual loss."""
    draw = np.random.default_rng(3)
    x, n_samples = draw.normal(size=(6, 12, 600)).astype(np.float32), np.full(6, 600)
    fit = FitSettings(steps=3, batch_size=3, crop_samples=500, weight_decay=0.0)

    def trained(truth: np.ndarray) -> list[np.ndarray]:
        made = train_classifier(build(EncoderSpec("tiny"), 0), x, n_samples, truth, np.arange(6), fit, 1e-3, 0)
        return [p.detach().numpy() for p in made.get_submodule("head").parameters()]

    encoder = build(EncoderSpec("tiny"), 0)
    torch.manual_seed(0)
    begun = [p.detach().numpy() for p in Classifier(encoder, 2).head.parameters()]
    truth = draw.integers(0, 2, (6, 2)).astype(np.int8)
    for now, whole, usual in zip(trained(truth), trained(truth == 1), begun, strict=True):
        assert np.allclose(now, whole, atol=1e-6) and not np.array_equal(now[1], usual[1])
    truth[:, 1] = IGNORE
    for now, then in zip(trained(truth), begun, strict=True):
        assert np.array_equal(now[1], then[1]) and not np.array_equal(now[0], then[0])


def test_two_classes_of_one_name_are_refused(corpus: RowsOfCorpus, tmp_path: Path) -> None:
    names = corpus.rows(np.arange(len(corpus.index))).record_id
    rows = [f"{name},{k % 2},{'AF' if k % 3 else 'SR'},{k % 2}" for k, name in enumerate(names)]
    table = written(tmp_path, "record,rhythm=AF,rhythm,b\n" + "\n".join(rows))
    with pytest.raises(LabelError, match="two classes called 'rhythm=AF': rename a column"):
        evaluated(corpus, plan(own=LabelSettings(table=str(table))))


def test_numbers_and_conditions(corpus: RowsOfCorpus, tmp_path: Path) -> None:
    rows = corpus.rows(np.arange(len(corpus.index)))
    ages = [f"{r},{'' if np.isnan(a) else a:}" for r, a in zip(rows.record_id, rows.age.tolist(), strict=True)]
    table = written(tmp_path, "record,age\n" + "\n".join(ages))
    with pytest.raises(LabelError, match=r"has numbers alone \(age\), which are no classes: .*labels\.targets"):
        evaluated(corpus, plan(own=LabelSettings(table=str(table))))
    old = LabelSettings(table=str(table), targets={"old": "age >= 65"})
    found = evaluated(corpus, plan(own=old))
    part = found.parts["classify"]
    age = dict(zip(rows.record_id, rows.age.tolist(), strict=True))
    assert part.classes == ("old",) and part.truth is not None
    assert [bool(v) for v in part.truth[:, 0]] == [age[i] >= 65 for i in part.test_ids]
    roles = assign_roles(corpus.index, policy_of(POLICY))
    tested = corpus.index["record_id"][roles == Role.TEST]
    assert set(part.test_ids) == {name for name in tested if not np.isnan(age[name])} and not part.truth.all()
    notes = " ".join(found.notes)
    assert "old: set as age >= 65." in notes and "Numbers are not classified: age" in notes and "SHA-256" in notes


def test_a_patient_of_the_table_in_two_splits_is_refused(corpus: RowsOfCorpus, tmp_path: Path) -> None:
    """What the corpus takes for two patients may be one by the table."""
    lines = [f"{name},{k % 2},p{k // 9}" for k, name in enumerate(corpus.index["record_id"])]
    table = written(tmp_path, "record,ill,mrn\n" + "\n".join(lines))
    with pytest.raises(LabelError, match=r"labels\.csv: \d+ patients of column 'mrn' have recordings in two splits"):
        evaluated(corpus, plan(own=LabelSettings(table=str(table))))
    alone = written(tmp_path, "record,ill,mrn\n" + "\n".join(f"{line}-{k}" for k, line in enumerate(lines)))
    assert evaluated(corpus, plan(own=LabelSettings(table=str(alone)), baselines=False)).parts


def test_classes_of_several_columns_carry_the_name_of_theirs(corpus: RowsOfCorpus, tmp_path: Path) -> None:
    names = corpus.index["record_id"].tolist()
    lines = [f"{name},{'ab'[k % 2]},{k % 3 == 0:d},{'ac'[k % 5 == 0]}" for k, name in enumerate(names)]
    table = written(tmp_path, "record,site,ill,kind\n" + "\n".join(lines))
    part = evaluated(corpus, plan(own=LabelSettings(table=str(table)), baselines=False)).parts["classify"]
    assert part.classes == ("site=a", "site=b", "ill", "kind=a", "kind=c")
    assert {name.partition("/")[0] for name in (*part.train_ids, *part.test_ids)} == {"ptbxl", "ludb"}


def test_another_table_makes_another_evaluation_of_a_sweep(tmp_path: Path) -> None:
    """Scores that a sweep kept are of the table's content, not of its name; without one nothing is new."""
    run_spec: Any = SimpleNamespace(
        manifest_hash="m", settings=SimpleNamespace(corpus=CorpusSettings(), encoder={"name": "tiny"})
    )
    table = written(tmp_path, "record,ill\na,1\n")
    before = _made_of(run_spec, plan(own=LabelSettings(table=str(table))), "e")
    assert before == _made_of(run_spec, plan(own=LabelSettings(table=str(table))), "e")
    written(tmp_path, "record,ill\na,0\n")
    assert before != _made_of(run_spec, plan(own=LabelSettings(table=str(table))), "e")
    assert "labels_sha256" not in _made_of(run_spec, plan("superdiagnostic"), "e")
    older = {**settings_today(as_dict(plan("superdiagnostic")))}
    del older["labels"]
    assert settings_today(older)["labels"] == plain(as_dict(LabelSettings()))


def test_a_job_takes_no_table_that_would_be_lost_with_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["encoder=random", "corpus=/c", "out=/o"]
    for override in ("labels=mine.csv", "labels.table=mine.csv", "labels.id_key_file=key"):
        assert job("evaluate", [*overrides, override]) == 2
        assert f"{override} is relative" in capsys.readouterr().err


def test_what_would_run_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["encoder=random", "corpus=/c", "labels=/t.csv", "labels.targets.low=lvef < 40"]
    assert main(["evaluate", "--print-config", *overrides]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["evaluate"]
    assert shown["classify"]["labels"] == "table" and shown["labels"]["table"] == "/t.csv"
    assert shown["labels"]["targets"] == {"low": "lvef < 40"}


def test_the_overrides_of_the_command() -> None:
    overrides = ["encoder=random", "corpus=/c", "labels=/t.csv", "labels.targets.low=lvef < 40", "labels.key=a b"]
    settings = settings_from(overrides).evaluate
    assert settings.classify.labels == "table" and settings.labels.table == "/t.csv"
    assert settings.labels.targets == {"low": "lvef < 40"} and settings.labels.key == "a b"
    for wrong, message in (
        ([*overrides, "evaluate.classify.labels=rhythm"], r"classify\.labels=rhythm reads no table"),
        ([*overrides[:2], "evaluate.classify.labels=table"], r"needs a table: set labels=PATH"),
        ([*overrides[:2], "labels.key=a"], r"needs a table: set labels=PATH"),
        ([*overrides, "labels.kye=a"], r"there is no setting 'evaluate\.labels\.kye'; did you mean 'key'"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings_from(wrong)
