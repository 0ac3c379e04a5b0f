"""A cluster job refuses places that would be lost with its temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatray.commands.job import PATH_KEYS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("command", "overrides", "named"),
    [
        ("pretrain", ["corpus=corpus/", "out=/shared/runs"], "corpus=corpus/ is relative"),
        ("pretrain", ["corpus=/shared/corpus"], "out= is not set"),
        ("ingest", ["ludb=/data/ludb", "--out", "corpus"], "out=corpus is relative"),
        ("ingest", ["ludb=data/ludb.zip", "--out=/shared/corpus"], "ludb=data/ludb.zip is relative"),
        ("ingest", ["ludb=data/a", "ludb=/data/b", "out=/shared/corpus"], "ludb=data/a is relative"),
        ("evaluate", ["encoder=runs/a", "corpus=s3://bucket/corpus", "out=/shared/e"], "encoder=runs/a is relative"),
        ("report", ["runs/first"], "PLACE=runs/first is relative"),
        ("report", ["/runs/first", "--corpus=corpus"], "--corpus=corpus is relative"),
        ("report", ["0123456789abcdef" * 2, "--results", "results.json"], "--results=results.json is relative"),
        (
            "pretrain",
            ["tracking.uri=sqlite:///mlflow.db", "out=/shared"],
            "tracking.uri=sqlite:///mlflow.db is relative",
        ),
        ("finetune", ["tracking.uri=mlruns", "out=/shared"], "tracking.uri=mlruns is relative"),
        ("evaluate", ["tracking.uri=file:mlruns", "out=/shared"], "tracking.uri=file:mlruns is relative"),
        ("pretrain", ["objective.beat_classifier=beats", "out=/shared"], "objective.beat_classifier=beats is relative"),
        ("sweep", ["objective.beat_classifier=beats", "out=/shared"], "objective.beat_classifier=beats is relative"),
        ("sweep", ["labels=mine.csv", "out=/shared"], "labels=mine.csv is relative"),
        ("evaluate", ["labels=mine", "out=/shared"], "labels=mine is relative"),
        ("predict", ["model=[/runs/a, runs/b]", "out=/shared/p"], "model=[/runs/a, runs/b] is relative"),
        ("embed", ["encoder=/runs/a", "corpus=corpus", "out=s3://bucket/e"], "corpus=corpus is relative"),
    ],
)
def test_relative_paths_are_refused_by_name(
    command: str, overrides: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, overrides) == 2
    error = capsys.readouterr().err
    assert named in error and "absolute path" in error


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("sweep", "labels=superdiagnostic"),
        ("finetune", "labels=superdiagnostic encoder=random"),
        ("pretrain", "objective.beat_classifier=null"),
        ("predict", "model=beatray-waves,/runs/a files=/data"),
        *(
            ("pretrain", f"tracking.uri={uri}")
            for uri in (
                *("auto", "null", "databricks", "databricks://mine", "http://mlflow:5000", "/shared/mlruns"),
                *("sqlite:////shared/mlflow.db", "postgresql://mlflow@host/mlflow", "file:/shared/mlruns"),
            )
        ),
    ],
)
def test_what_outlives_the_job_is_not_refused(
    command: str, overrides: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself gets the overrides, and refuses one that no command has."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the job sets it where it is not
    assert main(command, [*overrides.split(), "corpus=/c", "out=/shared", "no_such_key=1"]) == 2
    error = capsys.readouterr().err
    assert "is relative" not in error and "no_such_key" in error


def test_a_list_of_absolute_models_may_hold_blanks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main("predict", ["model=[/runs/a, '/runs/b']", "files=/data", "out=/shared", "no_such_key=1"]) == 2
    error = capsys.readouterr().err
    assert "is relative" not in error and "no_such_key" in error


def test_a_uri_is_no_remedy_where_the_command_takes_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main("evaluate", ["encoder=random", "corpus=/c", "out=eval"]) == 2
    assert "or a URI" not in capsys.readouterr().err
    assert main("evaluate", ["encoder=random", "corpus=c", "out=/shared/eval"]) == 2
    assert "every node sees, or a URI." in capsys.readouterr().err
    assert main("evaluate", ["encoder=random", "corpus=/c", "out=s3://bucket/eval"]) == 2
    assert "is not on a local disk" in capsys.readouterr().err


def test_a_report_of_an_absolute_path_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the job sets it where it is not
    assert main("report", [str(tmp_path), "--against", "byol"]) == 2
    assert "holds neither sweep.json nor settings.yaml" in capsys.readouterr().err


def test_every_command_with_paths_has_its_job() -> None:
    scripts = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.py")}
    assert set(scripts) == set(PATH_KEYS)
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name, text in scripts.items():
        assert f'main("{name}", sys.argv[1:])' in text and f"jobs/{name}.py OVERRIDES" in text and f"{name}.py" in page
