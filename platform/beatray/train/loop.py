"""The training loop, in plain torch: resume, step, clip, refuse, log, checkpoint. It knows no method by name.

One call trains one rank; Ray Train (`launch.py`) or a test starts as many as there are. Contract: a step's data, views
and learning rate are functions of its number and the settings, so a resumed run continues exactly; the loss is that of
the global batch; a last short batch of an epoch weighs by its rows, so that every recording counts the same. A
non-finite loss is refused before the optimiser by all ranks together.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beatray.corpus.manifest import CorpusError
from beatray.corpus.reader import read_row_group
from beatray.settings import as_dict
from beatray.track.journal import Journal
from beatray.train import checkpoint as checkpoints
from beatray.train.errors import TrainingError
from beatray.train.job import Job, ViewsOnWorker, build_model, check_same_run, to_tensors
from beatray.train.order import steps_per_epoch
from beatray.train.ranks import Ranks
from beatray.train.stream import Batch, batches
from beatray.views.draws import record_key

REFUSED = "refused_steps.jsonl"
"""In the run folder: the recordings of every step that was refused."""

COUNTS = ("rows", "skipped", "beats")
"""Logs that are counts: summed over micro-batches, where the others are averaged."""


def train(job: Job, ranks: Ranks, on_checkpoint: Callable[[dict[str, Any]], None] = lambda metrics: None) -> None:
    """Train this rank to the end of the run, from its newest checkpoint if there is one."""
    settings = job.settings.train
    torch.set_num_threads(settings.threads_per_worker)
    objective = build_model(job.settings.objective, job.settings.encoder, job.settings.seed, job.statistics)
    objective.to(ranks.device)
    optimiser = _optimiser(objective, job)
    done = _resume(job, ranks, objective, optimiser)
    per_epoch = steps_per_epoch(job.rows, settings.batch_size)
    last = job.steps if settings.stop_after_steps is None else min(job.steps, settings.stop_after_steps)
    if settings.compile:
        objective.encoder.trunk.compile()  # the encoder itself is entered by its methods, which compile() leaves alone
    model = _parallel(objective, ranks)
    metrics, ids = (Journal(job.run.folder / name) for name in ("metrics.jsonl", "ids.jsonl"))
    if ranks.is_first:
        metrics.reopen(done)
        if settings.log_ids:
            ids.reopen(done)
    names = _names_of_keys(job) if settings.log_ids and ranks.is_first else {}
    strikes = 0
    seen_in_epoch = 0.0 if done % per_epoch == 0 else None
    feed = _feed(job, ranks, divmod(done, per_epoch), last - done)
    for number, (batch, waited) in enumerate(feed, start=done):
        started = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(number, job.steps, per_epoch, job)
        torch.manual_seed(hash((job.settings.seed, number, ranks.rank)) & 0x7FFFFFFF)
        before = [buffer.clone() for buffer in objective.buffers()]
        logs = _accumulate(job, model, objective, optimiser, batch, ranks)
        norm = math.nan
        if logs is not None:
            norm = float(nn.utils.clip_grad_norm_(objective.parameters(), settings.clip_norm))
        if math.isfinite(norm):  # gradients are averaged over ranks, so all ranks decide alike
            optimiser.step()
            objective.after_step()
            strikes = 0
        else:
            for buffer, value in zip(objective.buffers(), before, strict=True):
                buffer.copy_(value)  # running statistics have already seen the refused batch
            logs = None
            strikes += 1
            _refuse(job, ranks, batch, number, strikes)
        if seen_in_epoch is not None:
            seen_in_epoch += ranks.total(len(batch.arrays["record_key"]))
        if settings.log_ids:
            _log_ids(ids, names, ranks, number, batch)
        if ranks.is_first and (number % settings.log_every_steps == 0 or number == last - 1):
            seconds = time.perf_counter() - started
            metrics.write(
                {
                    "step": number,
                    "epoch": batch.epoch,
                    "loss": None,  # of a refused step
                    "learning_rate": optimiser.param_groups[0]["lr"],
                    "gradient_norm": _finite_or_none(norm),
                    "records_per_s": batch.global_rows / (seconds + waited),
                    "data_wait_s": waited,
                    "step_s": seconds,
                    **{name: _finite_or_none(value) for name, value in (logs or {}).items()},
                }
            )
        if (number + 1) % per_epoch == 0:
            if seen_in_epoch is not None and round(seen_in_epoch) != job.rows:
                raise CorpusError(
                    f"epoch {batch.epoch} saw {seen_in_epoch:.0f} rows; the manifest has {job.rows} for training"
                )
            seen_in_epoch = 0.0
        if (number + 1) % settings.checkpoint_every_steps == 0 or number == last - 1:
            if ranks.is_first:
                _save(job, number + 1, per_epoch, objective, optimiser)
            on_checkpoint({"step": number + 1, "epoch": batch.epoch, "loss": (logs or {}).get("loss")})
    if ranks.is_first:
        metrics.close()
        ids.close()
        if last == job.steps:
            checkpoints.export_encoder(job.run, objective.encoder, _description(job), job.trained_on)


def learning_rate(step: int, total: int, per_epoch: int, job: Job) -> float:
    """Linear warm-up, then a half cosine to zero (Loshchilov and Hutter 2017), per step."""
    settings = job.settings.train
    warmup = min(settings.warmup_epochs * per_epoch, total / 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / max(warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _optimiser(objective: nn.Module, job: Job) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases and norms (1-d parameters)."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": job.settings.train.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    on_gpu = next(iter(trained)).is_cuda
    return torch.optim.AdamW(groups, lr=job.settings.train.learning_rate, fused=on_gpu)


def _parallel(objective: Any, ranks: Ranks) -> nn.Module:
    model: nn.Module = objective
    if ranks.world == 1:
        return model
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _resume(job: Job, ranks: Ranks, objective: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load the newest whole checkpoint, the same on all ranks; returns the number of global steps done."""
    chosen = checkpoints.latest(job.run) if ranks.is_first else None
    name = ranks.from_first(chosen.name if chosen else None)
    if name is None:
        return 0
    found = chosen or checkpoints.load(job.run, name)
    check_same_run(job, found.state)
    checkpoints.restore(found, objective, optimiser)
    return int(found.state["global_step"])


