"""The space of a sweep, its record and its ranking: trials, their names, what is refused, what is reported."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from beatray.errors import SettingsError
from beatray.objectives.beat_ssl_table import TABLE_1
from beatray.schema import build
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.sweep import results
from beatray.sweep.asha import EpochAsha, Pace
from beatray.sweep.plan import config_of, plan_from
from beatray.sweep.progress import _refuse_others
from beatray.sweep.ranking import as_csv, as_json, as_mlflow_table, as_text, last_figures, ranked
from beatray.sweep.record import RunningSweep, SweepRecord, TrialRecord, read
from beatray.sweep.resources import at_a_time, check_trial
from beatray.sweep.results import Evaluated
from beatray.sweep.settings import SweepSettings
from beatray.sweep.space import points
from beatray.train.composed import pretrain_settings

FILES = [path.stem for path in (Path(__file__).resolve().parents[2] / "configs" / "sweep").glob("*.yaml")]


def names(**settings: Any) -> list[str]:
    return [point.name for point in points(build(SweepSettings, settings))]


def test_a_grid_is_every_combination_and_names_show_what_differs() -> None:
    space = {"objective.exponent": [1, 50], "train.learning_rate": [1e-3, 2e-3]}
    assert names(space=space) == [
        "exponent-1__learning_rate-0.001",
        "exponent-1__learning_rate-0.002",
        "exponent-50__learning_rate-0.001",
        "exponent-50__learning_rate-0.002",
    ]
    changes = [dict(point.changes) for point in points(build(SweepSettings, {"space": space}))]
    assert changes[2] == {"objective.exponent": 50, "train.learning_rate": 1e-3}


def test_rows_stand_alone_or_with_every_point_of_the_space() -> None:
    rows = {
        "hard/-": {"objective.rhythm": "hard", "objective.beat": "none"},
        "soft_1/hard/50": {"objective.rhythm": "soft_1", "objective.exponent": 50},
    }
    assert names(rows=rows) == ["hard", "soft_1-hard-50"]
    assert names(rows=rows, space={"seed": [0, 1, 2]})[3:] == [f"soft_1-hard-50__seed-{seed}" for seed in range(3)]
    plan = plan_from(["corpus=/c", "out=/o", "sweep.space.seed=[0,1,2]"])
    assert [trial.settings.seed for trial in plan.trials] == [0, 1, 2]


def test_the_sweep_over_the_own_pair_mass() -> None:
    plan = plan_from(["sweep=positive_mass", "corpus=/c", "out=/o", "encoder=tiny"])
    tried = {t.name: (t.settings.objective["rhythm"], t.settings.objective["positive_mass"]) for t in plan.trials}
    hard, *soft = tried.values()
    assert hard == ("hard", 0.5) and soft == [("soft_1", mass) for mass in (None, 0.0, 0.25, 0.5, 0.75)]
    assert {t.settings.objective["exponent"] for t in plan.trials} == {50}


def test_draws_are_a_function_of_the_seed_and_more_of_them_keep_the_first() -> None:
    space = {
        "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "train.batch_size": {"int_uniform": [16, 64]},
        "objective.temperature": {"uniform": [0.05, 0.5]},
        "objective.rhythm": ["hard", "soft_1"],
    }
    few = points(build(SweepSettings, {"search": "random", "num_samples": 6, "space": space}))
    many = points(build(SweepSettings, {"search": "random", "num_samples": 200, "space": space}))
    other = points(build(SweepSettings, {"search": "random", "num_samples": 6, "space": space, "seed": 1}))
    assert many[:6] == few
    assert {point.name for point in other}.isdisjoint(point.name for point in few)
    assert len({point.name for point in many}) == 200
    rates = [point.changes["train.learning_rate"] for point in many]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    below = sum(rate < 1e-3 for rate in rates)  # the middle of the logarithm
    assert 70 < below < 130, below
    assert {point.changes["objective.rhythm"] for point in many} == {"hard", "soft_1"}
    assert {type(point.changes["train.batch_size"]) for point in many} == {int}
    for point in many:  # the name shows the exact value
        assert f"learning_rate-{point.changes['train.learning_rate']!r}" in point.name
        assert float(f"{point.changes['train.learning_rate']:.4g}") == point.changes["train.learning_rate"]


def test_names_are_unique_folder_names() -> None:
    clash = names(space={"objective.name": ["a b", "a/b"], "encoder.name": ["tiny"]})
    assert len(set(clash)) == 2 and all("/" not in name and " " not in name for name in clash), clash
    assert all("objective.name-" in name and "encoder.name-" in name for name in clash)
    (long,) = names(space={f"objective.key_{n}": [n * 1000] for n in range(12)})
    assert len(long) <= 120
    (odd,) = names(space={"objective.positive_mass": [None], "train.compile": [True], "corpus.test_folds": [[8, 9]]})
    assert odd == "positive_mass-null__compile-true__test_folds-8-9"
    assert names(space={"train.learning_rate": [1e30, 1e-30]}) == ["learning_rate-1e30", "learning_rate-1e-30"]
    (hidden,) = names(rows={"../..": {"seed": 1}})
    assert hidden == "none"
    with pytest.raises(SettingsError, match="two trials are the same: seed-1"):
        names(space={"seed": [1, 1]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": "gird"}, "search must be one of grid, random, asha"),
        ({"space": {"seed": []}}, r"sweep\.space\.seed is empty"),
        ({"space": {"seed": 1}}, r"sweep\.space\.seed must be a list"),
        ({"space": {"seed": {"normal": [0, 1]}}, "search": "random"}, "no distribution 'normal'"),
        ({"space": {"seed": {"uniform": [0, 1]}}}, "a grid needs a list of values"),
        ({"space": {"a": {"log_uniform": [0, 1]}}, "search": "random"}, "bounds above 0"),
        ({"space": {"a": {"uniform": [1, 1]}}, "search": "random"}, "low below high"),
        ({"space": {"a": {"int_uniform": [1, 2.5]}}, "search": "random"}, "two integers"),
        ({"space": {"seed": [1]}, "fixed": {"seed": 2}}, r"sweep\.space: seed also in sweep\.fixed"),
        ({"rows": {"a": {"seed": 1}}, "space": {"seed": [1]}}, r"sweep\.space: seed also in sweep\.rows\.a"),
        ({"rows": {"a": {"seed": 1}}, "search": "random"}, r"sweep\.rows are for search=grid"),
        ({"reduction_factor": 1.0}, r"reduction_factor must be above 1"),
        ({"max_concurrent_trials": 0}, r"max_concurrent_trials must be at least 1"),
        ({"search": "random", "num_samples": 5, "space": {"seed": [1, 2]}}, r"fewer than sweep\.num_samples=5"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        names(**settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=smal"], "there is no sweep 'smal'; did you mean 'small'"),
        ([], "which space.*ablation, asha, beat_targets, .*, splits, temperature"),
        (["sweep=small", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["sweep=small", "sweep.num_sample=3"], r"did you mean 'sweep\.num_samples'"),
        (["sweep.space.objective.exponant=[1,2]"], "trial exponant-1: .*did you mean 'objective.exponent'"),
        (["sweep.space.objective=[simclr,thre_kg]"], "trial objective-thre_kg: .*did you mean 'three_kg'"),
        (["sweep.space.train.epochs=[1,two]"], r"trial epochs-two: train\.epochs='two' is not of type int"),
        (["sweep.space.train.epochs=[1,0]"], r"trial epochs-0: train\.epochs must be at least 1"),
        (["sweep=small", "objective.temperature=0.3"], r"is swept; leave it out, or .*temperature=null"),
        (["sweep=small", "run=a/b"], "run='a/b' must be the name of a folder"),
        (["sweep.fixed.train.epochz=2", "sweep.space.seed=[1]"], "did you mean 'train.epochs'"),
    ],
)
def test_overrides_that_fit_nothing_are_answered_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_from(overrides)


def test_overrides_win_over_the_fixed_settings_of_a_file() -> None:
    plan = plan_from(["sweep=small", "corpus=/c", "out=/o", "run=first", "encoder=tiny", "train.epochs=3"])
    assert [trial.name for trial in plan.trials] == ["temperature-0.1", "temperature-0.2"]
    for trial in plan.trials:
        assert trial.settings.train.epochs == 3 and trial.settings.train.warmup_epochs == 2
        assert trial.settings.encoder["name"] == "tiny" and trial.settings.corpus.path == "/c"
        assert trial.settings.run == trial.name and trial.settings.out == "/o/first"
    assert [trial.settings.objective["temperature"] for trial in plan.trials] == [0.1, 0.2]
    assert plan.folder.folder == Path("/o/first") and plan.keys == ("objective.temperature",)
    overrides = [
        "sweep=small",
        "sweep.space.objective.temperature=null",
        "sweep.space.objective.positive_mass=[null,0.5]",
    ]
    assert config_of(overrides)["sweep"]["space"] == {"objective.positive_mass": [None, 0.5]}
    assert [trial.settings.objective["positive_mass"] for trial in plan_from(overrides).trials] == [None, 0.5]


def test_a_group_may_be_swept_with_keys_inside_it() -> None:
    plan = plan_from(["sweep.space.objective=[simclr,three_kg]", "sweep.space.encoder=[tiny]"])
    assert [trial.settings.objective["name"] for trial in plan.trials] == ["simclr", "three_kg"]
    assert "projector_hidden" in plan.trials[0].settings.objective


@pytest.mark.parametrize("name", sorted(set(FILES) - {"default"}))
def test_every_ready_file_composes(name: str) -> None:
    classifier = ["objective.beat_classifier=/beats"] if name == "beat_targets" else []
    one_seed = ["sweep.space.seed=[0]"] if "seed" in config_of([f"sweep={name}"])["sweep"].get("space", {}) else []
    plan = plan_from([f"sweep={name}", "corpus=/c", "sweep.num_samples=4", *classifier, *one_seed])
    assert len({trial.name for trial in plan.trials}) == len(plan.trials) > 1
    assert len({json.dumps(dict(trial.changes)) for trial in plan.trials}) == len(plan.trials)


def test_overrides_of_the_evaluation_are_not_for_the_training() -> None:
    one_row = "sweep.only=[01-hard]"  # composing all of them takes seconds
    plan = plan_from(["sweep=ablation", "corpus=/c", one_row, "evaluate.seeds=[7]", "evaluate.decoder.steps=3"])
    assert plan.evaluation is not None and plan.evaluation.seeds == (7,) and plan.evaluation.decoder.steps == 3
    assert plan.evaluation.segment_fractions == (0.1, 1.0)  # of the file
    whole = plan_from(["sweep=ablation", "corpus=/c", one_row, "evaluate=benchmark", "evaluate.seeds=[7]"]).evaluation
    assert whole is not None and "knn" in whole.protocols and whole.seeds == (7,)
    assert plan_from(["sweep=small", "corpus=/c"]).evaluation is None
    with pytest.raises(SettingsError, match=r"needs sweep.evaluate=true"):
        plan_from(["sweep=small", "corpus=/c", "evaluate.seeds=[7]"])
    with pytest.raises(SettingsError, match=r"evaluate.seeds is swept"):
        plan_from(["sweep=ablation", "corpus=/c", "sweep.space.evaluate.seeds=[[1],[2]]"])


DOCS = "\n".join(page.read_text() for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md")))
LINES = [line.strip() for line in DOCS.replace("\\\n", " ").splitlines() if not re.search(r"\.{3}|=NAME", line)]


@pytest.mark.parametrize(
    "line", [line for line in LINES if line.startswith("beatray sweep sweep=") and "..." not in line]
)
def test_the_commands_of_the_docs_compose(line: str) -> None:
    command = line.replace("encoder.weights=/data/runs/first", "encoder.weights=beatray-small")
    overrides = shlex.split(command, comments=True)[2:]  # quotes and comments as a shell reads them
    first = {"sweep=ablation": "01-hard", "sweep=methods": "simclr"}.get(overrides[0])
    of_one_row = [] if first is None else [f"sweep.only=[{first}]"]  # all of them take seconds
    assert plan_from([*overrides, *of_one_row]).trials


def test_there_are_sweeps_in_the_docs() -> None:
    assert {"sweep=ablation", "sweep=splits", "sweep=methods"} <= set(DOCS.split())


@pytest.mark.parametrize("key", ["beat_positives", "hard_beat"])  # the name of today and an older one
def test_what_rows_set_is_no_override_unless_those_rows_are_left_out(key: str) -> None:
    override = f"objective.{key}=same_record"
    with pytest.raises(SettingsError, match=r"rows set objective.beat_positives \(record-beats"):
        plan_from(["sweep=ablation", "corpus=/c", override])
    plan = plan_from(["sweep=ablation", "corpus=/c", override, "sweep.only=[02-hard-hard]"])
    assert {trial.settings.objective["beat_positives"] for trial in plan.trials} == {"same_record"}


@pytest.mark.parametrize(("split", "message"), [(-1, "at least 0, not -1"), (10, "at most 9, not 10")])
def test_there_are_ten_splits(split: int, message: str) -> None:
    with pytest.raises(SettingsError, match=rf"corpus.fold_rotation must be {message}"):
        plan_from(["sweep=splits", "corpus=/c", f"sweep.space.corpus.fold_rotation=[{split}]"])


def test_some_rows_alone_can_be_chosen() -> None:
    plan = plan_from(["sweep=ablation", "corpus=/c", "sweep.only=[01-hard,14-soft_2-soft_2]", "sweep.space.seed=[5]"])
    assert [trial.name for trial in plan.trials] == ["01-hard__seed-5", "14-soft_2-soft_2__seed-5"]
    with pytest.raises(SettingsError, match=r"sweep.only: there is no row 15"):
        plan_from(["sweep=ablation", "corpus=/c", "sweep.only=[15]"])


def trial(name: str, **fields: Any) -> TrialRecord:
    return TrialRecord(name, {"train.learning_rate": float(name)}, **fields)


RECORD = SweepRecord(
    "first",
    "validation_loss",
    "min",
    "asha",
    (
        trial("0.1", status="failed", error="the loss was\nnot finite", seconds=1.0),
        trial("0.2", status="stopped", steps=4, reports=({"step": 3, "validation_loss": 0.5},)),
        trial("0.3", status="finished", steps=9, figures={"validation_loss": 2.0, "loss": 1.0}),
        trial("0.4", status="finished", steps=9, figures={"validation_loss": 1.0, "loss": 2.0}),
        trial("0.5", status="waiting"),
    ),
)


def test_the_ranking_has_every_trial_the_best_first() -> None:
    columns = ["learning_rate", "status", "steps", "seconds"]
    assert [(row.rank, row.trial.name) for row in ranked(RECORD)] == [
        (1, "0.4"),
        (2, "0.3"),
        (None, "0.2"),
        (None, "0.5"),
        (None, "0.1"),
    ]
    assert [row.trial.name for row in ranked(replace(RECORD, mode="max"))][:2] == ["0.3", "0.4"]
    assert [row.trial.name for row in ranked(replace(RECORD, metric="loss"))][:2] == ["0.3", "0.4"]
    assert ranked(RECORD)[2].value == 0.5  # as last reported
    text = as_text(RECORD)
    assert text.splitlines()[0].split() == ["rank", "validation_loss", "trial", *columns]
    named = tuple(replace(each, name=f"learning_rate-{each.name}") for each in RECORD.trials)
    assert as_text(replace(RECORD, trials=named)).splitlines()[0].split() == ["rank", "validation_loss", *columns]
    assert "the loss was not finite" in text and len(text.splitlines()) == 1 + 5 + 2
    rows = list(csv.DictReader(io.StringIO(as_csv(RECORD))))
    assert [row["learning_rate"] for row in rows] == ["0.4", "0.3", "0.2", "0.5", "0.1"]
    assert rows[-1]["status"] == "failed" and rows[-1]["rank"] == ""
    table = json.loads(as_mlflow_table(RECORD))
    assert table["columns"][:2] == ["rank", "validation_loss"] and len(table["data"]) == 5
    listing = json.loads(as_json(RECORD))
    assert listing["trials"][0]["changes"] == {"train.learning_rate": 0.4}
    assert listing["trials"][0]["validation_loss"] == 1.0


def test_the_record_is_on_disk_after_every_change(tmp_path: Path) -> None:
    folder = Store(str(tmp_path / "sweep"))
    assert read(folder) is None
    record = RunningSweep(folder, "first", SweepSettings(), RECORD.trials)
    assert read(folder) == replace(RECORD, search="grid")
    record.change("0.5", status="running", attempts=1)
    seen = read(folder)
    assert seen is not None and seen.trials[4].status == "running" and seen == record.snapshot()
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["sweep.json"]
    (tmp_path / "sweep" / "sweep.json").write_text('{"version": 99}')
    with pytest.raises(SettingsError, match="another version"):
        read(folder)
    (tmp_path / "sweep" / "sweep.json").write_text('{"version": 1, "tri')
    with pytest.raises(SettingsError, match=r"sweep\.json cannot be read.*move it away"):
        read(folder)


def test_the_record_of_an_older_version_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    folder = Store(str(tmp_path / "sweep"))
    older = TrialRecord(
        "09-soft_1-hard-50__seed-0",
        {
            "objective.rhythm": "soft_1",
            "objective.beat": "hard",
            "objective.exponent": 50,
            "objective.pos_mass": None,
            "seed": 0,
        },
        status="finished",
        attempts=1,
        figures={"beat_loss": 2.0, "rhythm_own_pair_mass": 0.5, "validation_loss": 1.0},
    )
    RunningSweep(folder, "first", SweepSettings(metric="beat_loss"), [older])
    found = read(folder)
    assert found is not None and found.metric == "beat/loss"
    assert found.trials[0].figures == {"beat/loss": 2.0, "record/positive_mass": 0.5, "validation_loss": 1.0}
    assert [row.value for row in ranked(found)] == [2.0]
    overrides = ["sweep=ablation", "corpus=/c", "sweep.only=[09-soft_1-hard-50]", "sweep.metric=beat_loss"]
    plan = plan_from([*overrides, f"out={tmp_path}", "run=sweep"])
    assert plan.sweep.metric == "beat/loss"
    _refuse_others(plan, {trial.name: trial for trial in found.trials})  # the same sweep goes on
    other = replace(found.trials[0], changes={**older.changes, "objective.pos_mass": 0.5})
    with pytest.raises(SettingsError, match="trials that are not in this space"):
        _refuse_others(plan, {other.name: other})
    run = {
        "task": "segment",
        "protocol": "frozen_decoder",
        "variant": "pretrained",
        "fraction": 1.0,
        "seed": 0,
        "condition": "clean",
    }
    evaluated = Evaluated(older.name, "seed-0", "c", {"runs": [{**run, "metrics": {"f1": 0.5}}]}, {"runs": []})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_read_trial", lambda *_: evaluated)
        (method,) = results.read_results(folder, found).methods
    row = TABLE_1.row_of(method.changes)
    assert row is not None and row.number == 9


def test_the_last_figures_are_means_over_the_last_epoch_that_has_them() -> None:
    lines = [
        {"step": 0, "epoch": 0, "loss": 9.0, "validation_loss": 5.0, "time_ms": 1},
        {"step": 1, "epoch": 1, "loss": 2.0, "time_ms": 2},
        {"step": 2, "epoch": 1, "loss": None, "time_ms": 3},
        {"step": 3, "epoch": 1, "loss": 4.0, "time_ms": 4, "note": "text"},
        {"step": 4, "epoch": 1, "loss": math.inf, "time_ms": 5},
    ]
    assert last_figures(lines) == {"loss": 3.0, "validation_loss": 5.0}
    assert last_figures([]) == {}


def some(**train: Any) -> PretrainSettings:
    settings = pretrain_settings(["train=small"])
    return replace(settings, train=replace(settings.train, **{"workers": 1, "device": "cpu", **train}))


def test_as_many_trials_run_at_a_time_as_fit() -> None:
    one = some(cpus_per_worker=0.5, cpus_per_reader=0.25, readers_per_worker=1)  # 0.8 CPUs with its driver
    assert at_a_time([one] * 9, {"CPU": 4.0}, None) == 5
    assert at_a_time([one] * 3, {"CPU": 4.0}, None) == 3
    assert at_a_time([one] * 9, {"CPU": 4.0}, 2) == 2
    assert at_a_time([one, replace(one, train=replace(one.train, workers=2))], {"CPU": 3.2}, None) == 2
    with pytest.raises(SettingsError, match=r"trials=6 do not fit: a trial needs 0.8 CPUs and Ray has 4, room for 5"):
        at_a_time([one] * 9, {"CPU": 4.0}, 6)
    gpu = some(device="cuda", workers=2)
    assert at_a_time([gpu] * 9, {"CPU": 64.0, "GPU": 8.0}, None) == 4
    assert at_a_time([some(device="auto")] * 9, {"CPU": 64.0, "GPU": 3.0}, None) == 3
    with pytest.raises(SettingsError, match="2 GPUs and Ray has 8, room for 4"):
        at_a_time([gpu] * 9, {"CPU": 64.0, "GPU": 8.0}, 5)
    elastic = some(workers=(1, 4), batch_size=64)
    assert at_a_time([elastic] * 9, {"CPU": 4.0}, None) == 5


def test_a_trial_that_could_only_hang_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(
        SettingsError, match=r"1 workers need 0.5 CPUs.*together 0.75; Ray has 0.74.*0.05 CPUs are kept"
    ):
        check_trial(some(), {"CPU": 0.79})
    check_trial(some(), {"CPU": 0.8})


@dataclass(frozen=True)
class TuneTrial:
    """What a scheduler of Tune sees of a trial."""

    trial_id: str
    config: dict[str, str] = field(default_factory=dict)


def report(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss}


class Search:
    """The scheduler of a sweep, with trials of ten steps an epoch and four epochs, and whom it gave up."""

    def __init__(self, earlier: dict[str, Any], ended: list[str], running: list[str]) -> None:
        self.fallen: list[str] = []
        paces = {name: Pace(10, 4) for name in [*ended, *running]}
        self.scheduler = EpochAsha("loss", "min", 1, 2, paces, earlier, ended, self.fallen.append)
        for name in running:
            self.scheduler.on_trial_add(None, self.trial(name))

    def trial(self, name: str) -> TuneTrial:
        return TuneTrial(f"id-{name}", {"trial": name})

    def falls(self, name: str, step: int, loss: float) -> bool:
        """True if the trial is given up on this report; Tune itself must never end it."""
        before = len(self.fallen)
        flat = {"report/step": step, "report/loss": loss, "training_iteration": 1, "done": False}
        assert self.scheduler.on_trial_result(None, self.trial(name), flat) == "CONTINUE"
        return self.fallen[before:] == [name]


def test_trials_that_fall_behind_are_given_up_and_none_before_its_grace_or_at_its_end() -> None:
    search = Search({}, [], ["a", "b", "c"])
    assert not search.falls("a", 9, 1.0)  # epoch 1, the first there
    assert not search.falls("b", 4, 9.0)  # before the grace
    assert search.falls("b", 9, 9.0)
    assert not search.falls("b", 19, 9.0)  # once is enough, while it comes to its end
    assert not search.falls("c", 9, 0.5)
    assert not search.falls("a", 19, 1.0)
    assert not search.falls("c", 39, 99.0)  # at its end: the encoder is being written
    flat = {"outcome/finished": True, "done": True}
    assert search.scheduler.on_trial_result(None, search.trial("a"), flat) == "CONTINUE"
    assert search.fallen == ["b"]


def test_a_sweep_that_goes_on_knows_what_its_trials_reported_before() -> None:
    earlier = {"a": [report(9, 1.0), report(19, 0.8)], "b": [report(9, 9.0)], "c": [report(9, 0.9)]}
    search = Search(earlier, ["a", "b"], ["c", "d"])
    assert search.falls("d", 9, 5.0)  # against a, b and c
    assert not search.falls("c", 9, 9.9)  # replayed after a resume: its place in that rung is taken
    assert search.falls("c", 19, 2.0)  # against a at epoch 2
