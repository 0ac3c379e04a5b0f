"""k ranks give the gradient, the loss and the running statistics of one rank on the global batch.

Real processes over gloo, under DistributedDataParallel, in float64: uneven records, uneven beats, a rank without beats,
a rank without records, and nobody with any beat. Each rank also makes its own views from its own rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from beatray.augment.draws import Draws
from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.registry import build_encoder
from beatray.objectives.objective import Progress
from beatray.objectives.reduce import gather_counts, gather_rows
from beatray.objectives.registry import build_objective
from beatray.objectives.statistics import FeatureStatistics
from feature_tables import table_of

torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other

ATOL = 1e-6
N_RECORDS = 7
VIEWS = {"crop_seconds": 1.5}

# (objective, settings, records of each rank, records without any beat)
CASES: dict[int, list[tuple[str, dict[str, Any], list[int], list[int]]]] = {
    2: [
        ("beat_ssl", {}, [4, 3], []),
        ("beat_ssl", {"rhythm": "hard"}, [6, 1], []),
        ("beat_ssl", {"rhythm": "soft_2", "beat": "soft_2"}, [2, 5], [3, 5]),
        ("beat_ssl", {"beat_positives": "clusters", "loss": "softclt"}, [5, 2], [5, 6]),  # rank 1 has no beats
        ("beat_ssl", {"beat": "soft_1", "positive_mass": None}, [0, 7], []),  # rank 0 has no records
        ("beat_ssl", {}, [3, 4], list(range(N_RECORDS))),  # no beats at all
        ("beat_ssl", {"rhythm": "none"}, [4, 3], [0, 1, 2, 3]),
        ("beat_ssl", {"rhythm": "soft_z", "beat": "soft_z", "positive_mass": 0.0}, [5, 2], [3, 5]),
        (
            "beat_ssl",
            {"rhythm": "soft_z", "beat": "soft_z", "positive_mass": None},
            [0, 7],
            [],
        ),  # rank 0 has no records
        ("beat_ssl", {"rhythm": "hard", "feature_weight": 0.7}, [4, 3], []),
        ("beat_ssl", {"feature_weight": 2.0}, [0, 7], [3]),  # rank 0 has no records
        ("simclr", {}, [4, 3], []),
        ("three_kg", {}, [1, 6], []),
    ],
    3: [
        ("beat_ssl", {}, [1, 4, 2], [1, 2]),
        ("beat_ssl", {"beat": "soft_1", "beat_positives": "inherit_record"}, [3, 0, 4], [0, 1, 2]),
        ("beat_ssl", {"rhythm": "soft_z", "beat": "soft_z", "beat_positives": "inherit_record"}, [3, 3, 1], [6]),
        ("beat_ssl", {"loss": "sigmoid", "sigmoid_bias": -2.0}, [0, 0, 7], [3]),
    ],
}
WORLDS = sorted(CASES)


def global_batch(without_beats: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    r_peaks = torch.full((N_RECORDS, 16), -1)
    for record in range(N_RECORDS):
        if record not in without_beats:
            beats = torch.arange(150, 5000, 330 + 40 * record)
            r_peaks[record, : len(beats)] = beats
    wander = torch.randn(N_RECORDS, 12, 5000, generator=generator).cumsum(-1) * 20
    return {
        "signal_uv": wander.clamp(-30000, 30000).to(torch.int16),
        "n_samples": torch.tensor([5000, 5000, 4100, 5000, 1000, 5000, 5000]),
        "record_key": torch.arange(N_RECORDS) * 1_000_003 - 5,
        "r_peaks": r_peaks,
        "beat_features": torch.randn(N_RECORDS, 16, 5, generator=generator) + 3.0,
        "record_features": torch.randn(N_RECORDS, 6, generator=generator) + 3.0,
        "beat_class": torch.randint(-1, 3, (N_RECORDS, 16), generator=generator),
    }


def build(name: str, settings: dict[str, Any]) -> nn.Module:
    batch = global_batch([])
    statistics = FeatureStatistics(
        table_of([f"r{i}" for i in range(6)], batch["record_features"].numpy()),
        table_of([f"b{i}" for i in range(5)], batch["beat_features"].reshape(-1, 5).numpy()),
    )
    torch.manual_seed(3)
    objective = build_objective(name, build_encoder("tiny"), {"augment": VIEWS, **settings}, statistics)
    module: nn.Module = objective.double()
    return module


def own_views(objective: Any, batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Views of a rank's records in float64."""
    mine = {key: value[rows] for key, value in batch.items()}
    made = objective.views(mine, Draws.of(mine, 11, 2))
    return {key: value.double() if key.startswith("view_") or key == "plain" else value for key, value in made.items()}


