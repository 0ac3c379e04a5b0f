"""`beatray finetune encoder=PATH|random corpus=PATH labels=NAME run=NAME ...`: from an encoder to a model."""

from __future__ import annotations

from typing import Any

from beatray.commands import pretrain
from beatray.commands.console import say
from beatray.finetune.settings import finetune_settings
from beatray.models.model_folder import MODEL_FOLDER, describe_model
from beatray.settings import PretrainSettings
from beatray.train.launch import RunResult


def settings_from(overrides: list[str]) -> PretrainSettings:
    """The settings that the overrides of the command line mean."""
    return finetune_settings(overrides)


def run(settings: PretrainSettings) -> RunResult:
    """Train, and print the scores of the model."""
    result = pretrain.run(settings, "finetune")
    if result.finished:
        print_scores(describe_model(result.folder))
        say(f"  model: {result.folder}/{MODEL_FOLDER}")
        say(f'  use it: beatray.load_model("{result.folder}").predict(x_mv, rate_hz=500)')
    return result


def print_scores(description: dict[str, Any]) -> None:
    """The scores of a model, a line for each."""
    records = description["records"]
    say(f"  {records['train']:,} recordings trained, {records['validation']:,} chose, {records['test']:,} tested")
    if records["test_seen"]:
        say(f"  left out of the test: {records['test_seen']:,} recordings that the encoder was pretrained on")
    for name, score in description["scores"]["test"].items():
        if name not in ("each", "waves", "calibration") and score["value"] is not None:
            low, high = score["low"], score["high"]
            interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
            say(f"  test {name}: {score['value']:.3f}{interval}")
