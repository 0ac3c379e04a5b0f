"""One step handed over and read later, as on a GPU, gives what a step read at once gives, and a refused one nothing.

The way of a GPU is taken on the CPU here (train.overlap=always): views made ahead, fused optimizers masked by
`found_inf`, what changed before put back by a mask. The registry-wide test holds the other way.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beatray.objectives.objective import Progress, StepResult
from beatray.settings import PretrainSettings
from beatray.train.blocks import Arrays
from beatray.train.order import MicroBatch
from beatray.train.ranks import Ranks
from beatray.train.rollback import Rollback
from beatray.train.step import Learner
from counts import count
from every_method import RECIPES, rows_of, run_spec_of, settings_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 6
SOME = ("beat_ssl_tiny", "byol_tiny", "swav_tiny", "simdino_tiny", "jepa_tiny", "s4_data2vec_tiny", "cpc_lstm_tiny")
"""One without anything after a step, and every kind of what comes after one: teachers, queue, prototypes, centres."""
CHOSEN = tuple(count(SOME, RECIPES))


@pytest.fixture(scope="module")
def rows() -> tuple[Arrays, dict[str, Any]]:
    return rows_of(24)


def settings(recipe: str, **train: Any) -> PretrainSettings:
    chosen = settings_of(recipe)
    return replace(chosen, train=replace(chosen.train, **{"warmup_epochs": 0.0, "precision": "fp32", **train}))


def learner_of(recipe: str, statistics: dict[str, Any], **train: Any) -> Learner:
    return Learner(run_spec_of(settings(recipe, **train), statistics, ROWS), Ranks())


def arrays_of(learner: Learner, arrays: Arrays, first: int = 0) -> Arrays:
    return {name: arrays[name][first : first + ROWS] for name in learner.objective.reads}


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Everything that a step may change."""
    state = dict(learner.objective.state_dict())
    for number, moments in learner.optimizer.state_dict()["state"].items():
        state |= {f"{number}.{name}": value for name, value in moments.items() if isinstance(value, Tensor)}
    return {name: value.clone() for name, value in state.items()}


def poison(learner: Learner, patch: pytest.MonkeyPatch, what: str) -> None:
    """The loss, or only its gradient, is not finite from now on."""
    forward = learner.objective.forward

    def poisoned(views: dict[str, Tensor], at: Progress) -> StepResult:
        result = forward(views, at)
        change = (result.loss - result.loss.detach()) * 1e38 * 1e38
        bad = result.loss * torch.nan if what == "loss" else result.loss + change
        return StepResult(bad, result.means, result.counts)

    patch.setattr(learner.objective, "forward", poisoned)


@pytest.mark.parametrize("recipe", CHOSEN)
def test_a_step_that_is_read_late_gives_what_one_read_at_once_gives(
    recipe: str, rows: tuple[Arrays, dict[str, Any]]
) -> None:
    parts = (MicroBatch(4, 4), MicroBatch(2, 2))
    # in float64: Adam makes a step of full size from a gradient that is nothing but rounding
    at_once, late = (learner_of(recipe, rows[1], overlap=each, precision="fp64") for each in ("never", "always"))
    assert late.overlaps and not at_once.overlaps
    expected = [at_once.step(number, arrays_of(at_once, rows[0], number), 0, parts) for number in range(3)]
    ahead = [late.ready(arrays_of(late, rows[0], number), 0, [4, 2]) for number in range(3)]
    outcomes = [late.launch(number, 0, ready, parts) for number, ready in enumerate(ahead)]
    for outcome, (logs, norm) in zip(outcomes, expected, strict=True):
        found, found_norm = outcome.read()
        assert found is not None and found == pytest.approx(logs, rel=1e-6, abs=1e-7)
        assert found_norm == pytest.approx(norm, rel=1e-6)
    one, other = state_of(at_once), state_of(late)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value.double(), other[name].double(), rtol=1e-6, atol=1e-8), name