def run_case(
    name: str, settings: dict[str, Any], sizes: list[int], without_beats: list[int], rank: int, parallel: bool
) -> dict[str, np.ndarray]:
    objective = build(name, settings)
    batch = global_batch(without_beats)
    if parallel:
        first = sum(sizes[:rank])
        views = own_views(objective, batch, slice(first, first + sizes[rank]))
        module: nn.Module = DistributedDataParallel(objective)  # must live until the backward pass is through
    else:
        views = own_views(objective, batch, slice(None))
        module = objective
    step = module(views, Progress())
    step.loss.backward()
    result = {f"grad/{key}": parameter.grad.numpy() for key, parameter in objective.named_parameters()}
    result |= {f"buffer/{key}": value.numpy() for key, value in objective.named_buffers()}
    return result | {f"log/{key}": value.numpy() for key, value in (step.means | step.counts).items()}


def rank_main(rank: int, processes: int, above: str) -> None:
    """The same processes are two ranks and then three: starting them takes longer than what they do."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            folder = Path(above) / str(world)
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
            for number, case in enumerate(CASES[world]):
                np.savez(folder / f"case-{number}-rank-{rank}.npz", **run_case(*case, rank, parallel=True))
            np.savez(folder / f"norm-rank-{rank}.npz", **normalise_part(rank, world))
            (folder / f"gather-rank-{rank}.json").write_text(json.dumps(gather_part(rank, world)))
            dist.barrier()
            dist.destroy_process_group()
    # All is written. Left to itself the tear-down of the interpreter aborts now and then ("terminate called without an
    # active exception", about 1 in 12 on a busy machine) when DistributedDataParallel left threads behind.
    os._exit(0)


NORM_SIZES = {2: [5, 0], 3: [1, 4, 2]}


def norm_problem() -> tuple[GlobalBatchNorm1d, nn.BatchNorm1d, Tensor, Tensor]:
    torch.manual_seed(5)
    global_norm, torchs = GlobalBatchNorm1d(4).double(), nn.BatchNorm1d(4).double()
    with torch.no_grad():
        global_norm.weight.uniform_(0.5, 2.0)
        global_norm.bias.normal_()
    torchs.load_state_dict(global_norm.state_dict())
    x = torch.randn(7, 4, 9, dtype=torch.float64) * 0.01 + 300.0  # a large mean: naive sums of squares would lose it
    return global_norm, torchs, x, torch.randn(7, 4, 9, dtype=torch.float64)


def normalise_part(rank: int, world: int) -> dict[str, np.ndarray]:
    global_norm, _, x, upstream = norm_problem()
    sizes = NORM_SIZES[world]
    part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x_part = x[part].clone().requires_grad_()
    y = global_norm(x_part)
    (y * upstream[part]).sum().backward()
    assert x_part.grad is not None and global_norm.weight.grad is not None and global_norm.bias.grad is not None
    return {
        "y": y.detach().numpy(),
        "dx": x_part.grad.numpy(),
        "dw": global_norm.weight.grad.numpy(),
        "db": global_norm.bias.grad.numpy(),
        "mean": global_norm.running_mean.numpy(),
        "var": global_norm.running_var.numpy(),
    }


def gather_part(rank: int, world: int) -> dict[str, Any]:
    """Gather rank + 0 rows, rank times: values count rows; the loss of rank r weighs every row by r + 1."""
    counts = gather_counts([rank, 2], torch.device("cpu"))
    rows = (torch.arange(rank, dtype=torch.float64)[:, None] + 10.0 * rank).requires_grad_()
    everyone = gather_rows(rows, [count for count, _ in counts])
    (everyone * (rank + 1)).sum().backward()
    assert rows.grad is not None
    numbers = gather_rows(torch.full((rank, 2), rank), [count for count, _ in counts])
    nothing = gather_rows(torch.zeros(0, 3), [0] * world)
    return {
        "counts": counts,
        "rows": everyone[:, 0].tolist(),
        "grad": rows.grad[:, 0].tolist(),
        "numbers": numbers[:, 1].tolist(),
        "nothing": list(nothing.shape),
    }


@pytest.fixture(scope="module")
def of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each world size with what every rank wrote."""
    above = tmp_path_factory.mktemp("ranks")
    for world in WORLDS:
        (above / str(world)).mkdir()
    mp.spawn(rank_main, args=(max(WORLDS), str(above)), nprocs=max(WORLDS))
    return above