def _save(job: Job, done: int, per_epoch: int, objective: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    epoch, step = divmod(done, per_epoch)
    state = {
        "global_step": done,
        "epoch": epoch,
        "step": step,
        "settings": as_dict(job.settings),
        "recipe": job.recipe,
        "manifest_hash": job.manifest_hash,
    }
    checkpoints.save(job.run, checkpoints.name_of(done), state, objective, optimiser)
    checkpoints.keep_newest(job.run, job.settings.train.keep_checkpoints)


def _description(job: Job) -> dict[str, Any]:
    encoder = {**job.settings.encoder}
    return {
        "name": encoder.pop("name"),
        "settings": encoder,
        "recipe": job.recipe,
        "objective": job.settings.objective,
        "manifest_hash": job.manifest_hash,
        "corpus_settings": as_dict(job.settings)["corpus"],
        "steps": job.steps,
        "seed": job.settings.seed,
    }


def _feed(job: Job, ranks: Ranks, start: tuple[int, int], n_steps: int) -> Iterator[tuple[Batch, float]]:
    """Batches with the seconds waited for each."""
    if n_steps <= 0:
        return
    make_views = None
    if job.settings.views.place == "workers":
        objective, statistics = json.dumps(job.settings.objective), json.dumps(job.statistics)
        make_views = ViewsOnWorker(objective, statistics, job.settings.seed)
    source = batches(job.stream, ranks.rank, ranks.world, start, n_steps, make_views)
    while True:
        began = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began


def _accumulate(
    job: Job,
    model: nn.Module,
    objective: Any,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    ranks: Ranks,
) -> dict[str, float] | None:
    """Forward and backward over the micro-batches; returns the logs, `loss` among them, of the global batch.

    None, and no gradient to be used, if the loss of any rank is not finite.
    """
    settings = job.settings
    optimiser.zero_grad(set_to_none=True)
    logs: dict[str, float] = {}
    first = 0
    for number, part in enumerate(batch.parts):
        if not part.global_rows:
            continue  # a last batch shorter than its micro-batches, on every rank
        rows = {name: values[first : first + part.rows] for name, values in batch.arrays.items()}
        first += part.rows
        tensors = to_tensors(rows, ranks.device)
        views = tensors if settings.views.place == "workers" else objective.views(tensors, settings.seed, batch.epoch)
        last = number == len(batch.parts) - 1 or not batch.parts[number + 1].global_rows
        hold = not last and isinstance(model, DistributedDataParallel)
        with model.no_sync() if hold else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=settings.train.precision == "bf16"):
                loss, part_logs = model(views)
            if not ranks.all_true(bool(torch.isfinite(loss))):
                return None
            (loss * (part.global_rows / settings.train.batch_size)).backward()
        for name, value in part_logs.items():
            counted = 1.0 if name.endswith(COUNTS) else part.global_rows / batch.global_rows
            logs[name] = logs.get(name, 0.0) + float(value) * counted
    return logs


def _refuse(job: Job, ranks: Ranks, batch: Batch, number: int, strikes: int) -> None:
    """Write down which recordings gave a non-finite loss or gradient; stop after too many in a row."""
    keys = [key for part in ranks.gather(batch.arrays["record_key"].tolist()) for key in part]
    if ranks.is_first:
        names = _names_of_keys(job)
        with (job.run.folder / REFUSED).open("a") as file:
            file.write(json.dumps({"step": number, "record_ids": [names[key] for key in keys]}) + "\n")
    if strikes >= job.settings.train.max_nonfinite:
        raise TrainingError(
            f"the loss or its gradient was not finite {strikes} times in a row (last at step {number}). The newest "
            f"checkpoint is whole; lower train.learning_rate or look at the recordings listed in {REFUSED}."
        )


def _log_ids(ids: Journal, names: dict[int, str], ranks: Ranks, number: int, batch: Batch) -> None:
    gathered = ranks.gather(batch.arrays["record_key"].tolist())
    if ranks.is_first:
        seen = [names[key] for part in gathered for key in part]
        ids.write({"step": number, "epoch": batch.epoch, "step_in_epoch": batch.step, "record_ids": seen})


def _names_of_keys(job: Job) -> dict[int, str]:
    names: dict[int, str] = {}
    for group in job.stream.groups:
        table = read_row_group(job.stream.store, group.shard, group.group, ["record_id"])
        names |= {record_key(name): name for name in table["record_id"].to_pylist()}
    return names


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
