"""The tables of docs/results.md are those of the scores that are kept beside them."""

from __future__ import annotations

import csv
import re
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
    assert cpc[:3] == ["`cpc`", "s4d layers 2", "11"] and cpc[at] == "**0.850** ± 0.071 (0.550)"
    assert (mae[at], mae[at + 1]) == ("0.700 (0.500)", "")
    assert (features[0], features[at]) == ("measured features", "0.250")


def test_what_no_method_has_stays_blank() -> None:
    header, _, cpc, *_ = methods_table.rendered([line("cpc", "a", "0.8")], []).splitlines()
    cells = dict(zip(header.split("|"), cpc.split("|"), strict=True))
    assert cells[" AUROC "] == " **0.800** (0.500) " and "****" not in cpc
    assert cells[" network "].strip() == cells[" epochs "].strip() == cells[" LUDB F1 "].strip() == ""


def test_scores_of_fine_tuned_models_stand_behind_the_others() -> None:
    kept = {"cpc-1": "0.9", "mae-1": "0.92", "cpc-0.1": "0.88", "mae-0.01": "0.7", "scratch-1": "0.99"}
    tuned = [{"run": run, "auroc": value} for run, value in kept.items()]
    lines = methods_table.rendered([line("cpc", "a", "0.8"), line("mae", "a", "0.7")], [], tuned).splitlines()
    header, _, cpc, mae, features = ([cell.strip() for cell in each.split("|")[1:-1]] for each in lines)
    assert header[-2:] == ["AUROC, fine-tuned, 10 %", "AUROC, fine-tuned"]
    assert (cpc[-2:], mae[-2:], features[-2:]) == (["**0.880**", "0.900"], ["", "**0.920**"], ["", ""])


