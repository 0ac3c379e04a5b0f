"""Learning from labels on two ranks is that on one: loss, gradient and state, by the known labels of both.

Real processes over gloo, under DistributedDataParallel, in float64, with uneven ranks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beatray.objectives.objective import Progress
from beatray.train.blocks import Arrays
from beatray.train.optimizer import build_optimizer
from every_method import batch_of, model_of, views_of
from labelled import labelled_rows, settings_for

torch.set_num_threads(1)

CASES = [
    ("multilabel", "objective.weights=[0.5,2,0.5,2,0.5,2,0.5,2,0.5,2]"),
    ("classes", "objective.trained=last"),
    ("numbers", "objective.hidden=8"),
    ("waves",),
    ("waves", "objective.trained=head", "objective.decoder=unet"),
]
SIZES = [6, 2]


def run_case(
    case: tuple[str, ...], arrays: Arrays, statistics: dict[str, Any], sizes: list[int], rank: int
) -> dict[str, Any]:
    settings = settings_for(*case)
    objective = model_of(settings, statistics, exact=True)
    module: nn.Module = DistributedDataParallel(objective, broadcast_buffers=False) if len(sizes) > 1 else objective
    optimizer = build_optimizer(objective, settings.train)
    first = sum(sizes[:rank])
    mine = batch_of(objective, arrays, slice(first, first + sizes[rank]))
    found: dict[str, Any] = {}
    for number in range(2):
        result = module(views_of(objective, mine, number, exact=True), Progress(number, 2))
        optimizer.zero_grad()
        result.loss.backward()
        found |= {f"{number}/{name}": value.numpy() for name, value in result.means.items()}
        if number == 0:
            gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
            found |= {f"grad/{name}": gradient.numpy().copy() for name, gradient in gradients.items()}
        optimizer.step()
    return found | {f"state/{name}": value.numpy() for name, value in objective.state_dict().items()}


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    statistics = json.loads(Path(f"{folder}/statistics.json").read_text())
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for number, case in enumerate(CASES):
        arrays = dict(np.load(f"{folder}/{case[0]}.npz"))
        np.savez(f"{folder}/{number}-{rank}.npz", **run_case(case, arrays, statistics, SIZES, rank))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # as in test_every_objective_on_ranks.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("labelled")
    for kind in {case[0] for case in CASES}:
        arrays, statistics = labelled_rows(kind)
        np.savez(into / f"{kind}.npz", **arrays)
        (into / "statistics.json").write_text(json.dumps(statistics))
    mp.spawn(rank_main, args=(str(into),), nprocs=2)
    return into


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_two_ranks_together_are_one(number: int, folder: Path) -> None:
    case = CASES[number]
    statistics = json.loads((folder / "statistics.json").read_text())
    alone = run_case(case, dict(np.load(folder / f"{case[0]}.npz")), statistics, [sum(SIZES)], 0)
    assert max(np.abs(value).max() for name, value in alone.items() if name.startswith("grad/head")) > 1e-6
    for rank in range(2):
        with np.load(folder / f"{number}-{rank}.npz") as together:
            assert sorted(together.files) == sorted(alone)
            for name, expected in alone.items():
                rtol = 1e-5 if name[0].isdigit() else 1e-7
                np.testing.assert_allclose(together[name], expected, atol=1e-9, rtol=rtol, err_msg=name)
