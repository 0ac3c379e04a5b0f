"""What every method promises (objectives/objective.py), held for all of the registry: see tests/every_method.py.

What several ranks promise is in tests/distributed/test_every_objective_on_ranks.py.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.commands import demo
from beatray.config import config_folder
from beatray.models.encoder_folder import export_encoder, load_encoder
from beatray.models.registry import build_encoder
from beatray.objectives.objective import Progress, StepResult
from beatray.objectives.registry import build_objective, objective_classes
from beatray.objectives.statistics import FeatureStatistics
from beatray.storage.store import Store
from beatray.train import checkpoint as checkpoints
from beatray.train.blocks import Arrays, Packed, pack, unpack
from beatray.train.order import MicroBatch
from beatray.train.ranks import Ranks
from beatray.train.run_spec import ViewsOnWorker
from beatray.train.step import Learner
from counts import count
from every_method import METHODS, RECIPES, batch_of, model_of, rows_of, run_spec_of, settings_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 6


@pytest.fixture(scope="module")
def rows() -> tuple[Arrays, dict[str, Any]]:
    """Real recordings with everything a method may read; one is short, one has no beat and no patient, two have one."""
    arrays, statistics = rows_of(48)
    arrays = copy.deepcopy(arrays)
    arrays["n_samples"][2] = 700
    arrays["signal_uv"][2, :, 700:] = 0
    arrays["r_peaks"][3] = -1
    arrays["patient_key"][3] = arrays["record_key"][3]
    arrays["patient_key"][4] = arrays["patient_key"][0]
    return arrays, statistics


def few(arrays: Arrays, count: int = ROWS) -> Arrays:
    return {name: values[:count] for name, values in arrays.items()}


def test_every_method_has_a_recipe_as_published_and_a_small_one() -> None:
    folder = config_folder()
    for name in METHODS:
        assert (folder / "objective" / f"{name}.yaml").is_file(), name
    full = {path.stem for path in (folder / "recipe").glob("*.yaml") if not path.stem.endswith("_tiny")}
    assert {f"{name}_tiny" for name in full} == set(RECIPES) and set(METHODS) <= full
    assert {settings_of(recipe).objective["name"] for recipe in RECIPES} == set(METHODS)


def test_every_method_describes_itself() -> None:
    for name, kind in objective_classes().items():
        assert kind.title and kind.__doc__ and kind.Settings.__doc__, name
        settings = kind.Settings()
        assert kind.described(settings).startswith(kind.title)
        assert all(curve.key and curve.title for curve in kind.curves(settings))
        assert kind.warnings(settings, {"loss": 1.0}, Progress(50, 100)) == {}


@pytest.mark.parametrize("method", METHODS)
def test_the_demo_takes_every_method_by_its_name(method: str) -> None:
    settings = demo.settings_from([f"objective={method}"], None)
    assert settings.objective["name"] == method and settings.recipe == f"{method}_tiny"
    assert dict(settings.encoder) == dict(settings_of(f"{method}_tiny").encoder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_views_depend_on_seed_epoch_and_record_alone(recipe: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    arrays, statistics = few(rows[0]), rows[1]
    settings = settings_of(recipe)
    objective = model_of(settings, statistics)
    together = views_of(objective, batch_of(objective, arrays))
    assert all(len(value) == ROWS for value in together.values())
    for chosen in ([4], [5, 1, 2]):
        apart = views_of(objective, batch_of(objective, arrays, chosen))
        for name, value in apart.items():
            torch.testing.assert_close(value, together[name][chosen], rtol=0, atol=0, equal_nan=True, msg=name)
    other = objective.views(batch := batch_of(objective, arrays), Draws.of(batch, 11, 1))
    assert any(not torch.equal(other[name], together[name]) for name in other)
    worker = ViewsOnWorker(
        json.dumps(settings.objective), json.dumps(settings.encoder), json.dumps(statistics), seed=11
    )
    made = worker({name: arrays[name] for name in objective.reads}, 0)
    (travelled,) = unpack(pack(Packed(0, made)))  # as Ray Data carries them
    assert travelled.arrays.keys() == together.keys()
    for name, value in travelled.arrays.items():
        np.testing.assert_array_equal(value, together[name].numpy(), err_msg=name)
        assert value.dtype == together[name].numpy().dtype


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_order_of_the_rows_does_not_matter(recipe: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    arrays, statistics = few(rows[0]), rows[1]
    turned = [3, 0, 5, 1, 4, 2]
    found = []
    for order in (list(range(ROWS)), turned):
        objective = model_of(settings_of(recipe), statistics, exact=True)
        result = objective(views_of(objective, batch_of(objective, arrays, order), exact=True), Progress(1, 10))
        result.loss.backward()
        gradients = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in gradients.values()), "a weight without a gradient stops DDP"
        found.append((result, gradients))
    (one, of_one), (other, of_other) = found
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_one, of_other, rtol=1e-7, atol=1e-9)
    assert one.means.keys() == other.means.keys() and "loss" in one.means
    torch.testing.assert_close(one.loss.detach().float(), one.means["loss"].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gradient_is_that_of_finite_differences(
    recipe: str, rows: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = model_of(settings_of(recipe), rows[1], exact=True)
    views = views_of(objective, batch_of(objective, few(rows[0])), exact=True)
    given: list[Tensor] = []  # targets that the same weights make: finite differences must not follow them
    stop_gradient = objective.stop_gradient

    def noted(target: Tensor) -> Tensor:
        given.append(stop_gradient(target).clone())
        return given[-1]

    monkeypatch.setattr(objective, "stop_gradient", noted)
    objective(views, Progress(1, 10)).loss.backward()
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    torch.manual_seed(0)
    directions = [torch.randn_like(parameter) for parameter in trained]
    length = math.sqrt(sum(float(direction.square().sum()) for direction in directions))
    directions = [direction / length for direction in directions]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(trained, directions, strict=True) if p.grad is not None)
    losses = []
    with torch.no_grad():
        for h in (1e-6, -2e-6):  # a longer step crosses kinks of ReLUs
            for parameter, direction in zip(trained, directions, strict=True):
                parameter += h * direction
            again = iter(given)
            monkeypatch.setattr(objective, "stop_gradient", lambda _, again=again: next(again))
            losses.append(float(objective(views, Progress(1, 10)).loss))
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_changes_nothing_and_repeats(recipe: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    objective = model_of(settings_of(recipe), rows[1]).eval()
    views = views_of(objective, batch_of(objective, few(rows[0])))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with torch.no_grad():
        first, again = (objective(views, Progress(3, 10)) for _ in range(2))
    assert torch.equal(first.loss, again.loss)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("recipe", RECIPES)
def test_half_precision_is_finite_and_near(recipe: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    objective = model_of(settings_of(recipe), rows[1])
    for module in objective.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout1d)):
            module.p = 0.0
    views = views_of(objective, batch_of(objective, few(rows[0])))
    exact = objective(views, Progress())
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(views, Progress())
    half.loss.backward()
    assert half.loss.dtype == torch.float32
    assert float(half.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=0.02, abs=0.02)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("what", ["one row", "no row", "constant"])
def test_little_to_learn_from_is_no_error(recipe: str, what: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    arrays = few(rows[0], {"one row": 1, "no row": 0, "constant": 4}[what])
    if what == "constant":
        arrays = {**arrays, "signal_uv": np.full_like(arrays["signal_uv"], 100)}
    objective = model_of(settings_of(recipe), rows[1])
    result = objective(views_of(objective, batch_of(objective, arrays)), Progress())
    result.loss.backward()
    assert torch.isfinite(result.loss) and torch.isfinite(result.means["loss"])
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Everything a checkpoint holds."""
    whole = checkpoints.snapshot("step-00000000", {}, learner.objective, learner.optimizer)
    return {**whole.model, **whole.optimiser}


