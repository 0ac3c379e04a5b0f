"""Settings: composed from configs/, typed, and refused with the name of the key and the nearest right one."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from beatray import config
from beatray.commands.demo import settings_from as demo
from beatray.config import compose
from beatray.errors import SettingsError
from beatray.evaluate.settings import EvaluateSettings
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.registry import objective_settings
from beatray.schema import build, flat
from beatray.settings import PretrainSettings
from beatray.sweep.plan import config_of
from beatray.train.composed import changes_today, pretrain_settings
from beatray.train.run_spec import build_model
from stepping import step_of


def pretrain(*overrides: str) -> PretrainSettings:
    return pretrain_settings(overrides)


def test_overrides_reach_their_keys() -> None:
    settings = pretrain("corpus=/data/my corpus (old)", "train.workers=8", "objective=simclr", "encoder=tiny", "run=7")
    assert settings.corpus.path == "/data/my corpus (old)"
    assert settings.train.workers == 8
    assert settings.objective["name"] == "simclr"
    assert settings.encoder["name"] == "tiny"
    assert settings.run == "7"


@pytest.mark.parametrize(
    ("override", "message"),
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
def test_wrong_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        pretrain(override)


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.temperature=abc", "objective.temperature='abc' is not of type float"),
        ("objective.temperature=true", "objective.temperature=True is not of type float"),
        ("objective.temperature=nan", "objective.temperature must be a finite number, not nan"),
        ("objective.temperature=-1", "objective.temperature must be above 0, not -1"),
        ("objective.exponent=inf", "objective.exponent must be a finite number, not inf"),
        ("objective.roi_bins=3.7", "objective.roi_bins=3.7 is not of type int"),
        ("objective.rhythm=soft", "objective.rhythm='soft' is not one of none, hard, soft_1"),
        ("objective.augment.angel_deg=3", "'objective.augment.angel_deg'; did you mean 'objective.augment.angle_deg'"),
        ("objective.views.angel_deg=3", "'objective.views.angel_deg'; did you mean 'objective.augment.angle_deg'"),
        ("objective.augment.scale=nan", "objective.augment.scale must be a finite number, not nan"),
        ("objective.augment=3", "objective.augment=3 is not of type ViewSettings"),
        ("objective.name=beat_sll", "there is no objective 'beat_sll'; did you mean 'beat_ssl'"),
        ("objective.name=nowhere_at_all:Mine", "nowhere_at_all:Mine cannot be imported"),
        ("encoder.pooling=cls", "encoder.pooling='cls' is not one of mean_std, mean_max, mean"),
        ("encoder.kernal=3", "there is no setting 'encoder.kernal'; did you mean 'encoder.kernel'"),
        ("encoder.kernel=8", "encoder.kernel must be odd, not 8"),
        ("encoder.channels=[1,2]", "encoder.channels=[1, 2] must have 3 values, not 2"),
        ("train.learning_rate=nan", "train.learning_rate must be a finite number, not nan"),
        ("train.learning_rate=inf", "train.learning_rate must be a finite number, not inf"),
        ("train.learning_rate=-1", "train.learning_rate must be above 0, not -1"),
        ("train.betas=[0.9,nan]", "train.betas must be a finite number, not nan"),
        ("checkpoint.every_minutes=-1", "checkpoint.every_minutes must be above 0, not -1"),
        ("seed=-1", "seed must be at least 0, not -1"),
        ("seed=9223372036854775808", "seed must be below 9.22337e+18, not 9223372036854775808"),
        ("seed=1e3", "seed=1000.0 is not of type int"),
    ],
)
def test_wrong_values_of_methods_and_networks_are_refused_by_name_too(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        pretrain("encoder=tiny", override)


def test_a_setting_that_no_file_repeats_may_be_said() -> None:
    file = config.config_folder() / "encoder" / "tiny.yaml"
    assert "kernel" not in file.read_text()
    assert pretrain("encoder=tiny", "encoder.kernel=9").encoder["kernel"] == 9
    assert pretrain("encoder=tiny").encoder["kernel"] == 7


OLDER = [
    (["objective.views.angle_deg=30"], ["objective.augment.angle_deg=30"]),
    (
        ["objective=simclr", "objective.views.smallest_part=0.4"],
        ["objective=simclr", "objective.augment.smallest_part=0.4"],
    ),
    (["objective=three_kg", "objective.views.scale=1.2"], ["objective=three_kg", "objective.augment.scale=1.2"]),
    (["objective.pos_mass=0.25"], ["objective.positive_mass=0.25"]),
    (["objective.pos_mass=null"], ["objective.positive_mass=null"]),
    (["objective.form=rownorm"], ["objective.loss=soft_cross_entropy"]),
    (["objective.form=softclt"], ["objective.loss=softclt"]),
    (["objective.form=bce"], ["objective.loss=sigmoid"]),
    (["objective.loss=rownorm"], ["objective.loss=soft_cross_entropy"]),
    (["objective.loss=bce"], ["objective.loss=sigmoid"]),
    (["objective.bce_bias=-2"], ["objective.sigmoid_bias=-2"]),
    (["objective.hard_beat=clusters"], ["objective.beat_positives=clusters"]),
    (["objective.hard_beat=same_record"], ["objective.beat_positives=same_record"]),
    (
        ["objective.beat_labels=aami", "objective.beat_classifier=/b"],
        ["objective.beat_positives=aami", "objective.beat_classifier=/b"],
    ),
    (["objective.beat_labels=null"], []),
    (
        ["objective.beat=soft_1", "objective.beat_similarity=inherit_record"],
        ["objective.beat=soft_1", "objective.beat_positives=inherit_record"],
    ),
    (["objective.beat=soft_1", "objective.beat_similarity=features"], ["objective.beat=soft_1"]),
    (["objective.beat_similarity=inherit_record"], []),  # of hard beats: it said nothing then either
    (["train.clip_norm=0.5"], ["train.max_grad_norm=0.5"]),
    (["train.accumulate=2"], ["train.gradient_accumulation_steps=2"]),
    (["train.lanes=8"], ["train.shuffle_streams=8"]),
    (["views.place=workers"], ["train.augment_on=workers"]),
]


@pytest.mark.parametrize(("older", "newer"), OLDER)
def test_older_names_mean_what_they_meant_and_say_so_once(
    older: list[str], newer: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config.warn_renamed.cache_clear()
    with caplog.at_level(logging.WARNING, "beatray.schema"):
        assert pretrain(*newer) == pretrain(*newer)
        assert not caplog.messages
        found = pretrain(*older)
        pretrain(*older)
    assert found == pretrain(*newer)
    (message,) = caplog.messages
    key = older[-1].partition("=")[0] if "beat_labels=aami" not in older[0] else "objective.beat_labels"
    key = key.rpartition(".")[0] if key.startswith("objective.views") else key
    assert message.startswith((f"{key} is called ", f"{key}=")) and " now; the old name will go" in message


def test_an_older_name_and_the_one_of_today_do_not_part() -> None:
    """The aami classes took the place of what hard_beat said, and still do."""
    overrides = ["objective.hard_beat=clusters", "objective.beat_labels=aami", "objective.beat_classifier=/b"]
    assert pretrain(*overrides).objective["beat_positives"] == "aami"
    assert pretrain(*reversed(overrides)).objective["beat_positives"] == "aami"
    for override, near in (
        ("objective.pos_mas=0.5", "objective.positive_mass"),
        ("train.clip_norms=1", "train.max_grad"),
    ):
        with pytest.raises(SettingsError, match=f"there is no setting '{override.partition('=')[0]}'") as caught:
            pretrain(override)
        assert near not in str(caught.value) or "did you mean" in str(caught.value)


@pytest.mark.parametrize(("older", "newer"), [("form", "loss"), ("pos_mass", "positive_mass")])
def test_files_of_sweeps_that_were_renamed_are_found(older: str, newer: str, caplog: pytest.LogCaptureFixture) -> None:
    config.warn_renamed.cache_clear()
    with caplog.at_level(logging.WARNING, "beatray.schema"):
        assert config_of([f"sweep={older}"]) == config_of([f"sweep={newer}"])
    assert caplog.messages == [f"sweep={older} is called sweep={newer} now; the old name will go with the next version"]


def test_changes_of_an_older_sweep_are_read_under_the_names_of_today() -> None:
    older = {
        "objective.rhythm": "soft_1",
        "objective.pos_mass": None,
        "objective.form": "bce",
        "objective.views.scale": 1.2,
        "objective.hard_beat": "clusters",
        "train.lanes": 4,
        "views.place": "workers",
        "encoder.channels": [1, 2, 3],
        "seed": 3,
    }
    assert changes_today(older) == {
        "objective.rhythm": "soft_1",
        "objective.positive_mass": None,
        "objective.loss": "sigmoid",
        "objective.augment.scale": 1.2,
        "objective.beat_positives": "clusters",
        "train.shuffle_streams": 4,
        "train.augment_on": "workers",
        "encoder.channels": [1, 2, 3],
        "seed": 3,
    }
    assert changes_today(changes_today(older)) == changes_today(older)


def test_overrides_win_over_a_recipe() -> None:
    plain = pretrain("recipe=beat_ssl_tiny")
    assert plain.recipe == "beat_ssl_tiny" and plain.encoder["name"] == "tiny" and plain.objective["rhythm"] == "hard"
    assert plain.train == pretrain("train=small").train != PretrainSettings().train
    assert pretrain("recipe=beat_ssl_tiny", "train=default").train == pretrain().train
    assert pretrain("train=default", "recipe=beat_ssl_tiny").train == pretrain().train
    assert pretrain("recipe=beat_ssl_tiny", "encoder=xresnet1d18").encoder == pretrain("encoder=xresnet1d18").encoder
    overrides = ["objective.rhythm=soft_2", "train.epochs=7", "encoder.kernel=9", "train.lanes=4"]
    for order in (["recipe=beat_ssl_tiny", *overrides], [*overrides, "recipe=beat_ssl_tiny"]):
        own = pretrain(*order)
        assert own.objective["rhythm"] == "soft_2" and own.train.epochs == 7 and own.encoder["kernel"] == 9
        assert own.train.shuffle_streams == 4 and own.train.batch_size == plain.train.batch_size
    both = pretrain("recipe=beat_ssl_tiny", "train=default", "train.epochs=7")
    assert both.train.epochs == 7 and both.train.batch_size == pretrain().train.batch_size


@pytest.mark.parametrize(
    "overrides", [["recipe=beat_ssl_tiny", "objective=simclr"], ["objective=beat_ssl", "recipe=beat_ssl_tiny"]]
)
def test_a_recipe_with_another_objective_is_refused(overrides: list[str]) -> None:
    with pytest.raises(SettingsError, match="recipe= or objective=, not both"):
        pretrain(*overrides)


def test_no_recipe_is_an_override_too() -> None:
    assert pretrain("recipe=null") == pretrain()
    for override, message in (
        ("recipe=tiny", "there is no recipe 'tiny'"),
        ("objective=null", "there is no objective 'null'"),
    ):
        with pytest.raises(SettingsError, match=message):
            pretrain(override)


OWN = """
from dataclasses import dataclass

