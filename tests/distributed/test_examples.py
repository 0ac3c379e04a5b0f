"""The scripts of examples/ run as they stand, at their smallest, and say what they found."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from counts import count

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def work(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all of them, as a newcomer has."""
    return tmp_path_factory.mktemp("examples")


def printed(
    script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What a script prints."""
    path = EXAMPLES / script
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_a_newcomer_goes_from_files_to_answers(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few, own = ["--limit", "40"], ["--encoder", str(work / "runs" / "first")]
    trained = printed("pretrain_on_your_files.py", [str(work), *few, "--epochs", "2"], monkeypatch, capsys)
    assert any("recordings, the first 5 s lie nearest to their own last 5 s" in line for line in trained)

    embedded = printed("first_embedding.py", [str(work), *few, *own], monkeypatch, capsys)
    assert any(line.startswith("40 recordings, a vector of ") for line in embedded)
    assert len([line for line in embedded if line.startswith("nearest to files/")]) == 3

    answered = printed("finetune_and_predict.py", [str(work), *own, "--epochs", "1"], monkeypatch, capsys)
    assert any(line.startswith("AUROC on patients of the test folds: 0.") for line in answered)
    assert "probability_over_65" in answered[-6] and all("ludb/" in line for line in answered[-5:])


def test_two_methods_side_by_side(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = count(["simclr"], ["simclr", "vicreg"])  # a second one takes as long as the first
    compared = printed(
        "compare_two_methods.py", [str(work), "--epochs", "1", "--methods", *methods], monkeypatch, capsys
    )
    for method in methods:
        assert any(re.match(method + r": 0\.\d+ \(random weights 0\.\d+, measured", line) for line in compared)
    assert (work / "runs" / "two-methods" / "report" / "report.html").exists()
