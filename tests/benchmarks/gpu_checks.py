"""What must be true of fast steps on an accelerator, as numbers beside their bounds: for bench_gpu.py.

Each check returns a dict with what was found, the bound and `ok`. Nothing raises for a number that is out of bounds.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch import multiprocessing as mp

from beatray.bench.feed import Fed
from beatray.models import layout
from beatray.objectives.objective import Progress
from beatray.train import checkpoint
from beatray.train.order import MicroBatch
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec
from beatray.train.step import Learner, Ready

LOSS_BOUND = 0.02
"""Relative, of any of 50 losses in bfloat16 or TF32 against those of the eager step: the order of sums is another."""

LAYOUT_BOUND = 1e-3
"""Relative to the largest entry, of outputs and gradients in float32: channels last against (N, C, T)."""

RESUME_BOUND = 0.01
"""Relative, of losses after a checkpoint against going on: atomic additions of CUDA have no fixed order."""

RANKS_BOUND = 1e-3
"""Relative, of losses in float32: two ranks against one on the whole batch."""

Found = dict[str, Any]


def losses_of(learner: Learner, feds: Sequence[Fed], steps: int) -> list[float]:
    """The losses of so many steps over some batches in turn; NaN for a refused one."""
    found = []
    for number in range(steps):
        fed = feds[number % len(feds)]
        logs, _ = learner.step(number, fed.arrays, 0, fed.parts)
        found.append(logs["loss"] if logs is not None else float("nan"))
    return found


def compared(losses: Sequence[float], expected: Sequence[float], bound: float = LOSS_BOUND) -> Found:
    """The largest relative difference, and where it is."""
    apart = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses, expected, strict=True)]
    worst = max(range(len(apart)), key=lambda n: float("inf") if apart[n] != apart[n] else apart[n])
    return {"worst": apart[worst], "at_step": worst, "steps": len(apart), "bound": bound, "ok": apart[worst] <= bound}


def refused(learner: Learner, fed: Fed, number: int) -> Found:
    """A step over views with a NaN in them: is it refused, and is everything what it was, to the bit?"""
    before = {name: value.clone() for name, value in _state(learner).items()}
    ready = learner.ready(fed.arrays, 0, [part.rows for part in fed.parts])
    views = list(ready.taken())
    poured = next(name for name, value in views[0].items() if value.is_floating_point() and value.dim() == 3)
    views[0] = {**views[0], poured: views[0][poured].clone()}
    views[0][poured][0, 0, :] = float("nan")
    logs, _ = learner.launch(number, 0, Ready(views), fed.parts).read()
    after = _state(learner)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    again = learner.step(number, fed.arrays, 0, fed.parts)[0] is not None
    return {"refused": logs is None, "changed": changed, "goes_on": again, "ok": logs is None and not changed and again}


def resumed(run_spec: RunSpec, device: torch.device, feds: Sequence[Fed], steps: int = 4) -> Found:
    """Steps after a checkpoint, by a learner that was made anew, against going on."""
    one, other = (Learner(run_spec, Ranks(device=device)) for _ in range(2))
    losses_of(one, feds, steps)
    checkpoint.restore(checkpoint.snapshot("here", {}, one.objective, one.optimizer), other.objective, other.optimizer)
    went_on, continued = losses_of(one, feds, steps), losses_of(other, feds, steps)
    return compared(continued, went_on, RESUME_BOUND)


def layouts(run_spec: RunSpec, device: torch.device, fed: Fed) -> Found:
    """Loss, outputs of the network and gradients, channels last and (N, C, T), in float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        train = replace(run_spec.settings.train, precision="fp32", compile="none")
        spec = replace(run_spec, settings=replace(run_spec.settings, train=train))
        learner = Learner(spec, Ranks(device=device))
        views = learner.views(fed.arrays, 0, make=True)
        start = copy.deepcopy(learner.objective.state_dict())
        found = []
        for context in (layout.channels_first(), layout.channels_last_on(device.type)):
            learner.objective.load_state_dict(start)
            learner.objective.zero_grad(set_to_none=True)
            with context:
                signal = next(value for value in views.values() if value.dim() == 3)
                stages = [each.detach() for each in learner.objective.encoder.forward_stages(signal[:8])]
                loss = learner.objective(views, Progress()).loss
                loss.backward()
            gradients = {n: w.grad for n, w in learner.objective.named_parameters() if w.grad is not None}
            found.append((stages, gradients, float(loss.detach())))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    (stages, gradients, loss), (others, other_gradients, other_loss) = found
    outputs = max(_apart(a, b) for a, b in zip(stages, others, strict=True))
    # of all gradients together: that of a bias before a norm is nothing but rounding
    largest = max(float(value.abs().max()) for value in gradients.values())
    slopes = max(float((value - other_gradients[name]).abs().max()) for name, value in gradients.items()) / largest
    losses = abs(loss - other_loss) / max(abs(loss), 1e-12)
    ok = max(outputs, slopes, losses) <= LAYOUT_BOUND
    return {"outputs": outputs, "gradients": slopes, "loss": losses, "bound": LAYOUT_BOUND, "ok": ok}


def two_ranks(run_spec: RunSpec, device: torch.device, fed: Fed, folder: Path, steps: int = 3) -> Found:
    """The losses of two ranks, half a batch each, against those of one: global batch norm and contrast over NCCL."""
    train = replace(run_spec.settings.train, precision="fp32", compile="none")
    spec = replace(run_spec, settings=replace(run_spec.settings, train=train))
    expected = losses_of(Learner(spec, Ranks(device=device)), [fed], steps)
    meeting, file = folder / "meeting", folder / "losses.txt"
    mp.spawn(_rank, (spec, device.type, fed, str(meeting), str(file), steps), nprocs=2)
    losses = [float(text) for text in file.read_text().split()]
    return compared(losses, expected, RANKS_BOUND)


def _rank(rank: int, spec: RunSpec, kind: str, fed: Fed, meeting: str, file: str, steps: int) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", f"file://{meeting}", rank=rank, world_size=2)
    half = fed.rows // 2
    cut = slice(0, half) if rank == 0 else slice(half, fed.rows)
    arrays = {name: values[cut] for name, values in fed.arrays.items()}
    mine = Fed(0, (MicroBatch(len(arrays["record_key"]), fed.rows),), arrays)
    losses = losses_of(Learner(spec, Ranks(rank, 2, device)), [mine], steps)
    if rank == 0:
        Path(file).write_text(" ".join(map(repr, losses)))
    dist.destroy_process_group()


def _state(learner: Learner) -> dict[str, Tensor]:
    state = dict(learner.objective.state_dict())
    for number, moments in learner.optimizer.state_dict()["state"].items():
        state |= {f"moments.{number}.{name}": value for name, value in moments.items() if isinstance(value, Tensor)}
    return state


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


@contextlib.contextmanager
def traced_only() -> Any:
    """torch.compile takes its graphs and runs them as they are: the rest takes a CPU minutes."""
    real = torch.compile

    def as_traced(*args: Any, mode: str | None = None, **more: Any) -> Any:
        return real(*args, **{**more, "backend": "aot_eager"})

    torch.compile = as_traced  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real
