"""Checkpoints: a folder of safetensors and JSON, written aside and renamed, every file hashed; no pickle anywhere.

`checkpoints/step-00000120/` holds model.safetensors (the whole objective: encoder, heads, queues),
optimiser.safetensors, state.json (position in the corpus, schedule, settings, recipe) and files.json with the SHA-256
of the others. `latest` takes the newest one whose hashes all match and warns about those it passes over: safetensors
itself loads a flipped bit without a word. The exported encoder is a folder of the same kind without the optimiser.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from beatray.corpus.store import TEMPORARY_PREFIX, Store, sync_folder
from beatray.models.registry import build_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{8,})")
FOLDER = "checkpoints"
ENCODER_FOLDER = "encoder"
FILES = "files.json"


class CheckpointError(ValueError):
    """A checkpoint or exported encoder that is not there, damaged or made for something else."""


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


def save(run: Store, name: str, state: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Write one checkpoint of the run; it appears whole or not at all. CheckpointError if a weight is not finite."""
    for weight, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} would hold values that are not finite in {weight}; it is not written")
    groups, tensors = _optimiser_out(optimiser)
    files = {
        "model.safetensors": save_tensors(_plain(model.state_dict())),
        "optimiser.safetensors": save_tensors(tensors),
        "state.json": json.dumps({**state, "optimiser_groups": groups}, sort_keys=True).encode(),
    }
    write_folder(run.child(FOLDER), name, files)


def write_folder(parent: Store, name: str, files: Mapping[str, bytes]) -> None:
    """Write a hashed folder `name` in one step: aside and renamed locally; with files.json last elsewhere."""
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    listing = json.dumps(hashes, indent=1, sort_keys=True).encode()
    if not parent.is_local:
        place = parent.child(name)
        for file, data in files.items():
            place.write(file, data)
        place.write(FILES, listing)
        return
    parent.folder.mkdir(parents=True, exist_ok=True)
    aside = parent.folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        aside.mkdir()
        for file, data in {**files, FILES: listing}.items():
            with (aside / file).open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        sync_folder(aside)
        target = parent.folder / name
        if target.exists():
            target.replace(parent.folder / f"{TEMPORARY_PREFIX}old-{uuid.uuid4().hex}")
        aside.replace(target)
        sync_folder(parent.folder)
    finally:
        clear_temporary(parent.folder)


def clear_temporary(folder: Path) -> None:
    """Remove half-written folders of an earlier process."""
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def read_folder(place: Store) -> dict[str, bytes]:
    """All files of a hashed folder; CheckpointError names the file that is missing or whose hash differs."""
    try:
        hashes = json.loads(place.read(FILES))
        files = {file: place.read(file) for file in hashes}
    except FileNotFoundError as error:
        raise CheckpointError(f"{place.location} is not complete: {error}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{place.location}/{FILES} cannot be read: {error}") from error
    for file, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[file]:
            raise CheckpointError(f"{place.location}/{file} is damaged: its SHA-256 differs from {FILES}")
    if not files:
        raise CheckpointError(f"{place.location}/{FILES} names no files")
    return files


def names(run: Store) -> list[str]:
    """The run's checkpoints, oldest first, whole or not."""
    return sorted((n for n in run.child(FOLDER).folders() if NAME.fullmatch(n)), key=lambda n: int(n.split("-")[1]))


def latest(run: Store) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None if there is none. Damaged ones are passed over with a warning."""
    for name in reversed(names(run)):
        try:
            return load(run, name)
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
    return None


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
        raise CheckpointError(f"{run.location}/{FOLDER}/{name} lacks {error}") from error


def restore(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put the weights and the optimiser's moments back; CheckpointError when they were made for another model."""
    try:
        model.load_state_dict(checkpoint.model, strict=True)
        optimiser.load_state_dict(_optimiser_in(checkpoint.state["optimiser_groups"], checkpoint.optimiser))
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.name} does not fit this model: {error}") from error


def keep_newest(run: Store, count: int) -> None:
    """Delete all but the newest `count` checkpoints (local runs; object stores expire by their own rules)."""
    if run.is_local:
        for name in names(run)[:-count]:
            shutil.rmtree(run.child(FOLDER).folder / name, ignore_errors=True)


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


def export_encoder(run: Store, encoder: nn.Module, description: dict[str, Any], trained_on: bytes = b"") -> None:
    """Write `encoder/`: the weights, encoder.json (name, settings, recipe, objective, corpus) and the content hashes of
    the recordings it was trained on, so that an evaluation can refuse them."""
    files = {
        "model.safetensors": save_tensors(_plain(encoder.state_dict())),
        "encoder.json": json.dumps(description, indent=1, sort_keys=True).encode(),
        "trained_on.bin": trained_on,
    }
    write_folder(run, ENCODER_FOLDER, files)


def describe_encoder(path: str) -> dict[str, Any]:
    """encoder.json of an exported encoder: `path` is the run folder or its encoder/ folder."""
    return dict(json.loads(read_folder(_encoder_store(path))["encoder.json"]))


def trained_on(path: str) -> NDArray[np.uint64]:
    """Content hashes (first 8 bytes, little endian, sorted) of the recordings an exported encoder was trained on."""
    return np.frombuffer(read_folder(_encoder_store(path))["trained_on.bin"], "<u8")


def load_encoder(path: str) -> nn.Module:
    """The exported encoder at `path` (the run folder or its encoder/ folder), in eval mode.

    Its `description` attribute is encoder.json: name, settings and the recipe its input must follow. Raises
    CheckpointError when the folder is not there, is damaged or does not fit this version.
    """
    files = read_folder(_encoder_store(path))
    description = json.loads(files["encoder.json"])
    encoder = build_encoder(description["name"], **description["settings"])
    try:
        encoder.load_state_dict(load_tensors(files["model.safetensors"]), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit this version of beatray: {error}") from error
    encoder.description = description
    return encoder.eval()


def _encoder_store(path: str) -> Store:
    store = Store(str(path))
    return store if store.size("encoder.json") is not None else store.child(ENCODER_FOLDER)


def check_recipe(made_for: dict[str, Any], corpus: dict[str, Any], what: str) -> None:
    """Raise CheckpointError naming every line in which a corpus differs from the recipe a model was made for."""
    differing = [
        f"{key}: {made_for.get(key)!r} against {corpus.get(key)!r}"
        for key in sorted({*made_for, *corpus})
        if made_for.get(key) != corpus.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{what} was made for another corpus recipe ({'; '.join(differing)}). Ingest the recordings again with "
            "this version, or use the version that made it."
        )
