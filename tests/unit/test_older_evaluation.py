"""Settings and results of evaluations under the names they had before 0.2."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from beatray.commands.evaluate import settings_from
from beatray.evaluate.older import results_today, scores_today, settings_today
from beatray.evaluate.results import plain
from beatray.evaluate.run import plan
from beatray.evaluate.settings import PROTOCOLS_OF, EvaluateSettings, FitSettings, protocols_today
from beatray.schema import as_dict

OVERRIDES = ["encoder=random", "corpus=/c"]
RENAMED = [
    ("evaluate.decoder.head_rate=0.1", "evaluate.decoder.head_lr=0.1"),
    ("evaluate.segment_finetune.encoder_rate=0.1", "evaluate.segment_finetune.encoder_lr=0.1"),
    ("evaluate.classify.mlp.scratch_rate=0.1", "evaluate.classify.mlp.scratch_lr=0.1"),
    ("evaluate.classify.rate_factors=[2.0]", "evaluate.classify.lr_factors=[2.0]"),
    ("evaluate.classify.neighbours=[3]", "evaluate.classify.k=[3]"),
    ("evaluate.inverse_penalties=[1.0]", "evaluate.C=[1.0]"),
    ("evaluate.controls=false", "evaluate.baselines=false"),
    ("evaluate.shuffles=3", "evaluate.permutations=3"),
    ("evaluate.protocols=[linear,frozen,finetune]", "evaluate.protocols=[linear_probe,frozen_decoder,finetune]"),
    ("evaluate.protocols=[frozen]", "evaluate.protocols=[classify/linear_probe,frozen_decoder]"),
    ("evaluate.protocols=[linear]", "evaluate.protocols=[segment/linear_probe]"),
]


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_an_older_name_means_the_same(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    from beatray.schema import warn_renamed

    warn_renamed.cache_clear()
    with caplog.at_level(logging.WARNING):
        before = settings_from([*OVERRIDES, old])
        assert len(caplog.records) == 1 and "the old name will go with the next version" in caplog.text
        caplog.clear()
        assert settings_from([*OVERRIDES, new]) == before and not caplog.records
    assert before.evaluate != settings_from(OVERRIDES).evaluate or "finetune]" in old


def test_the_yaml_defaults_are_those_of_the_dataclass() -> None:
    assert settings_from(OVERRIDES).evaluate == EvaluateSettings()


def pairs(protocols: tuple[str, ...]) -> set[tuple[str, str]]:
    units = plan(("segment", "classify"), [], replace(EvaluateSettings(baselines=True), protocols=protocols))
    asked = EvaluateSettings(protocols=protocols)
    found = {(task, protocol) for task in PROTOCOLS_OF for protocol in asked.protocols_of(task)}
    assert {(unit.task, unit.protocol) for unit in units} <= found
    return found


def test_a_task_and_a_protocol_of_before_are_one_of_today() -> None:
    old = {
        "linear": {("segment", "linear_probe")},
        "frozen": {("segment", "frozen_decoder"), ("classify", "linear_probe")},
        "mlp": {("classify", "mlp")},
        "knn": {("classify", "knn")},
        "finetune": {("segment", "finetune"), ("classify", "finetune")},
    }
    for override, expected in old.items():
        assert pairs(tuple(protocols_today([override]))) == expected
    assert pairs(tuple(protocols_today(old))) == set().union(*old.values())
    assert protocols_today(protocols_today(["frozen", "linear"])) == protocols_today(["frozen", "linear"])


def old_settings() -> dict[str, Any]:
    """The settings of a results.json of before, as defaults were then."""
    now = plain(as_dict(EvaluateSettings()))
    text = json.dumps({**now, "protocols": ["linear", "frozen", "finetune"]})
    for new, old in (
        ("head_lr", "head_rate"), ("encoder_lr", "encoder_rate"), ("scratch_lr", "scratch_rate"),
        ("lr_factors", "rate_factors"), ("C", "inverse_penalties"), ("k", "neighbours"), ("baselines", "controls"),
        ("permutations", "shuffles"),
    ):  # fmt: skip
        text = text.replace(f'"{new}":', f'"{old}":')
    return dict(json.loads(text))


def test_stored_results_are_read_under_the_names_of_today() -> None:
    now = plain(as_dict(EvaluateSettings()))
    assert settings_today(old_settings()) == now == settings_today(now)
    untimed = {key: value for key, value in now["labels"].items() if key not in ("time", "window", "time_format")}
    assert settings_today({**now, "labels": {**untimed, "table": "t.csv"}})["labels"] == {
        **now["labels"],
        "table": "t.csv",
    }

    def run(task: str, protocol: str, key: str, variant: str, encoder: str) -> dict[str, Any]:
        return {"task": task, "protocol": protocol, key: variant, "encoder": encoder, "metrics": {"f1": 0.5}}

    old = [
        run("segment", "linear", "arm", "pretrained", "frozen"),  # an encoder may be called anything
        run("segment", "frozen", "arm", "random", "tiny"),
        run("classify", "frozen", "arm", "joined", "mine"),
        run("classify", "knn", "arm", "shuffled", "shuffled"),
    ]
    new = [
        run("segment", "linear_probe", "variant", "pretrained", "frozen"),
        run("segment", "frozen_decoder", "variant", "random", "tiny"),
        run("classify", "linear_probe", "variant", "encoder_features", "mine"),
        run("classify", "knn", "variant", "permuted_labels", "permuted_labels"),
    ]
    document = {"settings": old_settings(), "tasks": {"segment": {}}, "runs": old}
    read = results_today(document)
    assert read == {"settings": now, "tasks": {"segment": {}}, "runs": new} == results_today(read)


def test_stored_scores_of_a_sweep_are_read_under_the_names_of_today() -> None:
    split = {"test_folds": [10], "split": 2}
    made_of = {"scores": 2, "encoder": "e", "manifest": "m", "split": split, "evaluate": old_settings()}
    read = scores_today(
        {"made_of": made_of, "controls": "c", "scores": {"pretrained": {"segment.frozen.10pct.f1": 0.5}, "joined": {}}}
    )
    assert read["made_of"]["evaluate"] == plain(as_dict(EvaluateSettings()))
    assert read["made_of"]["split"] == {"test_folds": [10], "fold_rotation": 2}
    assert read["controls"] == "c" and read["scores"] == {
        "pretrained": {"eval/segment/frozen_decoder/10pct/f1": 0.5},
        "encoder_features": {},
    }
    assert scores_today(read) == read


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.decoder.steps=abc", r"evaluate\.decoder\.steps='abc' is not of type int"),
        ("evaluate.decoder.head_lr=nan", r"evaluate\.decoder\.head_lr must be a finite number"),
        ("evaluate.classify_finetune.encoder_lr=inf", r"evaluate\.classify_finetune\.encoder_lr must be a finite"),
        ("evaluate.bootstraps=-1", r"evaluate\.bootstraps must be at least 1"),
        ("evaluate.min_leads=13", r"evaluate\.min_leads must be at most 12"),
        ("evaluate.segment_fractions=[2.0]", r"evaluate\.segment_fractions must be at most 1"),
        ("evaluate.classify_fractions=[0.0]", r"evaluate\.classify_fractions must be above 0"),
        ("evaluate.robustness.snr_db=[nan]", r"evaluate\.robustness\.snr_db must be a finite number"),
        ("evaluate.robustness.leads=[5]", r"evaluate\.robustness\.leads must be one of"),
        ("evaluate.seeds=[]", r"evaluate\.seeds is empty"),
        ("evaluate.finetune_seeds=[]", r"evaluate\.finetune_seeds is empty"),
        ("evaluate.seeds=[1,1]", r"evaluate\.seeds must differ"),
        ("evaluate.tasks=[]", r"evaluate\.tasks is empty"),
        ("evaluate.protocols=[]", r"evaluate\.protocols is empty"),
        ("evaluate.protocols=[probe]", r"evaluate\.protocols must be one of linear_probe, frozen_decoder"),
        ("evaluate.C=[]", r"evaluate\.C is empty"),
        ("evaluate.classify.k=[0]", r"evaluate\.classify\.k must be at least 1"),
        ("evaluate.classify.mlp_weight_decays=[]", r"evaluate\.classify\.mlp_weight_decays is empty"),
        ("evaluate.classify.labels=super", r"evaluate\.classify\.labels must be one of"),
        ("evaluate.segment.folds=1", r"evaluate\.segment\.folds must be 0 or at least 2"),
        ("evaluate.pooling=max", r"evaluate\.pooling must be one of"),
        ("evaluate.min_laeds=3", r"did you mean 'evaluate\.min_leads'"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from([*OVERRIDES, override])


def test_protocols_that_no_task_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"protocols=\['knn'\] holds none of segment"):
        EvaluateSettings(tasks=("segment",), protocols=("knn",))
    with pytest.raises(ValueError, match="crop_samples must be at most 5000"):
        FitSettings(crop_samples=5001)
