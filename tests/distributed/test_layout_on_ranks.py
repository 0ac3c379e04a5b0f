"""k ranks whose maps are channels last give the numbers of torch's own layers on the whole batch, in one process.

Real processes over gloo, under DistributedDataParallel, in float64: uneven ranks, a rank without records, nobody with
any. On a CPU the layout is forced; what differs on CUDA is which kernels are chosen.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from beatray.export.folder import real_recordings
from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.layout import AvgPool1d, Conv1d, MaxPool1d, channels_last_on
from counts import count

torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other

SIZES: dict[int, list[list[int]]] = {2: [[5, 2], [0, 7], [0, 0]], 3: [[1, 4, 2], [3, 0, 4]]}
"""World size: the records of each rank, case by case."""


def network(*, replaced: bool) -> nn.Sequential:
    """Convolutions of several kernels, one channel among them, norms and pools."""
    conv = Conv1d if replaced else nn.Conv1d
    norm = GlobalBatchNorm1d if replaced else nn.BatchNorm1d
    max_pool, avg_pool = (MaxPool1d, AvgPool1d) if replaced else (nn.MaxPool1d, nn.AvgPool1d)
    torch.manual_seed(6)
    return nn.Sequential(
        *(conv(12, 1, 1), conv(1, 6, 5, 2, 2, bias=False), norm(6), nn.ReLU(), max_pool(3, 2, padding=1)),
        *(
            conv(6, 8, 1, bias=False),
            norm(8),
            nn.ReLU(),
            avg_pool(2, ceil_mode=True),
            conv(8, 4, 3, padding=1),
            norm(4),
        ),
    ).double()


def problem() -> tuple[Tensor, Tensor]:
    """Seven recordings, and the gradient of what the network makes of them."""
    x_mv = torch.from_numpy(real_recordings())[:7, :, :401].double()
    return x_mv, torch.randn(7, 4, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def results(module: nn.Module, run: nn.Module, rows: slice) -> dict[str, np.ndarray]:
    x_mv, upstream = (each[rows] for each in problem())
    x = x_mv.clone().requires_grad_()
    y = run(x)
    y.backward(upstream)
    assert x.grad is not None
    found = {"y": y.detach().numpy(), "dx": x.grad.numpy()}
    found |= {f"grad/{name}": p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    return found | {f"buffer/{name}": value.numpy() for name, value in module.named_buffers()}


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", "Grad strides do not match")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for number, sizes in enumerate(SIZES[world]):
        module = network(replaced=True)
        lost: list[str] = []

        def look(layer: nn.Module, _: object, y: Tensor, lost: list[str] = lost) -> None:
            def backward(grad: Tensor) -> None:
                if len(grad) and not grad.unsqueeze(2).is_contiguous(memory_format=torch.channels_last):
                    lost.append(f"gradient behind {layer}")

            if len(y) and not y.unsqueeze(2).is_contiguous(memory_format=torch.channels_last):
                lost.append(f"output of {layer}")
            y.register_hook(backward)

        for layer in list(module)[:-1]:  # the gradient of the last comes from the test
            layer.register_forward_hook(look)
        first = sum(sizes[:rank])
        with channels_last_on("cpu"):
            found = results(module, DistributedDataParallel(module), slice(first, first + sizes[rank]))
        np.savez(Path(folder) / f"case-{number}-rank-{rank}.npz", lost=np.array(lost, dtype=str), **found)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # left to itself the interpreter's tear-down aborts now and then, over threads that DDP leaves behind


@pytest.mark.parametrize("world", count([3], [2, 3]))
def test_ranks_in_that_layout_are_one_process_in_torchs_own(world: int, tmp_path: Path) -> None:
    mp.spawn(rank_main, args=(world, str(tmp_path)), nprocs=world)
    for number, sizes in enumerate(SIZES[world]):
        ranks = [dict(np.load(tmp_path / f"case-{number}-rank-{rank}.npz")) for rank in range(world)]
        assert all(each.pop("lost").tolist() == [] for each in ranks), sizes
        if not sum(sizes):
            assert all(not each[key].any() for each in ranks for key in each if key.startswith("grad"))
            continue
        alone = network(replaced=False)
        expected = results(alone, alone, slice(None))
        assert all(sorted(each) == sorted(expected) for each in ranks)
        for key, value in expected.items():
            close = {"rtol": 1e-9, "atol": 1e-9 * max(1.0, float(np.abs(value).max())), "err_msg": f"{sizes} {key}"}
            if key in ("y", "dx"):
                np.testing.assert_allclose(np.concatenate([each[key] for each in ranks]), value, **close)
                continue
            for each in ranks:  # DistributedDataParallel takes the mean over ranks of what is a sum
                scale = world if key.startswith("grad") else 1
                np.testing.assert_allclose(each[key] * scale, value, **close)