def report_of(folder: Path, scores: dict[str, str]) -> Path:
    """A report with one score of each trial METHOD__seed-N and the costs of its methods."""
    folder.mkdir()
    rows = [f"{trial.partition('__')[0]},{trial},{SCORE},{value},0.5,0.2" for trial, value in scores.items()]
    costs = [f"{method},tiny,4" for method in dict.fromkeys(trial.partition("__")[0] for trial in scores)]
    (folder / "scores.csv").write_text("\n".join(["method,trial,score,value,random,features", *rows]) + "\n")
    (folder / "costs.csv").write_text("\n".join(["method,network,epochs", *costs]) + "\n")
    return folder


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept scores, and beside it a page with the marks of table `x`."""
    monkeypatch.setattr(methods_table, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(methods_table, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("".join(methods_table.marks("x")))
    return tmp_path / "kept"


def test_a_sweep_may_be_run_in_parts(tmp_path: Path, kept: Path) -> None:
    one = report_of(tmp_path / "a", {"cpc__seed-0": "0.8", "mae__seed-0": "0.7"})
    two = report_of(tmp_path / "b", {"mae__seed-0": "0.75", "vicreg__seed-0": "0.6"})
    assert methods_table.main(["x", "--report", str(one), str(two)]) == 0
    scores, costs, tuned = methods_table.read("x")
    assert tuned == []
    (kept / "x-fine-tuned.csv").write_text("run,auroc\ncpc-1,0.9\n")
    assert methods_table.read("x")[2] == [{"run": "cpc-1", "auroc": "0.9"}]
    (kept / "x-fine-tuned.csv").unlink()
    assert {row["method"]: row["value"] for row in scores} == {"cpc": "0.8", "mae": "0.75", "vicreg": "0.6"}
    assert [row["method"] for row in costs] == ["cpc", "mae", "vicreg"]
    assert sorted(path.name for path in kept.iterdir()) == ["x-costs.csv", "x-scores.csv"]
    assert methods_table.main(["x", "--check"]) == 0 and "**0.800**" in (tmp_path / "page.md").read_text()


def test_a_method_of_two_parts_is_refused(tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report_of(tmp_path / "a", {"mae__seed-0": "0.7", "mae__seed-1": "0.6"})
    two = report_of(tmp_path / "b", {"mae__seed-1": "0.75"})
    assert methods_table.main(["x", "--report", str(one), str(two)]) == 1
    assert f"the trials of mae come from {one} and {two}" in capsys.readouterr().out and not kept.exists()


def test_what_cannot_be_kept_leaves_all_as_it_was(
    tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert methods_table.main(["x", "--report", str(report_of(tmp_path / "a", {"mae__seed-0": "0.7"}))]) == 0
    before = {path: path.read_text() for path in (*kept.iterdir(), tmp_path / "page.md")}
    lacking = report_of(tmp_path / "b", {"mae__seed-0": "0.9"})
    (lacking / "costs.csv").unlink()
    empty = report_of(tmp_path / "c", {})
    assert methods_table.main(["x", "--report", str(lacking)]) == 1
    assert methods_table.main(["x", "--report", str(empty)]) == 1
    assert "costs.csv" in (told := capsys.readouterr().out) and "has no rows" in told
    assert methods_table.main(["y", "--report", str(tmp_path / "a")]) == 1  # no marks in the page
    with pytest.raises(SystemExit):
        methods_table.main(["x", "--report", str(tmp_path / "a"), "--check"])
    assert {path: path.read_text() for path in (*kept.iterdir(), tmp_path / "page.md")} == before


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


def test_the_table_of_larger_networks_is_that_of_its_scores() -> None:
    with (methods_table.FOLDER / "one-gpu.csv").open() as file:
        found = {(row["run"], row["score"]): float(row["value"]) for row in csv.DictReader(file)}
    _, text = methods_table.PAGE.read_text().split("### Larger networks on a GPU")
    names = {"beats": "| `beat_ssl`", "cpc": "| `cpc`", "jepa": "| `jepa`", "dense": "| `dense_beats`"}
    scores = [
        *(f"eval/segment/frozen_decoder/{part}/f1" for part in ("10pct", "100pct")),
        *(f"eval/classify/linear_probe/{part}/auroc" for part in ("10pct", "100pct")),
        *(f"finetune/{part}/auroc" for part in ("10pct", "100pct")),
    ]
    for run, begin in names.items():
        row = next(line for line in text.splitlines() if line.startswith(begin))
        expected = [f"{found[run, score]:.3f}" if (run, score) in found else "-" for score in scores]
        assert [cell.strip() for cell in row.split("|")[4:-1]] == expected


def test_the_table_of_scaling_is_that_of_its_scores() -> None:
    with (methods_table.FOLDER / "scaling.csv").open() as file:
        found = {(row["method"], row["score"]): float(row["value"]) for row in csv.DictReader(file)}
    scores = [f"eval/segment/frozen_decoder/{part}/f1" for part in ("10pct", "100pct")]
    scores += [f"eval/classify/linear_probe/{part}/auroc" for part in ("10pct", "100pct")]
    page = methods_table.PAGE.read_text()
    for count in (250, 500, 1000, 2500, 5000):
        row = " | ".join(f"{found[f'most_recordings-{count}', score]:.3f}" for score in scores)
        assert re.search(rf"^\| {count:,} \| \d+ \| {re.escape(row)} \|$", page, re.MULTILINE)


def test_the_table_of_statements_is_that_of_its_scores() -> None:
    page = methods_table.PAGE.read_text().replace("`", "")
    with (methods_table.FOLDER / "statements.csv").open() as file:
        for row in csv.DictReader(file):
            begin, value = (
                re.escape(f"| {row['encoder']} | {row['network']} |"),
                re.escape(f"{float(row['auroc']):.3f}"),
            )
            assert re.search(rf"^{begin} [^|]+ \| {value} \|", page, re.MULTILINE), row


def test_the_table_of_encoder_rates_is_that_of_its_scores() -> None:
    with (methods_table.FOLDER / "encoder-rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["recipe"], row["train_records"], row["encoder_lr"]): row["validation_auroc"] for row in rows}
    page = methods_table.PAGE.read_text()
    for recipe, records, epochs in {(row["recipe"], row["train_records"], row["epochs"]) for row in rows}:
        values = (found.get((recipe, records, rate)) for rate in ("0.1", "0.3", "1", "from scratch"))
        cells = " | ".join(f"{float(value):.3f}" if value else "-" for value in values)
        assert f"| `{recipe}` | {int(records):,}, {epochs} epochs | {cells} |" in page