import torch
from torch import nn

from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Stage
from beatray.objectives.objective import Objective, StepResult
from beatray.objectives.reduce import global_mean


@dataclass(frozen=True)
class NetSettings:
    width: int = setting(8, "channels", at_least=1)

    def __post_init__(self):
        check(self)


class Net(Encoder):
    Settings = NetSettings

    def __init__(self, settings):
        super().__init__(settings, [Stage(settings.width, 10)])
        self.conv = nn.Conv1d(12, settings.width, 15, 10, 7)

    def forward_stages(self, x_mv, n_samples=None):
        return [self.conv(self.lead_scale(x_mv))]


@dataclass(frozen=True)
class MineSettings:
    strength: float = setting(1.0, above=0.0, was="power")

    def __post_init__(self):
        check(self)


class Mine(Objective):
    title = "Mine"
    Settings = MineSettings

    def views(self, batch, draws):
        noise = torch.as_tensor(draws.uniform("noise", 1))[:, :, None]
        return {"x": batch["signal_uv"] / 1000.0 + noise.float()}

    def forward(self, views, at):
        squared = self.encoder(views["x"]).square().sum()
        loss, mean = global_mean(squared, len(views["x"]), self.settings.strength)
        return StepResult(loss, {"loss": mean * self.settings.strength})
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's, where Python looks."""
    (tmp_path / "own_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_of_a_user"


def test_a_method_and_a_network_of_the_users_own(own_module: str, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"objective.name={own_module}:Mine", f"encoder.name={own_module}:Net"]
    settings = pretrain(*names, "objective.strength=2.5")
    assert settings.objective == {"name": f"{own_module}:Mine", "strength": 2.5}
    assert settings.encoder == {"name": f"{own_module}:Net", "width": 8}
    with caplog.at_level(logging.WARNING, "beatray.schema"):
        assert pretrain(*names, "objective.power=2.5") == settings
    assert "objective.power is called objective.strength now" in caplog.text
    table: dict[str, Any] = {"names": [], "mean": [], "sd": [], "min": [], "max": []}
    made = build_model(settings.objective, settings.encoder, 0, {"record": table, "beat": table})
    batch = {
        "signal_uv": torch.randint(-500, 500, (3, 12, 5000), dtype=torch.int16),
        "n_samples": torch.full((3,), 5000),
        "record_key": torch.arange(3),
    }
    assert set(made.reads) == set(batch)
    result = step_of(made, batch)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), result.means["loss"])
    assert made.encoder.conv.weight.grad is not None and made.encoder.embed_dim == 16
    for override, message in (
        ("objective.strenght=2", "did you mean 'objective.strength'"),
        ("objective.strength=-1", "objective.strength must be above 0"),
        ("objective.temperature=0.1", "there is no setting 'objective.temperature'"),
        ("encoder.width=wide", "encoder.width='wide' is not of type int"),
        ("encoder.kernel=3", "there is no setting 'encoder.kernel'"),
    ):
        with pytest.raises(SettingsError, match=re.escape(message)):
            pretrain(*names, override)
    with pytest.raises(SettingsError, match=r"is no subclass of beatray\.objectives\.objective\.Objective"):
        pretrain(f"objective.name={own_module}:Net")


