"""The loop that most code has: Dataset, DataLoader, a Conv1d network as torch lays it out, AdamW, loss.item().

It is given what it can be given: recordings decoded beforehand (a memory map of int16, nothing to decompress or to
check), views by the very code of the method, made by the DataLoader's worker processes when they put a batch together,
pinned memory on a GPU, the same network and objective from the same weights, batch size, precision and threads. Its
network is not compiled and keeps maps (N, C, T) contiguous, its optimizer is torch's default, and it reads its loss
after every step. Batches are not cut into micro-batches.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from beatray.bench.processes import cpu_seconds
from beatray.bench.timing import LEAST, WARM_UP, Timing, peak_memory
from beatray.models.layout import channels_first
from beatray.objectives.objective import Progress
from beatray.train.blocks import Arrays
from beatray.train.run_spec import RunSpec, ViewsOnWorker, build_model

SIGNAL = "signal_uv"
ENDLESS = 10**7


class Recordings(Dataset[Arrays]):
    """One recording at a time: its signal from a memory map, the small arrays from memory."""

    def __init__(self, folder: Path, arrays: Arrays) -> None:
        path = folder / "signals.npy"
        np.save(path, arrays[SIGNAL])
        self._signals = np.load(path, mmap_mode="r")
        self._arrays = {name: values for name, values in arrays.items() if name != SIGNAL}

    def __len__(self) -> int:
        return len(self._signals)

    def __getitem__(self, row: int) -> Arrays:
        return {SIGNAL: self._signals[row], **{name: values[row] for name, values in self._arrays.items()}}


class Collate:
    """Recordings of a batch put together, and views made of them."""

    def __init__(self, make_views: ViewsOnWorker) -> None:
        self._make_views = make_views

    def __call__(self, rows: Sequence[Arrays]) -> dict[str, Tensor]:
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: torch.from_numpy(values) for name, values in self._make_views(arrays, 0).items()}


class PlainLoop:
    """A model, its optimizer and its data on a device; `time` trains on for a while."""

    def __init__(self, run_spec: RunSpec, device: torch.device, folder: Path, arrays: Arrays, workers: int) -> None:
        settings = run_spec.settings
        self._run_spec, self._device = run_spec, device
        self.objective = build_model(settings.objective, settings.encoder, settings.seed, run_spec.statistics)
        self.objective.to(device)
        if settings.train.precision == "fp64":
            self.objective.double()
        self._weights = [weight for weight in self.objective.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, settings.train.learning_rate)
        data, batch = Recordings(folder, arrays), settings.train.batch_size
        collate = Collate(ViewsOnWorker.of(run_spec))
        views = collate([data[row % len(data)] for row in range(batch)])
        self.workers = min(workers, _room_for(sum(value.nbytes for value in views.values())))
        self._loader: DataLoader[Arrays] = DataLoader(
            data,
            batch,
            sampler=RandomSampler(data, num_samples=ENDLESS // batch * batch),
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
        )

    def time(self, seconds: float, warm_up: int = WARM_UP) -> Timing:
        """Steps for so many seconds, starting the workers and warming up included; at least a few."""
        timing, ends, source = Timing(), time.perf_counter() + seconds, iter(self._loader)
        with channels_first(), peak_memory(self._device) as memory:
            used = before = 0.0
            for number in itertools.count():
                if number == warm_up:
                    used, before = cpu_seconds(), time.perf_counter()
                asked = time.perf_counter()
                views = next(source)
                waited = time.perf_counter() - asked
                timing.refused += not np.isfinite(self._step(views))
                now = time.perf_counter()
                if number >= warm_up:
                    timing.count(self._run_spec.settings.train.batch_size, now - before, waited)
                    before = now
                if now >= ends and len(timing.step_s) >= LEAST:
                    timing.cpu_s = cpu_seconds() - used
                    break
        del source  # ends the workers
        timing.memory_mib = memory[0]
        return timing

    def _step(self, views: dict[str, Tensor]) -> float:
        train, kind = self._run_spec.settings.train, self._device.type
        views = {name: value.to(self._device, non_blocking=True) for name, value in views.items()}
        if train.precision == "fp64":
            views = {name: value.double() if value.is_floating_point() else value for name, value in views.items()}
        self._optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=train.precision == "bf16"):
            loss: Tensor = self.objective(views, Progress()).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, train.max_grad_norm)
        self._optimizer.step()
        self.objective.after_step(Progress())
        return loss.item()


def _room_for(batch_bytes: int) -> int:
    """Workers whose finished batches have room in shared memory: two of each, and the one that is being trained on.

    A container may have 64 MB of it, and a worker that needs more is killed by the system.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return os.cpu_count() or 1  # shared memory lies elsewhere on this system
    return max(int(free // batch_bytes) - 1, 0) // 2
