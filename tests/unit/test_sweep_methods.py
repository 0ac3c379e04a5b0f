"""A sweep over methods: rows found by looking, equal training time, what was timed outlives a kill, and its report."""

from __future__ import annotations

import json
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beatray.config import config_folder
from beatray.errors import SettingsError, TrainingError
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.objectives.registry import objective_classes
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_methods import cost_rows, costs_csv, method_sections, watch
from beatray.report.sweep_page import build_sweep_report
from beatray.report.sweep_scores import compared
from beatray.report.sweep_table import make_table
from beatray.report.sweep_table_forms import as_csv, as_text
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.sweep import budget
from beatray.sweep.budget import budgeted, epochs_within
from beatray.sweep.plan import SweepPlan, config_of, plan_from, recipe_rows
from beatray.sweep.ranking import figures_of
from beatray.sweep.record import COSTS
from beatray.sweep.results import Evaluated, Method, SweepResults, by_worth
from beatray.train import timing
from beatray.train.run_spec import RunSpec
from beatray.train.timing import Apart, StepCost, Steps
from every_method import rows_of, run_spec_of, settings_of

FOUND = {path.stem for path in (config_folder() / "recipe").glob("*.yaml")}
TWO = "sweep.only=[simclr,byol]"


def cost_of(step_s: float, step_mib: float = 200.0) -> StepCost:
    return StepCost(step_s, "cpu", 5, 300.0 + step_mib, 300.0, 40_000, 50_000, 68)


def test_every_recipe_is_a_row_without_a_list_of_them() -> None:
    small, full = recipe_rows("tiny"), recipe_rows("full")
    assert {row["recipe"] for row in small.values()} | {row["recipe"] for row in full.values()} == FOUND
    assert small["simclr"] == {"recipe": "simclr_tiny"} and full["simclr"] == {"recipe": "simclr"}
    assert config_of(["sweep=methods"])["sweep"]["rows"] == small
    assert config_of(["sweep=methods", "sweep.recipes=full"])["sweep"]["rows"] == full


def test_each_recipe_is_trained_as_it_is_and_all_are_tried_alike(drawn: SweepPlan) -> None:
    plan = drawn
    assert [trial.name for trial in plan.trials] == ["byol__seed-0", "byol__seed-1", "simclr__seed-0", "simclr__seed-1"]
    assert {trial.settings.recipe for trial in plan.trials} == {"byol_tiny", "simclr_tiny"}
    assert plan.evaluation is not None and plan.evaluation.robustness.noise_levels == (1, 2, 3, 4, 5, 6)
    assert plan.evaluation.classify_fractions == plan.evaluation.segment_fractions == (0.01, 0.05, 0.1, 0.5, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.only=[simclear]"], "sweep.only: there is no row simclear"),
        (["sweep.time_reference=simclear"], "sweep.time_reference: there is no row simclear"),
        (["sweep.budget=core_minutes", "train.epochs=3"], "core_minutes sets train.epochs: leave it out"),
        (
            ["sweep.budget=core_minutes", "sweep.space.train.epochs=[3,4]", "sweep.fixed.train.epochs=null"],
            "sets train.epochs",
        ),
        (["sweep.budget=minutes"], "budget must be one of epochs, core_minutes"),
        (["sweep.core_minutes=0"], "core_minutes must be above 0"),
        (["sweep.recipes=small"], "recipes must be one of tiny, full"),
    ],
)
def test_what_a_sweep_over_methods_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_from(["sweep=methods", "corpus=/c", TWO, *overrides])


def test_epochs_are_those_that_fit_and_at_least_one() -> None:
    assert epochs_within(cost_of(0.5), 10.0, 422, 68) == 171  # 600 s, 7 steps of 0.5 s an epoch
    assert epochs_within(cost_of(0.5), 10.0, 68, 68) == 1200
    assert epochs_within(cost_of(500.0), 1.0, 422, 68) == 1


class Timed:
    """Stands in for the clock: so many seconds by method; breaks after `most` measurements."""

    def __init__(self, seconds: dict[str, float], most: int = 99) -> None:
        self.seconds, self.most, self.asked = seconds, most, []

    def __call__(self, run_spec: RunSpec) -> StepCost:
        name = str(run_spec.settings.objective["name"])
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        self.asked.append(name)
        return cost_of(self.seconds[name])


