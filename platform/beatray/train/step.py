"""What learns, in plain torch: the objective, its optimizer, and one global step of both."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from beatray.augment.draws import Draws
from beatray.objectives.ema import Queue
from beatray.objectives.objective import Objective, Progress
from beatray.train.blocks import Arrays
from beatray.train.optimizer import build_optimizer, learning_rate, set_schedule, weight_decay
from beatray.train.order import MicroBatch, steps_per_epoch
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec, build_model, to_tensors


class Learner:
    """An objective on its device, wrapped for the ranks there are, with its optimizer."""

    def __init__(self, run_spec: RunSpec, ranks: Ranks) -> None:
        settings = run_spec.settings
        self._run_spec, self._ranks = run_spec, ranks
        self.objective: Objective = build_model(
            settings.objective, settings.encoder, settings.seed, run_spec.statistics
        )
        self.objective.to(ranks.device)
        if settings.train.precision == "fp64":
            self.objective.double()
        self.optimizer = build_optimizer(self.objective, settings.train)
        if settings.train.compile:
            encoder = self.objective.encoder  # it is entered by these methods, which Module.compile leaves alone
            for entry in ("forward_stages", "tokens", "encode", "forward_leads"):
                if hasattr(encoder, entry):
                    setattr(encoder, entry, torch.compile(getattr(encoder, entry)))
        # what a forward pass may change, and a refused step must give back; queues are written after a step only
        self._statistics = [
            buffer
            for module in self.objective.modules()
            if not getattr(module, "written_after_step", False)
            for buffer in module.buffers(recurse=False)
        ]
        self._rate = settings.train.learning_rate
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

    def step(
        self, number: int, arrays: Arrays, epoch: int, parts: tuple[MicroBatch, ...]
    ) -> tuple[dict[str, float] | None, float]:
        """Forward, backward and the optimizer for global step `number`, in micro-batches of `parts`.

        Returns means and counts over the global batch, `loss` among them, and the norm of the gradient. They are None
        where nothing was learned: no rows are left, or the loss or the gradient of some rank is not finite; then
        weights, optimizer, statistics, teachers and queues are what they were.
        """
        settings = self._run_spec.settings
        at, per_epoch = self.progress(number, epoch), steps_per_epoch(self._run_spec.rows, settings.train.batch_size)
        rate = learning_rate(number, self._run_spec.steps, per_epoch, settings.train)
        self._rate = rate
        set_schedule(self.optimizer, rate, weight_decay(number, self._run_spec.steps, settings.train))
        if not any(part.global_rows for part in parts):
            return None, math.nan
        torch.manual_seed(hash((settings.seed, number, self._ranks.rank)) & 0x7FFFFFFF)
        before = [buffer.clone() for buffer in self._statistics]
        logs, norm = self._accumulate(arrays, at, parts), math.nan
        if logs is not None:
            norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), settings.train.max_grad_norm))
        if math.isfinite(norm):  # gradients are averaged over ranks, so all ranks decide alike
            self.optimizer.step()
            self.objective.after_step(at)
            return logs, norm
        for buffer, value in zip(self._statistics, before, strict=True):
            buffer.copy_(value)  # running statistics have already seen the refused batch
        for module in self.objective.modules():
            if isinstance(module, Queue):
                module.drop()
        return None, norm

    def views(self, arrays: Arrays, epoch: int, *, make: bool) -> dict[str, Tensor]:
        """What the objective is called with: its views of the arrays, or the arrays if views were made on workers."""
        views = to_tensors(arrays, self._ranks.device)
        if make:
            views = self.objective.views(views, Draws.of(views, self._run_spec.settings.seed, epoch))
        if self._run_spec.settings.train.precision == "fp64":
            views = {name: value.double() if value.is_floating_point() else value for name, value in views.items()}
        return views

    def _accumulate(self, arrays: Arrays, at: Progress, parts: tuple[MicroBatch, ...]) -> dict[str, float] | None:
        """Forward and backward over the micro-batches; None, and no gradient to be used, if a loss is not finite."""
        settings, model, kind = self._run_spec.settings, self._model, self._ranks.device.type
        half = settings.train.precision == "bf16"
        self.optimizer.zero_grad(set_to_none=True)
        logs: dict[str, float] = {}
        first, total = 0, sum(part.global_rows for part in parts)
        for number, part in enumerate(parts):
            if not part.global_rows:
                continue  # a last batch shorter than its micro-batches, on every rank
            rows = {name: values[first : first + part.rows] for name, values in arrays.items()}
            first += part.rows
            views = self.views(rows, at.epoch, make=settings.train.augment_on == "device")
            last = not any(later.global_rows for later in parts[number + 1 :])
            hold = not last and isinstance(model, DistributedDataParallel)
            with model.no_sync() if hold else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(kind, torch.bfloat16, enabled=half):
                    result = model(views, at)
                if not self._ranks.all_true(bool(torch.isfinite(result.loss))):
                    return None
                (result.loss * (part.global_rows / settings.train.batch_size)).backward()
            for name, value in result.means.items():
                logs[name] = logs.get(name, 0.0) + float(value) * part.global_rows / total
            for name, value in result.counts.items():
                logs[name] = logs.get(name, 0.0) + float(value)
        return logs