def test_the_demo_takes_another_method_with_its_small_recipe_or_with_none(own_module: str) -> None:
    plain = demo([], None)
    assert (plain.recipe, plain.objective["rhythm"], plain.encoder["name"]) == ("beat_ssl_tiny", "hard", "tiny")
    assert demo(["objective=beat_ssl"], None) == demo(["recipe=beat_ssl_tiny"], None) == plain
    assert demo(["objective=beat_ssl", "objective.rhythm=soft_2"], None).objective["rhythm"] == "soft_2"
    assert demo(["objective=simclr"], None).objective["name"] == "simclr"
    for overrides in (["recipe=null", "objective=simclr"], [f"objective.name={own_module}:Mine"]):
        other = demo(overrides, None)
        assert other.objective == pretrain(overrides[-1]).objective
        assert (other.recipe, other.encoder, other.train) == (None, plain.encoder, plain.train)
    assert demo(["recipe=null"], None).objective == pretrain().objective
    for overrides in (["recipe=beat_ssl_tiny", "objective=simclr"], ["recipe=beat_ssl_tiny", "objective.name=simclr"]):
        with pytest.raises(SettingsError, match="recipe= or objective=, not both"):
            demo(overrides, None)
    with pytest.raises(SettingsError, match="there is no objective 'simcl'; did you mean 'simclr'"):
        demo(["objective=simcl"], None)
