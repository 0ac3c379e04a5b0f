"""Teachers and queues: closed forms of the average, who learns and who does not, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from byol_oracle import byol_momentum, ema
from torch import nn

from beatray.augment.draws import Draws
from beatray.augment.two_views import crop_window
from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.registry import build_encoder
from beatray.objectives.ema import Queue, Teacher, cosine_momentum, linear_momentum
from beatray.objectives.objective import Objective, Progress, StepResult
from beatray.objectives.reduce import gather_rows, global_mean
from beatray.storage.store import Store
from beatray.train import checkpoint as checkpoints
from beatray.train.order import MicroBatch
from beatray.train.ranks import Ranks
from beatray.train.step import Learner
from every_method import rows_of, run_spec_of, settings_of


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), GlobalBatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def moved(network: nn.Module) -> None:
    """As an optimizer would: every weight, and the running statistics by a forward pass."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, dtype=parameter.dtype)
    network(torch.randn(8, 3, dtype=torch.float64))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_one_update_is_the_closed_form_of_every_weight(momentum: float, batch_statistics: bool) -> None:
    network = student()
    teacher = Teacher(network, batch_statistics=batch_statistics)
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    moved(network)
    teacher.update(network, momentum)
    for name, value in network.state_dict().items():
        found = teacher.module.state_dict()[name]
        if "running" in name and batch_statistics:
            assert torch.equal(found, before[name])  # they are of its own batches
            continue
        expected = ema(before[name].numpy(), value.numpy(), momentum)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
        if momentum in (0.0, 1.0) and value.is_floating_point():
            assert torch.equal(found, value if momentum == 0.0 else before[name])


def test_a_teacher_is_not_trained_and_has_no_dropout() -> None:
    network = student()
    teacher = Teacher(network, batch_statistics=True)
    both = nn.ModuleList([network, teacher]).train()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.module[2].training and teacher.module[1].training
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(teacher.module(x), teacher.module(x))
    (network(x) - teacher.module(x)).square().sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    quiet = Teacher(network).train()
    assert not any(part.training for part in quiet.module.modules())
    assert both.eval() is both and not teacher.module[1].training


def test_momentum_runs_from_its_start_to_its_end() -> None:
    for step in (0, 1, 7, 50, 99, 100):
        at = Progress(step, 100)
        assert cosine_momentum(at, 0.996) == pytest.approx(byol_momentum(step, 100, 0.996), abs=1e-15)
    assert cosine_momentum(Progress(0, 10), 0.9) == pytest.approx(0.9)
    assert cosine_momentum(Progress(10, 10), 0.9) == 1.0
    assert linear_momentum(Progress(0, 10), 0.998, 0.9995) == 0.998
    assert linear_momentum(Progress(10, 10), 0.998, 0.9995) == pytest.approx(0.9995)
    assert linear_momentum(Progress(5, 10), 0.0, 1.0) == 0.5


def test_a_queue_takes_in_at_the_end_of_a_step_and_keeps_the_newest() -> None:
    queue = Queue(5, 2)

    def rows(*numbers: float) -> torch.Tensor:
        return torch.tensor(numbers)[:, None].expand(-1, 2)

    queue.stage(rows(1, 2))
    queue.stage(rows(3))  # a second micro-batch
    assert len(queue.newest) == 0
    queue.commit()
    assert queue.newest[:, 0].tolist() == [1, 2, 3]
    queue.stage(rows(99))  # of a step that is refused
    queue.drop()
    queue.stage(rows(4, 5, 6))
    queue.commit()
    assert queue.newest[:, 0].tolist() == [2, 3, 4, 5, 6] and int(queue.filled) == 5
    queue.commit()
    assert queue.newest[:, 0].tolist() == [2, 3, 4, 5, 6]
    queue.stage(rows(*range(10, 18)))
    queue.commit()
    assert queue.newest[:, 0].tolist() == [13, 14, 15, 16, 17]
    again = Queue(5, 2)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.newest, queue.newest)
    queue.eval().stage(rows(0))
    queue.commit()
    assert torch.equal(again.newest, queue.newest)


class Queued(Objective):
    """A toy method with a queue: the loss is the distance of the batch's mean signal from the queue's."""

    def __init__(self) -> None:
        super().__init__(build_encoder("tiny", channels=(4, 4, 8)), None)
        self.queue = Queue(8, self.encoder.embed_dim)

    def views(self, batch: dict[str, torch.Tensor], draws: Draws) -> dict[str, torch.Tensor]:
        return crop_window(batch, 1.0, draws)

    def forward(self, views: dict[str, torch.Tensor], at: Progress) -> StepResult:
        z = self.encoder(views["plain"])
        self.queue.stage(gather_rows(z, [len(z)]))
        away = z - (self.queue.newest.mean(0) if len(self.queue.newest) else 0.0)
        loss, mean = global_mean(away.square().sum(), len(z))
        return StepResult(loss, {"loss": mean})

    def after_step(self, at: Progress) -> None:
        self.queue.commit()


def test_the_loop_keeps_a_queue_through_micro_batches_refusals_and_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, statistics = rows_of(7)
    run_spec = run_spec_of(settings_of("simclr_tiny"), statistics, 6)
    monkeypatch.setattr("beatray.train.step.build_model", lambda *_: Queued())
    mine = {name: arrays[name][:6] for name in Objective.reads}
    parts = (MicroBatch(4, 4), MicroBatch(2, 2))
    learner = Learner(run_spec, Ranks())
    queue = learner.objective.queue
    assert learner.step(0, mine, 0, parts)[0] is not None
    assert int(queue.filled) == 6
    before = {name: value.clone() for name, value in learner.objective.state_dict().items()}
    forward, calls = learner.objective.forward, []

    def second_is_bad(views: dict[str, torch.Tensor], at: Progress) -> StepResult:
        calls.append(1)
        result = forward(views, at)
        return result if len(calls) == 1 else StepResult(result.loss * torch.nan, result.means)

    monkeypatch.setattr(learner.objective, "forward", second_is_bad)
    assert learner.step(1, mine, 1, parts)[0] is None and len(calls) == 2
    assert all(torch.equal(value, before[name]) for name, value in learner.objective.state_dict().items())
    monkeypatch.setattr(learner.objective, "forward", forward)
    run = Store(str(tmp_path))
    checkpoints.save(run, checkpoints.snapshot("step-00000001", {}, learner.objective, learner.optimizer))
    logs = learner.step(1, mine, 1, parts)[0]
    assert int(queue.filled) == 8
    continued = Learner(run_spec, Ranks())
    checkpoints.restore(checkpoints.load(run, "step-00000001"), continued.objective, continued.optimizer)
    assert continued.step(1, mine, 1, parts)[0] == logs
    assert torch.equal(continued.objective.queue.newest, queue.newest)