@pytest.fixture(params=WORLDS)
def ranks(request: pytest.FixtureRequest, of_all: Path) -> tuple[int, Path]:
    """World size and its folder."""
    return request.param, of_all / str(request.param)


def test_gradient_loss_and_statistics_are_those_of_one_rank(ranks: tuple[int, Path]) -> None:
    world, folder = ranks
    for number, case in enumerate(CASES[world]):
        alone = run_case(*case, rank=0, parallel=False)
        assert max(np.abs(v).max() for k, v in alone.items() if k.startswith("grad/encoder")) > 1e-4, case
        for rank in range(world):
            with np.load(folder / f"case-{number}-rank-{rank}.npz") as together:
                assert sorted(together.files) == sorted(alone), case
                for key, expected in alone.items():
                    np.testing.assert_allclose(
                        together[key], expected, atol=ATOL, rtol=1e-6, err_msg=f"{case} {key} on rank {rank}"
                    )


def test_batch_norm_over_ranks_is_batch_norm_of_the_whole(ranks: tuple[int, Path]) -> None:
    world, folder = ranks
    _, torchs, x, upstream = norm_problem()
    n = sum(NORM_SIZES[world])
    x = x[:n].clone().requires_grad_()
    y = torchs(x)
    (y * upstream[:n]).sum().backward()
    assert x.grad is not None and torchs.weight.grad is not None and torchs.bias.grad is not None
    parts = [np.load(folder / f"norm-rank-{rank}.npz") for rank in range(world)]
    np.testing.assert_allclose(np.concatenate([p["y"] for p in parts]), y.detach(), atol=1e-8)
    np.testing.assert_allclose(np.concatenate([p["dx"] for p in parts]), x.grad, atol=1e-6)
    np.testing.assert_allclose(sum(p["dw"] for p in parts), torchs.weight.grad, atol=1e-8)
    np.testing.assert_allclose(sum(p["db"] for p in parts), torchs.bias.grad, atol=1e-8)
    for part in parts:
        np.testing.assert_allclose(part["mean"], torchs.running_mean, atol=1e-9)
        np.testing.assert_allclose(part["var"], torchs.running_var, atol=1e-9)


def test_gather_is_ragged_and_its_gradient_adds_up(ranks: tuple[int, Path]) -> None:
    world, folder = ranks
    for rank in range(world):
        got = json.loads((folder / f"gather-rank-{rank}.json").read_text())
        assert got["counts"] == [[r, 2] for r in range(world)]
        assert got["rows"] == [10.0 * r + i for r in range(world) for i in range(r)]
        assert got["numbers"] == [r for r in range(world) for _ in range(r)]
        assert got["grad"] == [float(sum(range(1, world + 1)))] * rank
        assert got["nothing"] == [0, 3]
