"""What `beatray labels check` says of a table: counts by split, and every planted mistake is found, none invented."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from beatray.cli import main
from beatray.commands import labels as command
from beatray.corpus.label_check import auroc
from beatray.corpus.label_summary import summary
from beatray.corpus.splits import SplitPolicy, assign_roles
from label_tables import index_of, many, read, values, written

N = 800
POLICY = SplitPolicy()


def clean() -> pd.DataFrame:
    """A table in which nothing is odd: every column has its own noise."""
    draw = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "record": np.arange(1, N + 1),
            "ill": draw.integers(0, 2, N),
            "lvef": draw.normal(55, 12, N).round(1),
            "rhythm": draw.choice(["SR", "AF", "PACE"], N),
            "codes": draw.choice(["MI", "MI|STTC", "STTC", "|"], N),
        }
    )


def checked(folder: Path, frame: pd.DataFrame, *overrides: str, index: pd.DataFrame | None = None) -> dict[str, Any]:
    table = written(folder, frame.to_csv(index=False))
    index = many(N) if index is None else index
    return summary(read(table, *overrides, index=index), index, assign_roles(index, POLICY))


def found(summary: dict[str, Any]) -> set[tuple[str, str]]:
    return {(each["kind"], each["column"]) for each in summary["findings"]}


def test_counts_by_split_are_those_of_a_plain_count(tmp_path: Path) -> None:
    frame = clean()
    frame.loc[::5, "ill"] = np.nan
    about = checked(tmp_path, frame)
    assert found(about) == set()
    assert about["rows"] == about["rows_matched"] == about["recordings_in_table"] == N
    ill, lvef, rhythm, codes = about["columns"]
    assert [each["type"] for each in about["columns"]] == ["binary", "numbers", "classes", "multilabel"]
    fold = np.arange(N) % 10 + 1
    parts = {"train": fold < 9, "validation": fold == 9, "test": fold == 10}
    for name, part in parts.items():
        assert ill["known_by_split"][name] == frame["ill"][part].notna().sum()
        assert ill["classes"][0]["by_split"][name] == frame["ill"][part].sum()
        af = next(each for each in rhythm["classes"] if each["name"] == "AF")
        assert af["by_split"][name] == (frame["rhythm"][part] == "AF").sum()
    assert ill["unknown"] == N // 5
    assert lvef["quartiles"] == pytest.approx(frame["lvef"].quantile([0, 0.25, 0.5, 0.75, 1]).tolist())
    assert [each["name"] for each in codes["classes"]] == ["MI", "STTC"]
    assert codes["classes"][1]["count"] == frame["codes"].str.contains("STTC").sum()


PLANTED: dict[str, tuple[Any, tuple[str, str]]] = {
    "constant": (lambda f: f.assign(x="yes"), ("constant", "x")),
    "copied": (lambda f: f.assign(x=f["rhythm"]), ("copied", "x")),
    "classes renamed": (lambda f: f.assign(x=f["rhythm"].map({"SR": "b", "AF": "c", "PACE": "a"})), ("copied", "x")),
    "yes and no swapped": (lambda f: f.assign(x=1 - f["ill"]), ("copied", "x")),
    "scaled": (lambda f: f.assign(x=(f["lvef"] * 2 + 1).round(2)), ("copied", "x")),
    "shuffled": (lambda f: f.assign(x=f["lvef"].sample(frac=1, random_state=1).to_numpy()), ("permuted", "x")),
    "the key": (lambda f: f.assign(x=f["record"]), ("id", "x")),
    "runs with the key": (lambda f: f.assign(x=f["record"] // 3 + 100), ("id", "x")),
    "an id": (lambda f: f.assign(x=np.random.default_rng(3).permutation(N) * 17 + 10**6), ("id", "x")),
    "gives away": (lambda f: f.assign(x=(f["ill"] * 10 + f["lvef"] / 100).round(3)), ("leak", "x")),
    "gives away backwards": (lambda f: f.assign(x=(5 - 10 * f["ill"] + f["lvef"] / 100).round(3)), ("leak", "x")),
    "two spellings": (lambda f: f.assign(x=np.random.default_rng(9).choice(["Low", "low"], N)), ("spelling", "x")),
    "few": (lambda f: f.assign(x=(np.arange(N) % 100 == 0).astype(int)), ("few", "x")),
    "known nowhere in a split": (lambda f: f.assign(x=np.where(np.arange(N) % 10 == 9, "", f["rhythm"])), ("few", "x")),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found_and_nothing_else(tmp_path: Path, mistake: str) -> None:
    plant, expected = PLANTED[mistake]
    assert found(checked(tmp_path, plant(clean()))) == {expected}


def test_a_condition_is_not_taken_for_a_leak_or_a_copy(tmp_path: Path) -> None:
    about = checked(tmp_path, clean(), "labels.targets.low=lvef < 40", "labels.targets.ill_too=ill == 1")
    assert found(about) <= {("few", "low")}
    assert about["columns"][-2]["condition"] == "lvef < 40"


def test_numbers_without_repetition_are_no_copies_of_each_other(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    bnp, trop = draw.normal(90, 30, N), draw.normal(4, 1, N)
    assert found(checked(tmp_path, clean().assign(bnp=bnp, trop=trop))) == set()
    assert found(checked(tmp_path, clean().assign(bnp=bnp, trop=np.roll(bnp, 7)))) == {("permuted", "trop")}


def test_patients_of_two_splits_are_found_in_the_table_where_the_corpus_knows_none(tmp_path: Path) -> None:
    index = many(N)
    index["patient_id"] = None
    frame = clean().assign(mrn=[f"p{k // 4}" for k in range(N)])
    about = checked(tmp_path, frame, index=index)
    roles = assign_roles(index, POLICY)
    several = sum(len(set(roles[4 * k : 4 * k + 4].tolist())) > 1 for k in range(N // 4))
    (text,) = [each["text"] for each in about["findings"]]
    assert f"{several} patients of column 'mrn'" in text and "id-key-file" in text and several > 50
    assert found(checked(tmp_path, clean(), index=index)) == {("patients", "")}
    unsaid = checked(tmp_path, frame.assign(mrn=[f"p{k}" if k % 2 else "unknown" for k in range(N)]), index=index)
    assert found(unsaid) == set()
    together = many(N)
    together["patient_id"] = [f"mine/{k // 4}" for k in range(N)]
    assert found(checked(tmp_path, frame, index=together)) <= {("few", c) for c in ("ill", "rhythm", "codes", "lvef")}


def test_windows_of_one_recording_count_once(tmp_path: Path) -> None:
    index = index_of(["mine/a#0", "mine/a#1", "mine/b"], ["mine/1", "mine/1", "mine/2"])
    about = summary(read(written(tmp_path, "record,ill\na,1\nb,0\n"), index=index), index, assign_roles(index, POLICY))
    assert about["recordings"] == about["recordings_in_table"] == 2
    assert about["columns"][0]["known"] == 2 and about["columns"][0]["classes"][0]["count"] == 1


def test_the_area_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    truth, score = draw.integers(0, 2, 200).astype(bool), draw.integers(0, 20, 200).astype(float)
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))


def test_the_command_prints_and_writes_what_was_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = many(N, "ptbxl")
    monkeypatch.setattr(command, "open_corpus", lambda path: SimpleNamespace(index=index, recipe={}, acquired=None))
    table = written(tmp_path, clean().assign(same="x").to_csv(index=False))
    overrides = [
        "labels",
        "check",
        str(table),
        "corpus=/c",
        "labels.targets.low=lvef < 40",
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert main([*overrides, "labels.key=record"]) == 0
    output = capsys.readouterr().out
    for text in ("800 rows match", "read as labels of recordings by column 'record'", "binary: lvef < 40", "PACE",
                 "look: same has the same value in all recordings"):  # fmt: skip
        assert text in output, output
    about = json.loads((tmp_path / "out.json").read_text())
    assert [each["name"] for each in about["columns"]] == ["ill", "lvef", "rhythm", "codes", "same", "low"]
    low = read(table, "labels.targets.low=lvef < 40", index=index)
    assert about["columns"][-1]["classes"][0]["count"] == sum(values(low, "low")) > 0
    assert main(["labels", "check", str(tmp_path / "none.csv"), "corpus=/c"]) == 1
    assert capsys.readouterr().err.startswith("beatray labels: there is no table")
    settings, policy = command.settings_from(["s3://bucket/labels.csv?region=eu-west-1", "corpus=/c"])
    assert settings.table == "s3://bucket/labels.csv?region=eu-west-1" and policy.path == "/c"
