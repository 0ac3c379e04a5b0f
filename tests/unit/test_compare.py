"""`beatray compare`: results files into pairs, lines and verdicts; what does not fit is refused in words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatray.cli import main
from beatray.commands.compare import methods
from beatray.errors import SettingsError
from beatray.evaluate.paired import RunScore, as_rows, compare_runs, runs_of
from beatray.evaluate.results import Decisions, Evaluation, Run, TaskPart, write_results
from beatray.evaluate.settings import EvaluateSettings

TRUTH = np.array([[True, False], [False, True], [True, True], [False, False]])


def result(folder: Path, scores: list[float], **variants: list[float]) -> Path:
    """A results.json as evaluate writes it: macro AUROC by seed, for the pretrained variant and for others."""
    outcome = Decisions(np.full((4, 2), 0.5), np.full(2, 0.5))
    runs = [
        Run(
            "classify",
            "linear_probe",
            variant,
            "e",
            "tiny",
            1.0,
            10,
            seed,
            0.1,
            outcome,
            {"auroc": value, "f1": value / 2},
        )
        for variant, values in {"pretrained": scores, **variants}.items()
        for seed, value in enumerate(values)
    ]
    part = TaskPart("classify", ("a", "b"), ("c", "d", "e", "f"), ("1", "2", "3", "4"), TRUTH)
    return write_results(Evaluation(EvaluateSettings(), {"classify": part}, tuple(runs)), folder)


def changed(path: Path, folder: Path, **changes: Any) -> Path:
    document = json.loads(path.read_text())
    for key, value in changes.items():
        document[key].update(copy.deepcopy(value))
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(document))
    return folder


def test_ten_seeds_tell_apart_and_three_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rising = [0.80 + seed / 1000 for seed in range(10)]
    one = result(tmp_path / "one", rising)
    two = result(tmp_path / "two", [value - 0.02 - value / 100 for value in rising])
    assert main(["compare", str(one), str(tmp_path / "two")]) == 0
    out = capsys.readouterr().out
    assert "PTB-XL superclasses, linear probe, 100% labels, AUROC: 10 paired runs" in out
    line = next(line for line in out.splitlines() if "one - two" in line)
    assert line.split()[-1] == "better" and "0.0020" in line and "+1.00" in line
    assert "compares these encoders, not the methods" in out
    few = [result(tmp_path / name, rising[:3]) for name in ("x", "y")]
    assert main(["compare", *map(str, few)]) == 0
    out = capsys.readouterr().out
    assert "too few runs" in out and "3 paired runs cannot show a difference at 0.05" in out
    assert "better" not in out and two.exists()


def test_controls_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [0.8 + seed / 100 for seed in range(8)]
    path = result(tmp_path / "one", seeds, random=[v - 0.05 for v in seeds], features=[v + 0.01 for v in seeds])
    assert main(["compare", str(path), "--with", "random,features", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    auroc = found["comparisons"][0]
    assert list(auroc["scores"]) == ["one", "random", "features"]
    assert auroc["refusal"] is None and auroc["statistics"]["friedman_p"] < 0.01
    verdicts = {(c["first"], c["second"]): c["verdict"] for c in auroc["statistics"]["comparisons"]}
    assert verdicts == {("one", "random"): "better", ("one", "features"): "worse", ("random", "features"): "worse"}
    assert main(["compare", str(path), "--with", "shuffled"]) == 2
    assert "--with shuffled is not one of" in capsys.readouterr().err


def test_several_files_of_a_method_count_once_each(tmp_path: Path) -> None:
    files = {
        name: [result(tmp_path / f"{name}{k}", [base + k / 100, base + k / 100 + 0.02]) for k in range(3)]
        for name, base in (("a", 0.8), ("b", 0.7))
    }
    runs, unit = runs_of(files)
    assert "one results file" in unit
    auroc = compare_runs(runs)[0]
    assert auroc.pairs == ("file 1", "file 2", "file 3")
    np.testing.assert_allclose(auroc.scores["a"], [0.81, 0.82, 0.83])
    assert auroc.statistics.runs == 3
    with pytest.raises(ValueError, match="same number of results files to be paired: a 3, b 2"):
        runs_of({"a": files["a"], "b": files["b"][:2]})


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    one = result(tmp_path / "one", [0.8, 0.9])
    for name, changes, message in (
        ("ids", {"tasks": {"classify": {"test_ids": ["x"], "train_ids": ["a", "b"]}}}, "their test_ids of classify"),
        ("set", {"settings": {"inner_folds": 9}}, "different inner_folds: 5 and 9"),
    ):
        other = changed(one, tmp_path / name, **changes)
        with pytest.raises(ValueError, match=message):
            runs_of({"a": [one], "b": [other]})
    conditions = {"noise_levels": [1, 2], "leads": [1], "noise_folder": None}
    irrelevant = {"workers": 99, "bootstraps": 1, "keep_outputs": True, "robustness": conditions}
    same = changed(one, tmp_path / "same", settings=irrelevant)
    noisy = changed(one, tmp_path / "noisy", settings={"robustness": {**conditions, "noise_folder": "/nstdb"}})
    with pytest.raises(ValueError, match="different robustness"):
        runs_of({"a": [one], "b": [noisy]})
    assert len(runs_of({"a": [one], "b": [same]})[0]) == 8
    with pytest.raises(ValueError, match="other seeds"):
        runs_of({"a": [one, one], "b": [one, result(tmp_path / "three", [0.8, 0.9, 0.7])]})
    with pytest.raises(ValueError, match="holds no runs of random"):
        runs_of({"a": [one]}, ["random"])
    with pytest.raises(ValueError, match=r"no results\.json of beatray evaluate"):
        runs_of({"a": [tmp_path / "nowhere"]})


def test_results_are_whole_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = result(tmp_path / "one", [0.8, 0.9])
    before = path.read_text()

    def full_disk(self: Path, text: str, **_: Any) -> None:
        self.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*results\.json"):
        result(tmp_path / "one", [0.1, 0.2])
    assert path.read_text() == before


def test_missing_or_failed_runs_are_named() -> None:
    def score(method: str, pair: str, value: float = 0.5) -> RunScore:
        return RunScore(method, pair, "f1", value)

    whole = [score("a", "s0"), score("a", "s1"), score("b", "s0")]
    with pytest.raises(ValueError, match="f1: b has no score for s1"):
        compare_runs(whole)
    with pytest.raises(ValueError, match="b has no score for s1"):
        compare_runs([*whole, score("b", "s1", float("nan"))])
    with pytest.raises(ValueError, match="two runs s0"):
        compare_runs([*whole, score("b", "s0")])
    assert compare_runs([score("a", "s0")]) == []
    found = compare_runs([*whole, score("b", "s1", 0.4), RunScore("a", "s0", "dice", 1.0)])
    assert [c.metric for c in found] == ["f1"]
    assert any(line.strip().startswith("a - b") and line.endswith("too few runs") for line in as_rows(found[0]))


def test_names_of_methods(tmp_path: Path) -> None:
    assert list(methods(["eval/a/results.json", "eval/b"])) == ["a", "b"]
    assert list(methods(["x/eval", "y/eval"])) == ["x/eval", "y/eval"]
    assert methods(["h=1", "s=2", "h=3"]) == {"h": [Path("1"), Path("3")], "s": [Path("2")]}
    with pytest.raises(SettingsError, match="given twice"):
        methods(["x", "x"])


def test_results_join_a_method_once_and_only_where_they_are_named_so() -> None:
    with pytest.raises(SettingsError, match=r"given twice for hard: e/h0/results\.json"):
        methods(["hard=e/h0", "soft=e/s0", "hard=e/h0/results.json"])
    with pytest.raises(SettingsError, match=r"e/hard has no name .* write hard=e/hard to pool"):
        methods(["hard=e/h0", "e/hard", "soft=e/s0"])
    assert list(methods(["hard=e/h0", "e/soft", "f/h0"])) == ["hard", "soft", "h0"]
