"""The table of the ablation: the paper's rows, how directions are marked, and the forms it is written in."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.objectives.beat_ssl_table import TABLE_1
from beatray.objectives.published import AUROC, F1, SEGMENT_F1
from beatray.report import sweep_encoder, sweep_page, sweep_table, sweep_table_forms
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_scores import compared, number_sections
from beatray.sweep.plan import config_of
from beatray.sweep.record import TrialRecord
from beatray.sweep.results import Evaluated, Method, SweepResults, by_worth, mean_scores, split_name

BY_NUMBER = {row.number: row for row in TABLE_1.rows}


def run_of(task: str, variant: str, metrics: dict[str, float], fraction: float = 1.0, seed: int = 0) -> dict[str, Any]:
    about = {
        "task": task,
        "protocol": MAIN_PROTOCOL[task],
        "variant": variant,
        "fraction": fraction,
        "seed": seed,
        "condition": "clean",
    }
    return {**about, "metrics": metrics}


def method_of(
    number: int,
    auroc: list[float],
    f1: list[float],
    segment: list[float],
    seeds: tuple[int, ...] = (0, 1, 2),
    title: str = "PTB-XL superclasses",
) -> Method:
    """A row of the paper with these scores of its trials."""
    row = BY_NUMBER[number]
    controls = {
        "runs": [
            run_of("classify", "random", {"auroc": 0.6, "f1": 0.4}),
            run_of("classify", "features", {"auroc": 0.9, "f1": 0.7}),
            run_of("segment", "random", {"f1": 0.5, "dice": 0.5}),
        ]
    }
    trials = tuple(
        Evaluated(
            f"row-{number}__seed-{n}",
            f"seed-{n}",
            "the control",
            {
                "tasks": {"classify": {"title": title}},
                "runs": [
                    run_of("classify", "pretrained", {"auroc": a, "f1": b}),
                    run_of("segment", "pretrained", {"f1": c, "dice": c}),
                    run_of("segment", "pretrained", {"f1": c - 0.1, "dice": c}, fraction=0.1),
                ],
            },
            controls,
            "beat_ssl",
        )
        for n, a, b, c in zip(seeds, auroc, f1, segment, strict=False)
    )
    return Method(f"row-{number}", dict(row.settings), trials)


@pytest.fixture(scope="module")
def results() -> SweepResults:
    base = method_of(1, [0.80, 0.81, 0.82], [0.5, 0.5, 0.5], [0.80, 0.81, 0.82])
    nine = method_of(9, [0.84, 0.80, 0.86], [0.6, 0.6, 0.6], [0.70, 0.71, 0.72])
    return SweepResults((base, nine), ("row-2__seed-0",))


def test_the_config_holds_the_rows_of_the_paper_in_order() -> None:
    rows = config_of(["sweep=ablation"])["sweep"]["rows"]
    found = [TABLE_1.row_of(changes) for changes in rows.values()]
    assert [row.number for row in found if row is not None] == list(range(1, 15))
    assert found[14:] == [None] * (len(found) - 14) and len(found) > 14


def test_every_claim_is_what_the_papers_figures_say() -> None:
    for claim in TABLE_1.claims:
        assert BY_NUMBER[claim.higher].scores[claim.score] > BY_NUMBER[claim.lower].scores[claim.score], claim
    best = {score: max(TABLE_1.rows, key=lambda row: row.scores[score]).number for score in (AUROC, F1, SEGMENT_F1)}
    assert set(best.values()) == {9}


def test_directions_need_every_trial(results: SweepResults) -> None:
    table = sweep_table.make_table(results)
    assert [column.title for column in table.columns] == ["PTB-XL AUROC", "PTB-XL F1", "LUDB F1", "LUDB F1 at 10%"]
    base, nine = table.lines
    assert base.marks is None
    assert nine.marks == {"PTB-XL AUROC": "mixed", "PTB-XL F1": "same", "LUDB F1": "opposite"}
    claims = {(claim.rows, claim.score): claim.mark for claim in sweep_table.verdicts(table)}
    assert claims == {
        ((9, 1), "PTB-XL AUROC"): "mixed",
        ((9, 1), "PTB-XL F1"): "same",
        ((9, 1), "LUDB F1"): "opposite",
    }


def test_a_trial_without_a_difference_is_no_opposite(tmp_path: Path) -> None:
    """Row 9 beats row 1 in the paper; here it is as good in one trial and worse in the other."""
    methods = (method_of(1, [0.8] * 2, [0.5] * 2, [0.8] * 2), method_of(9, [0.8, 0.7], [0.5] * 2, [0.9] * 2))
    objective = {"name": "beat_ssl"}
    methods = tuple(
        replace(each, trials=tuple(replace(trial, settings={"objective": objective}) for trial in each.trials))
        for each in methods
    )
    results = SweepResults(methods, ())
    table = sweep_table.make_table(results)
    assert (table.lines[1].marks or {})["PTB-XL AUROC"] == "mixed"
    page = sweep_page.build_sweep_report(
        tmp_path / "report.html", SweepMaterial("two", table, results, methods[0])
    ).read_text()
    assert "the other sign in every trial (opposite), or neither (mixed)" in page


def test_columns_say_what_was_classified_and_keep_small_fractions_apart() -> None:
    method = method_of(1, [0.8], [0.5], [0.8], seeds=(0,), title="CinC SNOMED codes")
    for fraction in (0.004, 0.001):
        method.trials[0].results["runs"].append(run_of("classify", "pretrained", {"auroc": 0.7}, fraction))
    method.trials[0].results["runs"][0]["metrics"]["validation_auroc"] = 0.75
    table = sweep_table.make_table(SweepResults((method,), ()))
    assert [column.title for column in table.columns] == [
        "CinC AUROC", "CinC F1", "LUDB F1", "CinC AUROC, validation", "CinC AUROC at 0.1%", "CinC AUROC at 0.4%",
        "LUDB F1 at 10%",
    ]  # fmt: skip
    assert table.lines[0].scores["CinC AUROC, validation"].tolist() == [0.75]


def test_three_trials_are_never_called_significant(results: SweepResults) -> None:
    comparisons, left_out = compared(sweep_table.make_table(results))
    assert comparisons and not left_out and all(each.statistics.refusal for each in comparisons)
    assert {pair.second for each in comparisons for pair in each.statistics.comparisons} == {"hard / -"}


def test_trials_are_paired_by_their_seeds_and_not_by_their_places() -> None:
    base = method_of(1, [0.80, 0.90], [0.5, 0.5], [0.8, 0.8], seeds=(0, 2))
    six = method_of(6, [0.85, 0.50, 0.95], [0.6, 0.6, 0.6], [0.9, 0.9, 0.9])
    seven = method_of(7, [0.85, 0.95], [0.6, 0.6], [0.9, 0.9], seeds=(0, 1))
    table = sweep_table.make_table(SweepResults((base, six, seven), ()))
    assert [(line.marks or {}).get("PTB-XL AUROC") for line in table.lines] == [None, "same", "same"]
    comparisons, left_out = compared(table)
    assert left_out == ["soft_1^50 / -"]  # it lacks seed 2
    assert comparisons[0].pairs == ("seed-0", "seed-2")
    assert comparisons[0].scores["soft_1 / -"] == [0.85, 0.95]


def test_only_the_papers_own_settings_are_the_papers_rows() -> None:
    four = {
        "objective.rhythm": "soft_1",
        "objective.beat": "none",
        "objective.exponent": 50,
        "objective.positive_mass": None,
    }
    assert TABLE_1.row_of(four) is BY_NUMBER[7]
    assert TABLE_1.row_of({**four, "objective.positive_mass": 0.5}) is None
    assert TABLE_1.row_of({**four, "objective.temperature": 0.2}) is None
    assert (
        TABLE_1.row_of({key: value for key, value in four.items() if key != "objective.positive_mass"}) is None
    )  # 0.5 by default


def test_methods_that_would_be_called_the_same_keep_their_own_names() -> None:
    one, other = (method_of(1, [0.8], [0.5], [0.8], seeds=(0,)) for _ in range(2))
    one, other = replace(one, name="exponent-1"), replace(other, name="exponent-50")
    other.changes["objective.exponent"] = 50  # type: ignore[index]
    lines = sweep_table.make_table(SweepResults((one, other), ())).lines
    assert [line.name for line in lines] == ["exponent-1", "exponent-50"]


def test_the_choice_in_each_repeat_is_that_of_its_own_validation() -> None:
    methods = [method_of(n, auroc, [0.5] * 3, [0.8] * 3) for n, auroc in ((1, [0.6, 0.9, 0.7]), (9, [0.8, 0.7, 0.9]))]
    for method, validation in zip(methods, ([0.9, 0.6, 0.5], [0.7, 0.8, 0.6]), strict=True):
        for trial, value in zip(method.trials, validation, strict=True):
            trial.results["runs"][0]["metrics"]["validation_auroc"] = value
    table = sweep_table.make_table(SweepResults(tuple(methods), ()))
    (chosen,) = [line for line in table.controls if line.name == sweep_table.CHOSEN]
    assert chosen.scores["PTB-XL AUROC"].tolist() == [0.6, 0.7, 0.9]
    assert chosen.scores["PTB-XL AUROC, validation"].tolist() == [0.9, 0.8, 0.6]
    comparisons, _ = compared(table)
    assert [each.metric for each in comparisons] == ["PTB-XL AUROC", "PTB-XL F1", "LUDB F1", "LUDB F1 at 10%"]


def test_what_repeats_a_method_is_read_from_the_changes_and_not_from_the_name() -> None:
    short = {"objective.rhythm": "rhythm", "seed": "seed"}
    cut = TrialRecord("rhythm-" + "x" * 104 + ".0a1b2c3d", {"objective.rhythm": "hard", "seed": 7})
    assert split_name(cut, short)[1] == "seed-7"
    row = TrialRecord("a0", {"objective.rhythm": "hard", "seed": 0})
    assert split_name(row, short) == ("a0", "seed-0")
    usual = TrialRecord("rhythm-hard__seed-1", {"objective.rhythm": "hard", "seed": 1})
    assert split_name(usual, short) == ("rhythm-hard", "seed-1")
    assert split_name(TrialRecord("seed-1", {"seed": 1}), short) == ("all", "seed-1")


def test_controls_are_named_by_what_makes_their_encoders() -> None:
    one, two, three = (method_of(n, [0.8], [0.5], [0.8], seeds=(0,)) for n in (1, 9, 13))
    wide = Method("wide", {**two.changes, "encoder.channels": [48, 64, 128]}, two.trials)
    other = replace(wide.trials[0], control="of the wide one")
    table = sweep_table.make_table(SweepResults((one, three, replace(wide, trials=(other,))), ()))
    names = ["random weights", "random weights, channels [48, 64, 128]", "measured features"]
    assert [line.name for line in table.controls] == names


def test_a_network_has_one_line_of_random_weights_whichever_trials_its_methods_lack() -> None:
    def of_split(method: Method, splits: tuple[int, ...]) -> Method:
        runs = {n: {"runs": [run_of("segment", "random", {"f1": n / 10, "dice": 0.5})]} for n in splits}
        trials = zip(method.trials, splits, strict=True)
        return replace(
            method, trials=tuple(replace(trial, control=f"split {n}", controls=runs[n]) for trial, n in trials)
        )

    one = of_split(method_of(1, [0.8] * 2, [0.5] * 2, [0.8] * 2, seeds=(0, 1)), (1, 2))
    nine = of_split(method_of(9, [0.8] * 3, [0.5] * 3, [0.8] * 3), (1, 2, 3))
    (line,) = sweep_table.make_table(SweepResults((one, nine), ())).controls
    assert line.name == "random weights" and sorted(line.scores["LUDB F1"].tolist()) == [0.1, 0.2, 0.3]


def test_methods_are_ordered_by_any_figure_that_the_sweep_ranks_by() -> None:
    def of(name: str, figure: float, auroc: float) -> Method:
        method = method_of(1, [auroc], [0.5], [0.8], seeds=(0,))
        return replace(method, name=name, trials=(replace(method.trials[0], figures={"validation_loss": figure}),))

    results = SweepResults((of("high", 2.0, 0.9), of("low", 1.0, 0.7)), ())
    assert [method.name for method in by_worth(results, "validation_loss", "min").methods] == ["low", "high"]
    assert [method.name for method in by_worth(results, "validation_loss", "max").methods] == ["high", "low"]
    auroc = "eval/classify/linear_probe/100pct/auroc"
    assert [method.name for method in by_worth(results, auroc, "max").methods] == ["high", "low"]


def test_labels_that_are_not_known_count_for_no_class() -> None:
    """Two of four recordings are unknown; the known ones are told apart perfectly."""
    method = method_of(1, [1.0], [1.0], [0.8], seeds=(0,), title="echo.csv")
    method = replace(method, trials=(replace(method.trials[0], controls={}),))
    results = method.trials[0].results
    results["tasks"]["classify"] |= {"truth": [[1], [None], [0], [None]], "classes": ["low"]}
    results["runs"][0] |= {"test": {"scores": [[0.7], [0.9], [0.1], [0.2]], "thresholds": [0.5]}}
    drawn: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sweep_encoder, "class_bars", lambda classes, scores, counts, title: drawn.update(scores, n=counts)
        )
        patch.setattr(sweep_encoder, "to_svg", lambda figure: b"")
        assert sweep_encoder.classes_section(replace(method, changes={})) is not None
    assert drawn.pop("n") == [1] and [each.tolist() for each in drawn.values()] == [[[1.0]]]
    columns = [column.title for column in sweep_table.make_table(SweepResults((method,), ())).columns]
    assert columns[:2] == ["echo.csv AUROC", "echo.csv F1"]


def test_controls_stand_below_the_methods(results: SweepResults) -> None:
    table = sweep_table.make_table(results)
    assert [line.name for line in table.controls] == ["random weights", "measured features"]
    assert table.controls[0].scores["LUDB F1"].tolist() == [0.5]  # one control, counted once
    assert np.isnan(table.controls[1].scores["LUDB F1"]).all()


def test_all_forms_hold_the_same_figures(results: SweepResults) -> None:
    table = sweep_table.make_table(results)
    rows = list(csv.DictReader(io.StringIO(sweep_table_forms.as_csv(table))))
    assert [row["method"] for row in rows] == ["hard / -", "soft_1^50 / hard", "random weights", "measured features"]
    assert rows[1]["PTB-XL AUROC mean"] == "0.8333" and rows[1]["PTB-XL AUROC paper"] == "0.843"
    for text in (
        sweep_table_forms.as_markdown(table),
        sweep_table_forms.as_text(table),
        sweep_table_forms.as_html(table),
    ):
        assert "0.833±.031" in text and "soft_1^50 / hard" in text and "opposite" in text
    latex = sweep_table_forms.as_latex(table)
    assert r"0.833$\pm$.031" in latex and r"soft\_1\textasciicircum{}50 / hard" in latex
    assert latex.count(r"\\") == 1 + 2 + 2 and r"\midrule" in latex
    long = list(csv.DictReader(io.StringIO(sweep_table_forms.long_csv(results))))
    assert len(long) == 2 * 3 * 6 and {row["repeat"] for row in long} == {"seed-0", "seed-1", "seed-2"}
    assert {row["method"] for row in long} == {line.name for line in table.lines}  # as table.csv and costs.csv say


def test_a_score_is_the_mean_over_the_seeds_of_the_evaluation() -> None:
    runs = [run_of("segment", "pretrained", {"f1": value, "dice": 0.0}, seed=n) for n, value in enumerate((0.2, 0.4))]
    assert mean_scores({"runs": runs}, "pretrained")["eval/segment/frozen_decoder/100pct/f1"] == pytest.approx(0.3)
    assert mean_scores({"runs": runs}, "random") == {}


def test_a_sweep_of_any_method_is_drawn_over_the_numbers_it_sets() -> None:
    """Methods of which nothing was published: no paper's columns; a setting that is a number is an axis."""
    made = [method_of(1, [0.8, 0.8, 0.9], [0.5] * 3, [0.8 + momentum / 100] * 3) for momentum in (1, 2, 3)]
    trials = [tuple(replace(trial, objective="byol") for trial in each.trials) for each in made]
    methods = tuple(
        replace(each, name=f"momentum-{n}", trials=of_it, changes={"objective.momentum": n / 10, "recipe": "byol"})
        for n, (each, of_it) in enumerate(zip(made, trials, strict=True))
    )
    results = SweepResults(methods, ())
    table = sweep_table.make_table(results)
    assert [line.name for line in table.lines] == ["momentum-0", "momentum-1", "momentum-2"]
    assert not table.of_paper and not sweep_table.verdicts(table) and table.baseline is None
    assert "paper" not in sweep_table_forms.as_markdown(table)
    (section,) = number_sections(SweepMaterial("six", table, results, methods[0]))
    assert section.title == "What objective.momentum does"


def test_a_method_that_cannot_be_imported_is_shown_without_a_name_of_its_own() -> None:
    made = method_of(1, [0.8], [0.5], [0.8], seeds=(0,))
    foreign = replace(made, trials=(replace(made.trials[0], objective="elsewhere.of_a_user:Mine"),))
    (line,) = sweep_table.make_table(SweepResults((foreign,), ())).lines
    assert line.name == "row-1" and line.paper is None
