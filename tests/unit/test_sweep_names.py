"""Sweeps under older names, and metrics that no trial has."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from beatray.errors import SettingsError
from beatray.evaluate.names import of_variant, parts_of, score_name, scores_of
from beatray.evaluate.older import score_today
from beatray.evaluate.settings import EvaluateSettings, RobustnessSettings
from beatray.schema import warn_renamed
from beatray.storage.store import Store
from beatray.sweep import results
from beatray.sweep.plan import plan_from
from beatray.sweep.record import SweepRecord, TrialRecord, metric_today, read
from beatray.sweep.settings import SweepSettings
from beatray.train.composed import pretrain_settings

OVERRIDES = ["corpus=/c", "sweep.space.seed=[0,1,2,3,4,5]", "sweep.search=random"]
EVALUATED = [*OVERRIDES, "sweep.evaluate=true", "sweep.mode=max"]
F1 = "eval/segment/frozen_decoder/10pct/f1"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sweep.trials=4", "sweep.num_samples=4"),
        ("sweep.concurrent=2", "sweep.max_concurrent_trials=2"),
        ("sweep.grace_epochs=2", "sweep.grace_period=2"),
        ("sweep.reduction=2", "sweep.reduction_factor=2"),
    ],
)
def test_an_older_name_means_the_same(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    few = [] if "trials=" in old else ["sweep.num_samples=4"]
    few = few if "concurrent" not in old else ["sweep.num_samples=4"]
    warn_renamed.cache_clear()
    with caplog.at_level(logging.WARNING):
        before = plan_from([*OVERRIDES, *few, old])
        assert len(caplog.records) == 1 and "the old name will go with the next version" in caplog.text
        caplog.clear()
        assert plan_from([*OVERRIDES, *few, new]) == before and not caplog.records
    assert before.sweep != plan_from([*OVERRIDES, "sweep.num_samples=5"]).sweep


def test_the_yaml_defaults_are_those_of_the_dataclass() -> None:
    plan = plan_from(["corpus=/c", "sweep.space.seed=[0]"])
    assert plan.sweep == SweepSettings(space={"seed": [0]})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.reduction_factor=nan", r"sweep\.reduction_factor must be a finite number"),
        ("sweep.reduction_factor=1", r"sweep\.reduction_factor must be above 1"),
        ("sweep.num_samples=0", r"sweep\.num_samples must be at least 1"),
        ("sweep.num_samples=many", r"sweep\.num_samples='many' is not of type int"),
        ("sweep.max_concurrent_trials=-1", r"sweep\.max_concurrent_trials must be at least 1"),
        ("sweep.mode=best", r"sweep\.mode must be one of min, max"),
        ("sweep.only=[]", r"sweep\.only is empty"),
        ("sweep.grace_perod=3", r"did you mean 'sweep\.grace_period'"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_from(
            [*OVERRIDES, "sweep.num_samples=4", override] if "num_samples" not in override else [*OVERRIDES, override]
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("segment.frozen.10pct.f1", F1),
        ("segment.linear.0.4pct.dice", "eval/segment/linear_probe/0.4pct/dice"),
        ("classify.frozen.100pct.auroc", "eval/classify/linear_probe/100pct/auroc"),
        ("classify.frozen.100pct.auroc.joined", "eval/classify/linear_probe/100pct/encoder_features/auroc"),
        ("classify.knn.100pct.validation_auroc", "eval/classify/knn/100pct/validation_auroc"),
        ("segment.finetune.100pct.f1.noise_3", "eval/segment/finetune/100pct/noise_3/f1"),
        ("segment.finetune.100pct.f1.BW_2.5_dB", "eval/segment/finetune/100pct/BW_2.5_dB/f1"),
        ("segment.frozen.10pct.f1.pretrained", F1),
        ("classify.frozen.100pct.f1.shuffled", "eval/classify/linear_probe/100pct/permuted_labels/f1"),
        (F1, F1),
        ("validation_loss", "validation_loss"),
    ],
)
def test_an_older_score_is_one_of_today(old: str, new: str) -> None:
    assert score_today(old) == new == metric_today(old) == metric_today(new)


def test_figures_of_training_by_older_names_and_those_of_mlflow() -> None:
    assert metric_today("rhythm_loss") == "record/loss" == metric_today("train/record/loss")
    assert metric_today("train/validation_loss") == "validation_loss"


def test_names_and_their_parts() -> None:
    assert score_name("segment", "frozen_decoder", 0.1, "f1") == F1
    assert parts_of(F1) == ("segment", "frozen_decoder", "f1", 0.1)
    assert of_variant(F1, "pretrained") == F1
    assert of_variant(F1, "random") == "eval/segment/frozen_decoder/10pct/random/f1"
    robust = RobustnessSettings(noise_levels=(3,), leads=(1,), noise_folder="/nowhere", snr_db=(6.0,))
    scores = scores_of(EvaluateSettings(robustness=robust))
    assert {F1, "eval/segment/linear_probe/100pct/noise_3/f1", "eval/classify/finetune/100pct/1_lead/auroc"} <= scores
    assert "eval/segment/finetune/100pct/EM_6_dB/dice" in scores and "eval/segment/knn/100pct/f1" not in scores
    assert not any(other.startswith(f"{name}/") for name in scores for other in scores)  # MLflow may keep them as files


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*OVERRIDES, "sweep.metric=validaton_loss"], "did you mean 'validation_loss'"),
        ([*OVERRIDES, "sweep.metric=los"], "did you mean 'loss'"),
        ([*OVERRIDES, "sweep.metric=accuracy"], "is nothing that a trial logs: there are"),
        ([*OVERRIDES, "sweep.metric=record/los"], "did you mean 'record/loss'"),
        ([*OVERRIDES, "sweep.metric=accuracy/test"], "is nothing that a trial logs: there are"),
        ([*OVERRIDES, f"sweep.metric={F1}"], r"it needs sweep\.evaluate=true"),
        ([*EVALUATED, "sweep.metric=eval/segment/frozen_decoder/10pct/f2"], f"did you mean '{F1}'"),
        ([*EVALUATED, "sweep.metric=eval/segment/frozen_decoder/20pct/f1"], "did you mean"),
        ([*EVALUATED, "sweep.metric=segment.frozen.20pct.f1"], "did you mean"),
        ([*EVALUATED, f"sweep.metric={F1}", "evaluate.protocols=[finetune]"], "no score of this evaluation"),
    ],
)
def test_a_metric_that_no_trial_has_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_from([*overrides, "sweep.num_samples=2"])


def test_metrics_that_trials_have_are_taken() -> None:
    for metric in (
        "loss",
        "train/loss",
        "gradient_norm",
        "record/loss",
        "rhythm_loss",
        "record/figure",
        "core_minutes",
    ):
        assert plan_from([*OVERRIDES, "sweep.num_samples=2", f"sweep.metric={metric}"])
    for metric in (F1, "segment.frozen.10pct.f1", "eval/classify/linear_probe/100pct/encoder_features/auroc"):
        plan = plan_from([*EVALUATED, "sweep.num_samples=2", f"sweep.metric={metric}"])
        assert plan.sweep.metric == score_today(metric)


def test_an_older_override_of_the_evaluation_wins_over_what_is_fixed() -> None:
    overrides = [*EVALUATED, "sweep.num_samples=2", f"sweep.metric={F1}"]
    for fixed, override in (("C", "inverse_penalties"), ("inverse_penalties", "C")):
        plan = plan_from([*overrides, f"sweep.fixed.evaluate.{fixed}=[1.0]", f"evaluate.{override}=[2.0]"])
        assert plan.evaluation is not None and plan.evaluation.C == (2.0,)


def test_the_record_of_an_older_sweep_is_read(tmp_path: Path) -> None:
    turn = {"number": 0, "step": 4, "donor": "b", "changes": {"seed": 2}, "copied": True}
    trial = {
        "name": "a", "changes": {"seed": 1}, "status": "finished", "attempts": 1, "steps": 8, "seconds": 1.0,
        "figures": {"rhythm_loss": 1.0, "segment.frozen.10pct.f1": 0.5, "classify.frozen.100pct.auroc.joined": 0.7},
        "reports": [{"step": 3, "loss": 1.0}], "error": None, "takeovers": [turn],
    }  # fmt: skip
    content = {"version": 1, "run": "old", "metric": "segment.frozen.10pct.f1", "mode": "max", "search": "pbt"}
    (tmp_path / "sweep.json").write_text(json.dumps({**content, "trials": [trial], "rounds": []}))
    record = read(Store(str(tmp_path)))
    assert record is not None and record.metric == F1
    (one,) = record.trials
    together = "eval/classify/linear_probe/100pct/encoder_features/auroc"
    assert one.figures == {"record/loss": 1.0, F1: 0.5, together: 0.7}
    assert one.exploits == ({"number": 0, "step": 4, "source": "b", "changes": {"seed": 2}, "copied": True},)
    assert one.present == {"seed": 2}


def test_the_older_name_of_the_rotation_is_understood_as_an_override_and_in_a_sweep(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_renamed.cache_clear()
    before = pretrain_settings(["corpus.split=3"])
    assert "corpus.split is called corpus.fold_rotation now" in caplog.text
    assert before == pretrain_settings(["corpus.fold_rotation=3"]) != pretrain_settings([])
    older = plan_from(["corpus=/c", "sweep.space.corpus.split=[0,1]"])
    newer = plan_from(["corpus=/c", "sweep.space.corpus.fold_rotation=[0,1]"])
    assert [trial.settings.corpus for trial in older.trials] == [trial.settings.corpus for trial in newer.trials]
    with pytest.raises(SettingsError, match=r"corpus\.split is swept"):
        plan_from(["corpus=/c", "sweep.space.corpus.split=[0,1]", "corpus.fold_rotation=2"])


def test_trials_that_swept_the_rotation_under_its_older_name_repeat_one_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = tuple(TrialRecord(f"hard__split-{n}", {"objective.rhythm": "hard", "corpus.split": n}) for n in (0, 1))
    record = SweepRecord("run", F1, "max", "grid", trials)

    def read_trial(folder: Store, trial: TrialRecord, repeat: str, controls: object) -> results.Evaluated:
        return results.Evaluated(trial.name, repeat, "c", {"runs": []}, {})

    monkeypatch.setattr(results, "_read_trial", read_trial)
    (method,) = results.read_results(Store(str(tmp_path)), record).methods
    assert method.name == "hard" and method.repeats == ("split-0", "split-1")
    assert method.changes == {"objective.rhythm": "hard"}
