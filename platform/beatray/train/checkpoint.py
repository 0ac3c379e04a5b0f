"""Checkpoints: hashed folders (`hashed_folder.py`) of safetensors and JSON; no pickle anywhere.

`checkpoints/step-00000120/` holds model.safetensors (the whole objective: encoder, heads, queues),
optimiser.safetensors, state.json (position in the corpus, schedule, settings, recipe) and files.json with the SHA-256
of the others. `latest` takes the newest one whose hashes all match and warns about those it passes over: safetensors
itself loads a flipped bit silently. The newest few are kept, and the best by validation (`best.json` names it).
The exported encoder is a folder of the same kind without the optimiser: models/encoder_folder.py.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from beatray.errors import CheckpointError
from beatray.storage.hashed_folder import FILES, read_folder, write_folder
from beatray.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{8,})")
FOLDER = "checkpoints"
BEST = "best.json"
IMPLEMENTATION = ("fused", "foreach", "capturable")
"""Of an optimiser: how it computes on this device, not what; a run may move between CPU and GPU."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One whole checkpoint, in memory."""

    name: str
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]


def name_of(global_step: int) -> str:
    """Folder name of the checkpoint after `global_step` steps."""
    return f"step-{global_step:08d}"


def snapshot(name: str, state: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer) -> Checkpoint:
    """What a checkpoint will hold, copied, so that training may go on while it is written.

    CheckpointError if a weight is not finite.
    """
    for weight, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} would hold values that are not finite in {weight}; it is not written")
    groups, tensors = _optimiser_out(optimiser)
    return Checkpoint(name, {**state, "optimiser_groups": groups}, _plain(model.state_dict()), tensors)


def save(run: Store, checkpoint: Checkpoint) -> None:
    """Write one checkpoint of the run; it appears whole or not at all. OSError when the disk or store refuses."""
    files = {
        "model.safetensors": save_tensors(checkpoint.model),
        "optimiser.safetensors": save_tensors(checkpoint.optimiser),
        "state.json": json.dumps(checkpoint.state, sort_keys=True).encode(),
    }
    write_folder(run.child(FOLDER), checkpoint.name, files)


def names(run: Store) -> list[str]:
    """The run's checkpoints, oldest first, whole or not."""
    return sorted((n for n in run.child(FOLDER).folders() if NAME.fullmatch(n)), key=_step)


def latest(run: Store) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None if there is none. Damaged ones are passed over with a warning.

    A folder whose writing never ended does not count. CheckpointError if there are checkpoints but all are damaged.
    """
    damaged = []
    for name in reversed(finished(run)):
        try:
            return load(run, name)
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
            damaged.append(name)
    if damaged:
        raise CheckpointError(
            f"all checkpoints of {run.where(FOLDER)} are damaged ({', '.join(damaged)}). Restore one from a copy, or "
            "remove that folder to start the run anew."
        )
    return None


def finished(run: Store) -> list[str]:
    """The run's checkpoints whose writing ended, oldest first, damaged or not."""
    folder = run.child(FOLDER)
    return [name for name in names(run) if folder.child(name).size(FILES) is not None]


def newest_step(run: Store) -> int:
    """Global steps of the newest finished checkpoint; 0 if there is none."""
    found = finished(run)
    return _step(found[-1]) if found else 0


def load(run: Store, name: str) -> Checkpoint:
    """One checkpoint, every hash checked."""
    files = read_folder(run.child(FOLDER).child(name))
    try:
        return Checkpoint(
            name,
            json.loads(files["state.json"]),
            load_tensors(files["model.safetensors"]),
            load_tensors(files["optimiser.safetensors"]),
        )
    except KeyError as error:
        raise CheckpointError(f"{run.where(f'{FOLDER}/{name}')} lacks {error}") from error


def restore(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put the weights and the optimiser's moments back; CheckpointError when they were made for another model."""
    try:
        model.load_state_dict(checkpoint.model, strict=True)
        groups = [
            {**now, **saved, "params": saved["params"], **{key: now[key] for key in IMPLEMENTATION if key in now}}
            for saved, now in zip(checkpoint.state["optimiser_groups"], optimiser.param_groups, strict=True)
        ]
        optimiser.load_state_dict(_optimiser_in(groups, checkpoint.optimiser))
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.name} does not fit this model: {error}") from error


def best(run: Store) -> tuple[str, float] | None:
    """Name and validation loss of the best checkpoint so far; None before the first validation."""
    try:
        content = json.loads(run.child(FOLDER).read(BEST))
        return str(content["name"]), float(content["validation_loss"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        log.warning("%s is damaged (%s); the next validation decides anew", run.where(f"{FOLDER}/{BEST}"), error)
        return None


def mark_best(run: Store, name: str, validation_loss: float) -> None:
    """Remember the best checkpoint; it is kept until a better one comes."""
    run.child(FOLDER).write(BEST, json.dumps({"name": name, "validation_loss": validation_loss}).encode())


def keep_newest(run: Store, count: int, newest: str) -> None:
    """Delete all checkpoints but `newest`, which is whole, the `count - 1` before it and the best one.

    What is numbered above the newest was passed over as damaged when the run continued below it; a folder whose writing
    never ended is no checkpoint.
    """
    whole = finished(run)
    before = [name for name in whole if _step(name) < _step(newest)]
    chosen = best(run)
    kept = {newest, *(before[-(count - 1) :] if count > 1 else []), *([chosen[0]] if chosen else [])}
    for name in names(run):
        if name not in kept:
            run.child(FOLDER).delete_folder(name)


def _step(name: str) -> int:
    return int(name.split("-")[1])


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _optimiser_out(optimiser: torch.optim.Optimizer) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    content = optimiser.state_dict()
    tensors = {
        f"{number}.{key}": torch.as_tensor(value).detach().cpu().clone().contiguous()
        for number, moments in content["state"].items()
        for key, value in moments.items()
    }
    return content["param_groups"], tensors


def _optimiser_in(groups: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for label, tensor in tensors.items():
        number, _, key = label.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    return {"state": state, "param_groups": groups}