def test_micro_batches_weigh_by_what_the_loss_is_a_mean_over(rows: tuple[Arrays, dict[str, Any]]) -> None:
    """Of JEPA the masked tokens: short recordings have few. No term of it looks at other recordings."""
    found = []
    for cuts in ((6,), (2, 4)):
        learner = learner_of("jepa_tiny", rows[1], precision="fp64")
        arrays = {name: values.copy() for name, values in arrays_of(learner, rows[0]).items()}
        arrays["n_samples"][:2] = 500
        arrays["signal_uv"][:2, :, 500:] = 0
        for module in learner.objective.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        logs, norm = learner.step(0, arrays, 0, tuple(MicroBatch(n, n) for n in cuts))
        assert logs is not None
        found.append((logs["loss"], norm))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("recipe", CHOSEN)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_refused_step_that_is_read_late_leaves_everything_as_it_was(
    recipe: str, what: str, rows: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(recipe, rows[1], overlap="always")
    arrays, parts = arrays_of(learner, rows[0]), (MicroBatch(4, 4), MicroBatch(2, 2))
    assert learner.step(0, arrays, 0, parts)[0] is not None
    before = state_of(learner)
    poison(learner, monkeypatch, what)
    outcomes = [learner.launch(number, 0, learner.ready(arrays, 0, [4, 2]), parts) for number in (1, 2)]
    after = state_of(learner)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [outcome.read()[0] for outcome in outcomes] == [None, None]
    monkeypatch.undo()
    assert learner.step(1, arrays, 0, parts)[0] is not None


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lars"])
def test_a_refused_first_step_is_as_if_it_had_not_been(
    optimizer: str, rows: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments are made in a first step: a masked one must not leave any."""
    parts = (MicroBatch(ROWS, ROWS),)
    alone, refused = (learner_of("simclr_tiny", rows[1], overlap="always", optimizer=optimizer) for _ in range(2))
    arrays = arrays_of(alone, rows[0])
    poison(refused, monkeypatch, "gradient")
    assert refused.step(0, arrays, 0, parts)[0] is None
    monkeypatch.undo()
    logs = [learner.step(number, arrays, 0, parts) for number in (1, 2) for learner in (alone, refused)]
    assert logs[0] == logs[1] and logs[2] == logs[3]
    one, other = state_of(alone), state_of(refused)
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("recipe", ["beat_ssl_tiny", "byol_tiny", "mae_tiny"])
def test_no_step_waits_for_what_it_launched(
    recipe: str, rows: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a number of a tensor is what waits for a device: between `launch` and `read` nobody does."""
    learner = learner_of(recipe, rows[1], overlap="always")
    learner.objective.static_shapes = True  # as on a GPU
    arrays, parts = arrays_of(learner, rows[0]), (MicroBatch(ROWS, ROWS),)
    learner.step(0, arrays, 0, parts)  # the first step makes the moments, and asks them for their place
    ready = learner.ready(arrays, 0, [ROWS])
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        real = getattr(Tensor, name)

        def reading(self: Tensor, *args: Any, _real: Any = real, _name: str = name) -> Any:
            reads.append(_name)
            return _real(self, *args)

        monkeypatch.setattr(Tensor, name, reading)
    outcome = learner.launch(1, 0, ready, parts)
    assert reads == []
    assert outcome.read()[0] is not None and reads == ["tolist"]


def test_a_rollback_puts_back_every_type_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 2, generator=generator), torch.tensor(4), torch.randn(5, generator=generator).double()]
    before = [tensor.clone() for tensor in tensors]
    rollback = Rollback(tensors)
    for refused in (False, True):
        rollback.keep()
        for tensor in tensors:
            tensor.mul_(torch.nan if tensor.is_floating_point() else 3)
        changed = [tensor.clone() for tensor in tensors]
        rollback.put_back(torch.tensor(refused))
        expected = before if refused else changed
        assert all(
            torch.equal(a, b) or (not refused and a.isnan().all()) for a, b in zip(tensors, expected, strict=True)
        )
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


@pytest.mark.parametrize("what", count(("step",), ("encoder", "step", "graphs")))
def test_a_compiled_step_gives_what_a_plain_one_gives(
    what: str, rows: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs that are taken, and their backward; the code that is made of them is torch's own matter."""
    real = torch.compile
    modes: list[str | None] = []

    def compile_as_traced(*args: Any, mode: str | None = None, **_: Any) -> Any:
        modes.append(mode)
        return real(*args, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_as_traced)
    plain, compiled = (learner_of("beat_ssl_tiny", rows[1], compile=each) for each in ("none", what))
    parts = (MicroBatch(ROWS, ROWS),)
    for number in range(2):
        arrays = arrays_of(plain, rows[0], number)
        expected, found = (learner.step(number, arrays, 0, parts) for learner in (plain, compiled))
        assert expected[0] is not None and found[0] == pytest.approx(expected[0], rel=2e-4, abs=2e-5)
    assert modes and set(modes) == {"reduce-overhead" if what == "graphs" else None}
    assert plain.objective.state_dict().keys() == compiled.objective.state_dict().keys()


def test_a_step_needs_neither_ray_nor_mlflow_nor_hydra() -> None:
    """So that a machine with an accelerator and little else can train, and measure, with the real thing."""
    code = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'hydra', 'omegaconf', 'sklearn', 'neurokit2', 'wfdb'):\n"
        "    sys.modules[name] = None\n"
        "import beatray.train.step, beatray.train.run_spec, beatray.train.timing, beatray.train.stream_settings\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