def step(learner: Learner, arrays: Arrays, number: int) -> dict[str, float] | None:
    mine = {name: values for name, values in arrays.items() if name in learner.objective.reads}
    logs, _ = learner.step(number, mine, number, (MicroBatch(len(arrays["record_key"]), len(arrays["record_key"])),))
    return logs


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(
    recipe: str, rows: tuple[Arrays, dict[str, Any]], tmp_path: Path
) -> None:
    arrays, run = few(rows[0]), Store(str(tmp_path))
    run_spec = run_spec_of(settings_of(recipe), rows[1], ROWS)
    whole = Learner(run_spec, Ranks())
    logs = [step(whole, arrays, number) for number in range(2)]
    checkpoints.save(run, checkpoints.snapshot("step-00000002", {}, whole.objective, whole.optimizer))
    logs += [step(whole, arrays, number) for number in range(2, 4)]
    continued = Learner(run_spec, Ranks())
    checkpoints.restore(checkpoints.load(run, "step-00000002"), continued.objective, continued.optimizer)
    assert [step(continued, arrays, number) for number in range(2, 4)] == logs[2:]
    end, other = state_of(whole), state_of(continued)
    assert end.keys() == other.keys() and all(torch.equal(end[name], other[name]) for name in end)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_refused_step_leaves_everything_as_it_was(
    recipe: str, what: str, rows: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(run_spec_of(settings_of(recipe), rows[1], ROWS), Ranks())
    arrays = few(rows[0])
    assert step(learner, arrays, 0) is not None
    before = state_of(learner)
    forward = learner.objective.forward

    def poisoned(views: dict[str, Tensor], at: Progress) -> StepResult:
        result = forward(views, at)
        bad = (
            result.loss * torch.nan
            if what == "loss"
            else result.loss + (result.loss - result.loss.detach()) * 1e38 * 1e38
        )
        return StepResult(bad, result.means, result.counts)

    monkeypatch.setattr(learner.objective, "forward", poisoned)
    assert step(learner, arrays, 1) is None
    after = state_of(learner)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    monkeypatch.undo()
    assert step(learner, arrays, 1) is not None


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred rows (Roy and Vetterli, EUSIPCO 2007)."""
    values = torch.linalg.svdvals((z - z.mean(0)).double())
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


@pytest.mark.parametrize("recipe", count([f"{name}_tiny" for name in METHODS], RECIPES))
def test_it_learns_and_the_embedding_keeps_its_rank(recipe: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    size, steps = count((16, 14), (48, 30))
    arrays = few(rows[0], size)
    settings = settings_of(recipe)
    settings = replace(settings, train=replace(settings.train, warmup_epochs=0.0))
    learner = Learner(run_spec_of(settings, rows[1], size), Ranks())
    losses = []
    for number in range(steps):
        mine = {name: values for name, values in arrays.items() if name in learner.objective.reads}
        logs, norm = learner.step(number % 10, mine, number, (MicroBatch(size, size),))
        assert logs is not None and norm > 0
        losses.append(logs["loss"])
    assert np.mean(losses[-5:]) < np.mean(losses[:3]), losses
    encoder = learner.objective.exported().eval()
    batch = batch_of(learner.objective, arrays)
    views = learner.objective.views(batch, Draws.of(batch, 0, 99))
    with torch.no_grad():
        embedded = encoder(views["view_1"])
    assert effective_rank(embedded) > min(size, encoder.embed_dim) / 8


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_exported_is_the_encoder_and_nothing_else(
    recipe: str, rows: tuple[Arrays, dict[str, Any]], tmp_path: Path
) -> None:
    learner = Learner(run_spec_of(settings_of(recipe), rows[1], ROWS), Ranks())
    step(learner, few(rows[0]), 0)
    encoder = learner.objective.exported()
    chosen = dict(learner._run_spec.settings.encoder)
    fresh = build_encoder(chosen.pop("name"), **chosen)
    assert encoder.state_dict().keys() == fresh.state_dict().keys()
    described = {"name": encoder.name, "settings": encoder.described_settings(), "recipe": {}}
    export_encoder(Store(str(tmp_path)), encoder, json.loads(json.dumps(described)))
    loaded = load_encoder(str(tmp_path))
    x_mv = torch.from_numpy(few(rows[0])["signal_uv"][:2, :, :1001].astype(np.float32)) / 1000
    with torch.no_grad():
        assert torch.equal(loaded(x_mv), copy.deepcopy(encoder).eval()(x_mv))


@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_setting_is_refused_by_name(name: str, rows: tuple[Arrays, dict[str, Any]]) -> None:
    statistics = FeatureStatistics.from_dict(rows[1])
    with pytest.raises(ValueError, match=r"there is no setting 'objective\.no_such_thing'"):
        build_objective(name, build_encoder("tiny"), {"no_such_thing": 1}, statistics)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_network_that_cannot_serve_is_refused_when_it_is_built(
    recipe: str, rows: tuple[Arrays, dict[str, Any]]
) -> None:
    settings = settings_of(recipe)
    content = {key: value for key, value in settings.objective.items() if key != "name"}
    statistics = FeatureStatistics.from_dict(rows[1])
    name = settings.encoder["name"]
    if name == "tiny":
        build_objective(settings.objective["name"], build_encoder("tiny"), content, statistics)
        return
    with pytest.raises(ValueError, match="needs a network"):
        build_objective(settings.objective["name"], build_encoder("tiny"), content, statistics)
