"""Settings: composed from configs/, typed, and refused with the name of the key and the nearest right one."""

from __future__ import annotations

import re

import pytest

from beatray.config import build, compose, flat
from beatray.errors import SettingsError
from beatray.evaluate.settings import EvaluateSettings
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.registry import objective_settings
from beatray.settings import PretrainSettings
from beatray.train.composed import pretrain_settings


def pretrain(*words: str) -> PretrainSettings:
    return pretrain_settings(words)


def test_words_reach_their_keys() -> None:
    settings = pretrain("corpus=/data/my corpus (old)", "train.workers=8", "objective=simclr", "encoder=tiny", "run=7")
    assert settings.corpus.path == "/data/my corpus (old)"
    assert settings.train.workers == 8
    assert settings.objective["name"] == "simclr"
    assert settings.encoder["name"] == "tiny"
    assert settings.run == "7"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.wokers=2", "did you mean 'train.workers'"),
        ("wokers=2", "did you mean"),
        ("train.workers=two", "train.workers='two' is not of type int or list"),
        ("train.workers=[3,1]", "must be a number or [least, most]"),
        ("train.epochs=1.5", "train.epochs=1.5 is not of type int"),
        ("train.precision=fp8", "fp32, bf16"),
        ("objective=beatssl", "did you mean 'beat_ssl'"),
        ("train.workers", "not of the form key=value"),
        ("train.batch_size=0", "train.batch_size must be at least 1"),
        ("train.epochs=0", "train.epochs must be at least 1"),
    ],
)
def test_wrong_words_are_named(word: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        pretrain(word)


def test_every_top_file_composes_and_the_defaults_match_the_schema() -> None:
    assert pretrain().train == PretrainSettings().train
    evaluate = compose("evaluate", ["encoder=random"], extra={"encoder": "encoder_path"})["evaluate"]
    assert build(EvaluateSettings, evaluate) == EvaluateSettings()
    paper = build(EvaluateSettings, compose("evaluate", ["encoder_path=random", "evaluate=benchmark"])["evaluate"])
    assert len(paper.seeds) == 10 and paper.classify_fractions[0] == 0.01 and paper.classify.labels == "superdiagnostic"
    objective = pretrain("objective=beat_ssl").objective
    assert objective_settings("beat_ssl", {k: v for k, v in objective.items() if k != "name"}) == BeatSslSettings()
    for top in ("ingest", "pretrain", "evaluate", "demo"):
        assert compose(top, [])


def test_flat_is_dotted() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": []}) == {"a.b": 1, "a.c.d": None, "e": []}
