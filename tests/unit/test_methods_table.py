"""The tables of docs/results.md are those of the scores that are kept beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import methods_table
import pytest

SCORE = methods_table.COLUMNS["AUROC"]
NAMES = sorted(path.name.removesuffix("-scores.csv") for path in methods_table.FOLDER.glob("*-scores.csv"))


def line(method: str, trial: str, value: str, random: str = "0.5", features: str = "0.25") -> dict[str, str]:
    return {
        "method": method,
        "trial": trial,
        "score": SCORE,
        "value": value,
        "random": random,
        "features": features,
    }


def test_a_line_has_the_mean_of_its_trials_beside_random_weights_and_the_best_is_bold() -> None:
    scores = [line("cpc", "a", "0.8"), line("cpc", "b", "0.9", random="0.6"), line("mae", "a", "0.7")]
    costs = [
        {"method": "cpc", "network": "s4d (layers 2)", "epochs": "11"},
        {"method": "mae", "network": "vit", "epochs": "4"},
    ]
    lines = methods_table.rendered(scores, costs).splitlines()
    header, _, cpc, mae, features = ([cell.strip() for cell in each.split("|")[1:-1]] for each in lines)
    at = header.index("AUROC")
    assert cpc[:3] == ["`cpc`", "s4d layers 2", "11"] and cpc[at] == "**0.850** (0.550)"
    assert (mae[at], mae[at + 1]) == ("0.700 (0.500)", "")
    assert (features[0], features[at]) == ("measured features", "0.250")


def test_a_sweep_may_be_run_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_table, "FOLDER", tmp_path / "kept")
    for part, scores in (("a", {"cpc": "0.8", "mae": "0.7"}), ("b", {"mae": "0.75", "vicreg": "0.6"})):
        (tmp_path / part).mkdir()
        for kind, header in (
            ("scores", "method,trial,score,value,random,features"),
            ("costs", "method,network,epochs"),
        ):
            lines = [
                f"{name},{name}__seed-0,{SCORE},{value},0.5,0.2" if kind == "scores" else f"{name},tiny,4"
                for name, value in scores.items()
            ]
            (tmp_path / part / f"{kind}.csv").write_text("\n".join([header, *lines]) + "\n")
    methods_table.keep("x", [tmp_path / "a", tmp_path / "b"])
    scores, costs = methods_table.read("x")
    assert {row["method"]: row["value"] for row in scores} == {"cpc": "0.8", "mae": "0.75", "vicreg": "0.6"}
    assert [row["method"] for row in costs] == ["cpc", "mae", "vicreg"]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_what_was_kept(name: str) -> None:
    text = methods_table.PAGE.read_text(encoding="utf-8")
    assert methods_table.table_of(text, name) == methods_table.rendered(*methods_table.read(name))


def test_every_table_of_the_page_has_its_scores() -> None:
    text = methods_table.PAGE.read_text(encoding="utf-8")
    begins = [row.split()[2] for row in text.splitlines() if row.startswith("<!-- scripts/methods_table.py")]
    assert sorted(begins) == NAMES


@pytest.mark.parametrize(("labels", "score", "digits"), [("sex", "auroc", 3), ("age", "mae", 2)])
def test_the_table_of_label_efficiency_is_that_of_its_scores(labels: str, score: str, digits: int) -> None:
    with (methods_table.FOLDER / f"label-efficiency-{labels}.csv").open() as file:
        scores = [row for row in csv.DictReader(file) if row["score"] == score]
    page = methods_table.PAGE.read_text()
    for method in ("pretrained_frozen", "pretrained_finetuned", "random_frozen", "random_finetuned"):
        weights, _, trained = method.replace("finetuned", "fine-tuned").partition("_")
        values = [f"{float(row['value']):.{digits}f}" for row in scores if row["method"] == method]
        assert len(values) == 5 and f"| {weights}, {trained} | {' | '.join(values)} |" in page


def test_the_table_of_leads_left_out_is_that_of_its_scores() -> None:
    page, leads = methods_table.PAGE.read_text(), ["", *(f"{n}_leads/" for n in (8, 6, 3, 2)), "1_lead/"]
    for kept, name in (("large-scores", "`{}`"), ("lead-dropout", "`{}`, `train.lead_dropout=0.5`")):
        with (methods_table.FOLDER / f"{kept}.csv").open() as file:
            found = {(row["method"], row["score"]): row["value"] for row in csv.DictReader(file)}
        for method in ("beat_ssl", "cpc"):
            scores = [found[method, f"eval/classify/linear_probe/100pct/{some}auroc"] for some in leads]
            row = " | ".join(f"{float(value):.3f}" for value in scores)
            assert f"| {name.format(method)} | {row} |" in page
