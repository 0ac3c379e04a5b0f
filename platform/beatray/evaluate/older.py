"""What evaluations before 0.2 wrote down, under the names of today.

Protocols meant different things by task there: `frozen` was a decoder on frozen maps in the segmentation and a logistic
probe in the classification, `linear` a linear layer in the segmentation. A task and a protocol of then are one protocol
of now, so every figure keeps its position. Contract: what is written by this version comes back as it is.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

from beatray.corpus.label_settings import LabelSettings
from beatray.evaluate.results import PREFIX, VARIANTS, plain
from beatray.evaluate.settings import TASKS, EvaluateSettings, protocols_today
from beatray.settings import CorpusSettings

_PROTOCOLS = {
    ("segment", "linear"): "linear_probe",
    ("segment", "frozen"): "frozen_decoder",
    ("classify", "frozen"): "linear_probe",
}
_SCORE = re.compile(rf"({'|'.join(TASKS)})\.([a-z]+)\.([\d.e+-]+)pct\.([a-z0-9_]+)(?:\.(.+))?")
_VARIANTS = {"joined": "encoder_features", "shuffled": "permuted_labels"}


def protocol_today(task: str, protocol: str) -> str:
    """The protocol of a task."""
    return _PROTOCOLS.get((task, protocol), protocol)


def variant_today(variant: str) -> str:
    """What stands beside or in place of the encoder under test."""
    return _VARIANTS.get(variant, variant)


def settings_today(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation, as its results or a sweep's scores hold them."""
    content = _renamed(EvaluateSettings, stored)
    if "protocols" in content:
        content["protocols"] = protocols_today(content["protocols"])
    if "classify" in content:  # before there were tables none was read, and then none by time
        content["labels"] = plain(dataclasses.asdict(LabelSettings())) | content.get("labels", {})
    return content


def results_today(document: Mapping[str, Any]) -> dict[str, Any]:
    """A results.json."""
    return {
        **document,
        "settings": settings_today(document.get("settings", {})),
        "runs": [_run_today(run) for run in document.get("runs", ())],
    }


def scores_today(document: Mapping[str, Any]) -> dict[str, Any]:
    """A scores.json, which holds the scores of a trial of a sweep and what was evaluated."""
    content = dict(document)
    if "made_of" in content:
        made_of = dict(content["made_of"])
        split = _renamed(CorpusSettings, made_of.get("split", {}))
        content["made_of"] = {**made_of, "split": split, "evaluate": settings_today(made_of.get("evaluate", {}))}
    content["scores"] = {
        variant_today(variant): {score_today(name): value for name, value in scores.items()}
        for variant, scores in content.get("scores", {}).items()
    }
    return content


def score_today(name: str) -> str:
    """What a score is called now that may be called as before 0.2, `segment.frozen.10pct.f1`; others as they are."""
    found = _SCORE.fullmatch(name)
    if found is None:
        return name
    task, protocol, percent, metric, rest = found.groups()
    condition, _, variant = (rest or "").rpartition(".")
    if variant_today(variant) not in VARIANTS:
        condition, variant = rest or "", "pretrained"
    parts = [condition, "" if variant == "pretrained" else variant_today(variant)]
    return "/".join([f"{PREFIX}{task}", protocol_today(task, protocol), f"{percent}pct", *filter(None, parts), metric])


def _run_today(run: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(run)
    if "arm" in content:
        content = {("variant" if key == "arm" else key): value for key, value in content.items()}
        for key in ("variant", "encoder"):  # runs without an encoder are called by their variant
            content[key] = variant_today(content[key]) if key in content else ""
    return {**content, "protocol": protocol_today(content["task"], content["protocol"])}


def _renamed(kind: type[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    names = {item.metadata["was"]: item.name for item in dataclasses.fields(kind) if item.metadata.get("was")}
    content = {names.get(key, key): value for key, value in stored.items()}
    for key, value in content.items():
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints.get(key)):
            content[key] = _renamed(typing.cast("type[Any]", hints[key]), value)
    return content
