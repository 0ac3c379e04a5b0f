"""What learns, in plain torch: the objective, its optimizer, and one global step of both.

On a GPU a step is one stream of work that the host does not wait for. The thread that puts batches together copies the
next one from pinned memory and makes its views on a stream of its own while the present step runs (`ready`); `launch`
hands the step to the device and comes back; what it gave is read when the next one has been handed over
(`Outcome.read`). So whether a step counts is decided on the device: a loss or gradient that is not finite turns the
update off (`found_inf` of fused optimizers), and what had changed before is put back by a mask (`rollback.py`).

On a CPU views are made when they are needed and each step is read at once, by the same code. `train.overlap` sets
which of the two. Contract: both give the same numbers; a refused step leaves weights, moments, statistics, teachers
and queues as they were.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from beatray.models.encoder import Encoder
from beatray.objectives.ema import Queue
from beatray.objectives.objective import Objective, Progress
from beatray.train.blocks import Arrays
from beatray.train.optimizer import build_optimizer, learning_rate, set_schedule, weight_decay
from beatray.train.order import MicroBatch, steps_per_epoch
from beatray.train.precision import agreed
from beatray.train.prefetcher import Prefetcher
from beatray.train.ranks import Ranks
from beatray.train.rollback import Rollback
from beatray.train.run_spec import RunSpec, build_model, to_tensors, views_of

Views = dict[str, Tensor]
Logs = dict[str, float]
B = TypeVar("B")

COMPILED_ENTRIES = ("forward_stages", "tokens", "encode", "forward_leads")
"""By which an objective enters its network; Module.compile would leave them alone."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The views of a step's micro-batches, each made when it is asked for, or all of them ahead on another stream."""

    views: Iterable[Views]
    made: torch.cuda.Event | None = None

    def taken(self) -> Iterator[Views]:
        """The views, for the present stream."""
        if self.made is not None:
            present = torch.cuda.current_stream()
            present.wait_event(self.made)
            for views in self.views:
                for value in views.values():
                    value.record_stream(present)  # its memory may be used again once this stream is through with it
        yield from self.views


class Outcome:
    """What a step gave, on its way from the device."""

    def __init__(self, names: Sequence[str], values: Tensor | None) -> None:
        self._names, self._values, self._there = names, values, None
        self._began = time.perf_counter()
        if values is not None and values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> tuple[Logs | None, float]:
        """Means and counts over the global batch, None of a refused step, and the norm of the gradient. Waits."""
        if self._there is not None:
            self._there.synchronize()
        if self._values is None:
            return None, math.nan
        accepted, norm, *values = self._values.tolist()
        return dict(zip(self._names, values, strict=True)) if accepted else None, norm


