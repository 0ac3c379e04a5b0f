"""How much of a machine a step uses: its floating-point operations, beside those of a matrix product on this machine.

Operations are counted by torch over forward and backward of a whole batch: matrix products, convolutions and attention,
a multiply-add as two. What is elementwise, an FFT or a recurrence of cuDNN is not counted, so a network of those has a
small share whatever it does. The roof is the best of a few products of large square matrices, in the type in which the
step multiplies: bfloat16 under autocast, else float32 (on CUDA TF32, if convolutions may use it) or float64.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from beatray.bench.feed import Fed
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec
from beatray.train.step import Learner, Ready

SIZE = {"cuda": 8192, "cpu": 1024}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
REPEATS, LONGEST_S = 200, 2.0


def step_flop(run_spec: RunSpec, device: torch.device, fed: Fed) -> int:
    """Operations of one step over a batch, without those of its views; by a network that is not compiled."""
    train = replace(run_spec.settings.train, compile="none", overlap="never")
    learner = Learner(replace(run_spec, settings=replace(run_spec.settings, train=train)), Ranks(device=device))
    ready = learner.ready(fed.arrays, fed.epoch, [part.rows for part in fed.parts])
    made = Ready(list(ready.views))
    with FlopCounterMode(display=False) as counter:
        learner.launch(0, fed.epoch, made, fed.parts).read()
    return int(counter.get_total_flops())


def matmul_roof(device: torch.device, precision: str, size: int | None = None) -> float:
    """Operations a second of the fastest of some products of two square matrices."""
    n = size or SIZE.get(device.type, 1024)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        a, b = (torch.randn(n, n, device=device, dtype=DTYPES[precision]) for _ in range(2))
        out, ends = torch.mm(a, b), time.perf_counter() + LONGEST_S
        taken: list[float] = []
        while len(taken) < REPEATS and (not taken or time.perf_counter() < ends):
            _synchronize(device)
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            _synchronize(device)
            taken.append(time.perf_counter() - began)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * n**3 / min(taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