@pytest.fixture(scope="module")
def drawn() -> SweepPlan:
    overrides = ["sweep=methods", "corpus=/c", "run=six", TWO, "sweep.space.seed=[0,1]"]
    return plan_from([*overrides, "sweep.budget=core_minutes", "sweep.core_minutes=7"])


@pytest.fixture
def plan(drawn: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepPlan:
    def without_a_corpus(settings: PretrainSettings) -> Any:
        return SimpleNamespace(settings=settings, rows=422, manifest_hash="abc")

    monkeypatch.setattr(budget, "prepare_run", without_a_corpus)
    return replace(drawn, base=replace(drawn.base, out=str(tmp_path)))


def test_all_methods_have_the_same_time_and_the_warm_up_keeps_its_part(plan: SweepPlan) -> None:
    lines: list[str] = []
    timed = Timed({"simclr": 0.5, "byol": 1.0})
    made = budgeted(plan, lines.append, timed)
    assert timed.asked == ["byol", "simclr"], "one measurement for all seeds of a method; the reference is one of them"
    epochs = {trial.name: trial.settings.train.epochs for trial in made.trials}
    assert epochs == {"byol__seed-0": 60, "byol__seed-1": 60, "simclr__seed-0": 120, "simclr__seed-1": 120}
    assert {trial.settings.train.warmup_epochs / trial.settings.train.epochs for trial in made.trials} == {0.1}
    assert made.costs["simclr__seed-1"].step_s == 0.5
    assert any("byol__seed-0: 60 epochs in 7 core-minutes" in line for line in lines)
    kept = json.loads((plan.folder.folder / COSTS).read_text())
    assert kept["reference"] == {"row": "simclr", "step": kept["trials"]["simclr__seed-0"]["step"]}
    assert kept["trials"]["byol__seed-1"]["epochs"] == 60 and kept["trials"]["byol__seed-1"]["core_minutes"] == 7


def test_a_sweep_that_goes_on_after_a_kill_has_the_same_epochs(plan: SweepPlan) -> None:
    with pytest.raises(KeyboardInterrupt):
        budgeted(plan, lambda text: None, Timed({"simclr": 0.5, "byol": 1.0}, most=1))
    slower = Timed({"simclr": 0.7, "byol": 3.0})  # the machine is busier now
    made = budgeted(plan, lambda text: None, slower)
    assert slower.asked == ["simclr"]
    never = Timed({}, most=0)
    again = budgeted(plan, lambda text: None, never)
    assert [trial.settings for trial in again.trials] == [trial.settings for trial in made.trials]
    assert made.trials[0].settings.train.epochs == 60
    (plan.folder.folder / COSTS).write_text("{")
    with pytest.raises(SettingsError, match=r"costs.json is damaged .* remove it"):
        budgeted(plan, lambda text: None, never)


def test_without_a_budget_only_what_is_asked_for_is_timed(plan: SweepPlan) -> None:
    never = Timed({}, most=0)
    alone = replace(plan, sweep=replace(plan.sweep, budget="epochs", time_steps=False))
    assert budgeted(alone, lambda text: None, never) is alone
    timed = budgeted(
        replace(plan, sweep=replace(plan.sweep, budget="epochs")),
        lambda text: None,
        Timed({"simclr": 0.5, "byol": 1.0}),
    )
    assert {trial.settings.train.epochs for trial in timed.trials} == {60} and len(timed.costs) == 4


def test_a_step_of_fewer_recordings_than_a_batch_is_timed_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some_of_a_corpus(settings: PretrainSettings) -> Any:
        return SimpleNamespace(settings=settings, rows=settings.corpus.most_recordings, manifest_hash="abc")

    monkeypatch.setattr(budget, "prepare_run", some_of_a_corpus)
    space = ["sweep.space.corpus.most_recordings=[20,40,68,422]", "train.batch_size=68", "sweep.time_steps=true"]
    timed = Timed({"simclr": 0.5})
    made = budgeted(plan_from(["corpus=/c", f"out={tmp_path}", "recipe=simclr_tiny", *space]), lambda text: None, timed)
    assert len(made.costs) == 4 and len(timed.asked) == 3  # one measurement of whole batches


def test_a_step_is_timed_as_it_is_trained(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    arrays, statistics = rows_of(6)
    settings = settings_of("simclr_tiny", "encoder.channels=[4,4,8]")
    monkeypatch.setattr(timing, "first_rows", lambda run_spec, count: {k: v[:count] for k, v in arrays.items()})
    steps = Steps(run_spec_of(settings, statistics, 6))
    steps.step(counts=False)
    taken = [steps.step() for _ in range(3)]
    cost = steps.cost()
    assert cost.step_s == pytest.approx(sum(taken) / 3) and min(taken) > 0
    assert cost.clock == "cpu" and cost.steps == 3 and cost.batch_size == 6
    assert 0 < cost.encoder_parameters < cost.parameters and 0 < cost.base_mib <= cost.peak_mib


def test_steps_of_several_epochs_are_timed_for_parts_are_drawn_once_an_epoch(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    arrays, statistics = rows_of(6)
    settings = settings_of("ts2vec_tiny", "train.epochs=4", "train.warmup_epochs=1")
    monkeypatch.setattr(timing, "first_rows", lambda run_spec, count: {k: v[:count] for k, v in arrays.items()})
    lengths: list[int] = []

    class Watched(timing.Learner):
        def ready(self, arrays: Any, epoch: int, rows: Any) -> Any:
            lengths.append(sum(self.views(arrays, epoch, make=True)[f"view_{n}"].shape[-1] for n in (1, 2)))
            return super().ready(arrays, epoch, rows)

    monkeypatch.setattr(timing, "Learner", Watched)
    steps = Steps(run_spec_of(settings, statistics, 6))
    steps.step(counts=False)
    for _ in range(5):
        steps.step()
    assert lengths[0] == lengths[1] == lengths[5] and len(set(lengths[1:5])) == 4  # four epochs, then from the start


def test_what_goes_wrong_in_the_process_that_times_is_told() -> None:
    here, there = multiprocessing.Pipe()
    there.send(ValueError("of a step"))
    with pytest.raises(TrainingError, match="a step cannot be timed: ValueError: of a step"):
        Apart(here).step()
    there.close()
    with pytest.raises(TrainingError, match="was lost: was there too little memory"):
        Apart(here).cost()


def test_core_minutes_are_the_sum_over_a_run(tmp_path: Path) -> None:
    lines = [{"step": n, "epoch": n // 2, "loss": 1.0, "core_s": 3.0} for n in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_spec: Any = SimpleNamespace(
        run=Store(str(tmp_path)), settings=SimpleNamespace(checkpoint=SimpleNamespace(export="last"))
    )
    assert figures_of(run_spec)["core_minutes"] == pytest.approx(12.0 / 60.0)


CONDITIONS = ("clean", "noise 2", "noise 1", "3 leads", "1 lead")


def runs_of(variant: str, worth: float) -> list[dict[str, Any]]:
    """Runs of both tasks at two label fractions, and under noise and with leads missing at the larger."""
    found = []
    for task, metrics in (("classify", ("auroc", "f1", "validation_auroc")), ("segment", ("f1", "dice"))):
        for protocol in (MAIN_PROTOCOL[task], "finetune"):
            for fraction in (0.05, 0.1, 0.5, 1.0):
                for condition in CONDITIONS if fraction == 1.0 else CONDITIONS[:1]:
                    value = worth + 0.1 * fraction - 0.03 * CONDITIONS.index(condition)
                    found.append(
                        {
                            "task": task,
                            "protocol": protocol,
                            "variant": variant,
                            "fraction": fraction,
                            "seed": 0,
                            "condition": condition,
                            "metrics": dict.fromkeys(metrics, value),
                        }
                    )
    return found


def method_of(name: str, recipe: str, worth: float) -> Method:
    settings = settings_of(recipe)
    content = {
        "recipe": recipe,
        "objective": settings.objective,
        "encoder": settings.encoder,
        "train": {"epochs": 60, "batch_size": 68},
    }
    controls = {"runs": [*runs_of("random", 0.6), *runs_of("features", 0.65)]}
    trials = tuple(
        Evaluated(
            f"{name}__seed-{seed}", f"seed-{seed}", str(settings.encoder["name"]),
            {"tasks": {}, "runs": runs_of("pretrained", worth + 0.01 * seed)}, controls,
            str(settings.objective["name"]), content, {"core_minutes": 3.0 + seed},
        )
        for seed in range(2)
    )  # fmt: skip
    return Method(name, {"recipe": recipe}, trials)


@pytest.fixture(scope="module")
def material() -> SweepMaterial:
    methods = [("byol", "byol_tiny", 0.7), ("simclr", "simclr_tiny", 0.8), ("cpc", "cpc_tiny", 0.75)]
    results = by_worth(
        SweepResults(tuple(method_of(*each) for each in methods), ()), "eval/segment/frozen_decoder/100pct/f1", "max"
    )
    trials = [trial.trial for method in results.methods for trial in method.trials]
    spread = {"byol__seed-1": 0.05}  # of its embeddings: it collapses
    journals = {
        trial: [
            {"step": n, "epoch": n // 7, "loss": 2.0 / (n + 1), "record/embedding_std": spread.get(trial, 0.9)}
            for n in range(420)
        ]
        for trial in trials
    }
    timed = {"a": ("simclr", 0.5, 100.0), "b": ("byol", 1.0, 250.0)}
    costs = {
        "steps": {
            key: {"of": name, "processor": "a processor", "cost": {"step_s": s, "clock": "cpu", "steps": 5,
                  "peak_mib": 300 + mib, "base_mib": 300, "encoder_parameters": 43_000, "parameters": 9_000,
                  "batch_size": 68}}
            for key, (name, s, mib) in timed.items()
        },
        "trials": {trial: {"step": "b" if "byol" in trial else "a", "core_minutes": 10.0} for trial in trials},
        "reference": {"row": "simclr", "step": "a"},
    }  # fmt: skip
    return SweepMaterial(
        "a sweep", make_table(results), results, results.methods[0], journals=journals, costs=costs,
        seconds=dict.fromkeys(trials, 120.0),
    )  # fmt: skip


def test_the_best_method_comes_first_and_random_weights_once_for_each_network(material: SweepMaterial) -> None:
    table = material.table
    assert [line.name for line in table.lines] == ["simclr", "cpc", "byol"]
    assert [line.name for line in table.controls[1:]] == [
        "random weights, tiny", "random weights, s4d", "measured features",
    ]  # fmt: skip
    gain = table.lines[0].scores["LUDB F1, gain over random weights"]
    np.testing.assert_allclose(gain, [0.2, 0.21])
    assert "LUDB F1 at 5%" in as_csv(table) and "LUDB F1 at 5%" not in as_text(table), "they have a table of their own"
    comparisons, _ = compared(table, "byol")
    assert {pair.second for each in comparisons for pair in each.statistics.comparisons} == {"byol"}
    with pytest.raises(SettingsError, match="there is no method bol; there are simclr, cpc, byol"):
        compared(table, "bol")


def test_costs_are_multiples_of_the_reference(material: SweepMaterial) -> None:
    rows = {row["method"]: row for row in cost_rows(material)}
    assert rows["byol"]["step x"] == 2.0 and rows["byol"]["memory x"] == 2.5 and rows["simclr"]["step x"] == 1.0
    assert rows["byol"]["core-min mean"] == 3.5 and rows["byol"]["steps"] == 420
    assert costs_csv(material).splitlines()[0].startswith("method,network,encoder parameters")


def test_a_collapse_is_reported_with_the_steps_at_which_it_held(material: SweepMaterial) -> None:
    byol = next(method for method in material.results.methods if method.name == "byol")
    calm, collapsed = (watch(trial, material.journals[trial.trial]) for trial in byol.trials)
    assert calm == []
    assert len(collapsed) == 1 and collapsed[0].startswith(
        "byol__seed-1, from step 43 of 420, to the end (378 of 420 logged steps): "
    )
    every_tenth = material.journals["byol__seed-1"][9::10]  # train.log_every_steps=10
    assert watch(byol.trials[1], every_tenth)[0].startswith(
        "byol__seed-1, from step 50 of 420, to the end (38 of 42 logged steps): "
    )


@pytest.fixture(scope="module")
def page(material: SweepMaterial, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_sweep_report(tmp_path_factory.mktemp("page") / "report.html", material).read_text()


def test_every_method_has_a_page_that_the_table_leads_to(page: str) -> None:
    targets = set(re.findall(r'href="#([^"]+)"', page))
    anchors = re.findall(r'<section id="([^"]+)"', page)
    assert targets <= set(anchors) and len(anchors) == len(set(anchors))
    assert {"method-simclr", "method-byol", "method-cpc"} <= targets
    assert page.count('class="page"') == 3 and page.count("Collapse watch: nothing in 2 trials.") == 2


def test_where_a_journal_is_gone_the_watch_does_not_say_that_all_was_well(material: SweepMaterial) -> None:
    gone = {"simclr__seed-0": (), "simclr__seed-1": (), "cpc__seed-1": (), "byol__seed-0": ()}
    some = replace(material, journals={**material.journals, **gone})
    sections = {section.title: section for section in method_sections(some)}
    told = {title: section.paragraphs for title, section in sections.items()}
    assert not sections["simclr"].pictures and sections["byol"].small_print == ["Curves of trial byol__seed-1."]
    assert told["simclr"] == ["Collapse watch: no journal of 2 trials: of these nothing is known."]
    assert told["cpc"] == [
        "Collapse watch: nothing in 1 trial.",
        "Collapse watch: no journal of 1 trial: of these nothing is known.",
    ]
    collapsed, unseen = told["byol"]
    assert collapsed.startswith("Collapse watch: byol__seed-1") and "no journal of 1 trial" in unseen


def test_the_page_names_the_controls_and_readers_that_there_are(page: str, tmp_path: Path) -> None:
    assert "beside the same encoder with random weights (fine-tuned, that is training from scratch) and beside" in page
    assert "a linear probe and fine-tuning for the classes" in page and "Training never saw it" not in page
    assert page.count("What reads the encoders was trained on clean recordings.") == 2
    made = method_of("simclr", "simclr_tiny", 0.8)
    trials = tuple(
        replace(
            trial,
            results={"tasks": {}, "runs": [{**run, "protocol": "mlp"} for run in classified(trial.results["runs"])]},
            controls={"runs": []},  # evaluate.baselines=false
        )
        for trial in made.trials
    )
    results = SweepResults((replace(made, trials=trials),), ())
    alone = SweepMaterial("one", make_table(results), results, results.methods[0])
    text = build_sweep_report(tmp_path / "report.html", alone).read_text()
    assert "on recordings it never saw." in text and "hand-made features" not in text
    assert "an MLP probe for the classes" in text
    assert "a linear probe" not in text and "a frozen decoder" not in text


def classified(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if (run["task"], run["protocol"]) == ("classify", "linear_probe")]


def test_every_method_names_its_paper_and_bold_is_explained(page: str) -> None:
    for kind in objective_classes().values():
        assert re.search(r"[ ,]20\d\d\b", kind.paper), kind.name
    assert "arXiv 2006.07733" in page and "arXiv 2002.05709" in page and "arXiv 1807.03748" in page
    assert "Bold is the highest mean of the methods in a column" in page
    assert "details::details-content { content-visibility: visible;" in page.partition("@media print")[2]


def test_conditions_are_in_order_and_begin_with_the_clean_recordings(page: str) -> None:
    titles = ("What each method costs", "Scores by number of labels", "What noise costs", "What missing leads cost")
    _, labels, noise, leads = (page.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0] for title in titles)
    assert labels.count("<img") == 4 and "PTB-XL AUROC at 5%" in labels and "random weights, s4d" in labels
    heads = [re.findall(r"<th>LUDB F1(?: at|, level|,) ([^<]*)</th>", part) for part in (labels, noise, leads)]
    assert heads == [["5%", "10%", "50%", "100%"], ["0", "1", "2"], ["12 leads", "3 leads", "1 lead"]]
    first = noise.split("<tr>")[2]  # clean, noise 1, noise 2 of the best method, in both tasks
    assert re.findall(r"<td>(0\.\d+)</td>", first) == ["0.905", "0.845", "0.875"] * 2