class Learner:
    """An objective on its device, wrapped for the ranks there are, with its optimizer."""

    def __init__(self, run_spec: RunSpec, ranks: Ranks) -> None:
        settings = run_spec.settings
        self._run_spec, self._ranks = run_spec, ranks
        self.precision = agreed(settings.train.precision, ranks)
        self.overlaps = settings.train.overlap == "always" or (
            settings.train.overlap == "auto" and ranks.device.type == "cuda"
        )
        self.objective: Objective = build_model(
            settings.objective, settings.encoder, settings.seed, run_spec.statistics, settings.first_weights
        )
        self.objective.to(ranks.device)
        if self.precision == "fp64":
            self.objective.double()
        # where a shape follows from what recordings hold, the device is waited for, and a graph taken anew
        self.objective.static_shapes = ranks.device.type == "cuda" or settings.train.compile in ("step", "graphs")
        self.optimizer = build_optimizer(self.objective, settings.train, masked=self.overlaps)
        self._side = torch.cuda.Stream(ranks.device) if self.overlaps and ranks.device.type == "cuda" else None
        self._trained = [weight for weight in self.objective.parameters() if weight.requires_grad]
        self._rollback = Rollback(self._changing())
        self._queues = [module for module in self.objective.modules() if isinstance(module, Queue)]
        self._rate = settings.train.learning_rate
        _compile(self.objective, settings.train.compile)
        self._model: nn.Module = self.objective
        if ranks.world > 1:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._model = DistributedDataParallel(self.objective, device_ids=ids, broadcast_buffers=False)

    @property
    def learning_rate(self) -> float:
        """That of the newest step, before a group scales or bounds it."""
        return self._rate

    def progress(self, number: int, epoch: int) -> Progress:
        """Where the run is at global step `number`."""
        return Progress(number, self._run_spec.steps, epoch, self._run_spec.settings.train.epochs)

    def ready(self, arrays: Arrays, epoch: int, rows: Sequence[int]) -> Ready:
        """A step's arrays, cut into micro-batches of so many of its rows, on their way to the device.

        May be called from another thread, a step ahead.
        """
        views = self._views_of(arrays, epoch, rows)
        if not self.overlaps:
            return Ready(views)
        if self._side is None:
            return Ready(list(views))
        with torch.cuda.device(self._ranks.device), torch.cuda.stream(self._side):
            made = list(views)
            event = torch.cuda.Event()
            event.record()
        return Ready(made, event)

    def launch(self, number: int, epoch: int, ready: Ready, parts: tuple[MicroBatch, ...]) -> Outcome:
        """Forward, backward and the optimizer for global step `number`, in micro-batches of `parts`.

        Nothing is learned where no rows are left, or where the loss or the gradient of some rank is not finite: then
        weights, optimizer, statistics, teachers and queues are what they were. The outcome records it.
        """
        settings = self._run_spec.settings
        at, per_epoch = self.progress(number, epoch), steps_per_epoch(self._run_spec.rows, settings.train.batch_size)
        self._rate = learning_rate(number, self._run_spec.steps, per_epoch, settings.train)
        set_schedule(self.optimizer, self._rate, weight_decay(number, self._run_spec.steps, settings.train))
        if not any(part.global_rows for part in parts):
            return Outcome((), None)
        torch.manual_seed(hash((settings.seed, number, self._ranks.rank)) & 0x7FFFFFFF)
        self._rollback.keep()
        sums, finite = self._accumulate(ready, at, parts)
        norm = nn.utils.clip_grad_norm_(self._trained, settings.train.max_grad_norm)
        accepted = finite & torch.isfinite(norm)  # gradients are averaged over ranks, so all ranks decide alike
        if self.overlaps:
            # fused optimizers look at it on the device: neither weights nor moments see a refused step
            self.optimizer.found_inf = (~accepted).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            self.objective.after_step(at)
            self._rollback.put_back(~accepted)
        elif bool(accepted):
            self.optimizer.step()
            self.objective.after_step(at)
        else:
            self._rollback.put_back(~accepted)
            for queue in self._queues:
                queue.drop()
        norm = torch.where(finite, norm, torch.nan)
        values = [accepted, norm, *sums.values()]
        return Outcome(tuple(sums), torch.stack([value.double() for value in values]))

    def step(self, number: int, arrays: Arrays, epoch: int, parts: tuple[MicroBatch, ...]) -> tuple[Logs | None, float]:
        """One global step from its arrays, read at once: see `launch` and `Outcome.read`."""
        ready = self.ready(arrays, epoch, [part.rows for part in parts])
        return self.launch(number, epoch, ready, parts).read()

    def views(self, arrays: Arrays, epoch: int, *, make: bool) -> Views:
        """What the objective is called with: its views of the arrays, or the arrays if views were made on workers."""
        views = to_tensors(arrays, self._ranks.device)
        if make:
            settings = self._run_spec.settings
            views = views_of(self.objective, views, settings.seed, epoch, settings.train.lead_dropout)
        if self.precision == "fp64":
            views = {name: value.double() if value.is_floating_point() else value for name, value in views.items()}
        return views

    def _views_of(self, arrays: Arrays, epoch: int, rows: Sequence[int]) -> Iterator[Views]:
        make, first = self._run_spec.settings.train.augment_on == "device", 0
        for count in rows:
            part = {name: values[first : first + count] for name, values in arrays.items()}
            first += count
            yield self.views(part, epoch, make=make)

    def _accumulate(
        self, ready: Ready, at: Progress, parts: tuple[MicroBatch, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward over the micro-batches: float64 means and counts, and whether all losses are finite."""
        settings, model, kind = self._run_spec.settings, self._model, self._ranks.device.type
        half = self.precision == "bf16"
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        finite: list[Tensor] = []
        total = sum(part.global_rows for part in parts)
        counted = self.objective.mean_over if sum(part.global_rows > 0 for part in parts) > 1 else None
        if settings.train.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        for number, (part, views) in enumerate(zip(parts, ready.taken(), strict=True)):
            if not part.global_rows:
                continue  # a last batch shorter than its micro-batches, on every rank
            last = not any(later.global_rows for later in parts[number + 1 :])
            hold = not last and isinstance(model, DistributedDataParallel)
            with model.no_sync() if hold else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(kind, torch.bfloat16, enabled=half):
                    result = model(views, at)
                finite.append(torch.isfinite(result.loss.detach()))
                # what its mean is over: rows, or what the objective counts
                items = part.global_rows if counted is None else result.counts[counted].double()
                (result.loss * (items / settings.train.batch_size)).backward()
            for name, value in result.means.items():
                means[name] = means.get(name, 0.0) + value.double() * items / total
            for name, value in result.counts.items():
                counts[name] = counts.get(name, 0.0) + value.double()
        if counted is not None:  # their sum is known after the last one
            rows_per_item = total / counts[counted].clamp_min(1.0)
            means = {name: value * rows_per_item for name, value in means.items()}
            for weight in self._trained:
                if weight.grad is not None:
                    weight.grad.mul_(rows_per_item)
        sums = means | counts
        everywhere = torch.stack(finite).all()
        if self._ranks.world > 1:
            shared = everywhere.to(torch.uint8)
            dist.all_reduce(shared, dist.ReduceOp.MIN)
            everywhere = shared.bool()
        return sums, everywhere

    def _changing(self) -> list[Tensor]:
        """What a refused step has changed and must give back.

        Read at once, that is what a forward pass changes; queues are written after a step only. On a device that
        the host does not wait for, `after_step` has run as well, and may have changed anything.
        """
        after = self.overlaps and type(self.objective).after_step is not Objective.after_step
        buffers = [
            buffer
            for module in self.objective.modules()
            if after or not getattr(module, "written_after_step", False)
            for buffer in module.buffers(recurse=False)
        ]
        return [*buffers, *(self.objective.parameters() if after else ())]


def ahead(
    learner: Learner, source: Generator[B], cut: Callable[[B], tuple[Arrays, int, Sequence[int]]]
) -> Generator[tuple[B, Ready]]:
    """Each batch of `source` with its views, which are made a step ahead in a thread where steps overlap.

    `cut` names what `Learner.ready` is given of a batch: arrays, epoch, rows of each micro-batch.
    """

    def made() -> Generator[tuple[B, Ready]]:
        with contextlib.closing(source):
            for batch in source:
                yield batch, learner.ready(*cut(batch))

    if not learner.overlaps:
        yield from made()
        return
    with contextlib.closing(Prefetcher(made(), 1, "views")) as fetched:
        yield from fetched


def _compile(objective: Objective, what: str) -> None:
    """Compile the network, or the whole of forward and backward, also as CUDA graphs. What was compiled is kept."""
    if what == "none":
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "beatray" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))  # a folder of the user's outlives /tmp and restarts
    if what == "encoder":
        encoder: Encoder = objective.encoder
        for entry in COMPILED_ENTRIES:
            if hasattr(encoder, entry):
                setattr(encoder, entry, torch.compile(getattr(encoder, entry)))
    else:
        objective.compile(mode="reduce-overhead" if what == "graphs" else None)
