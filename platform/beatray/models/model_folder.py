"""A model as a hashed folder: an encoder, its head, and all that turns their numbers into an answer.

`model/` holds model.safetensors (encoder.* and head.*), model.json (the task, names of outputs, thresholds and
calibration chosen on validation, mean and SD of numbers, networks, recipe of the corpus, scores), trained_on.bin (the
content hashes of the recordings it was trained on, those of its pretraining included) and README.md, the card.

Contract: what is read was checked against its hashes; CheckpointError names what is missing or damaged. A loaded model
gives the logits of the one that was written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from beatray.errors import CheckpointError
from beatray.models.bundled import location_of
from beatray.models.labelled_heads import OF_SAMPLES, LabelledModel, build_head
from beatray.models.registry import build_encoder
from beatray.storage.hashed_folder import read_folder, write_folder
from beatray.storage.store import Store

MODEL_FOLDER = "model"
DESCRIPTION = "model.json"
VERSION = 1
DECIDING = ("version", "kind", "names", "encoder", "head", "calibration", "thresholds", "mean", "sd", "leads", "recipe")
"""What of model.json decides an answer, besides the weights."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The network in evaluation mode, and model.json."""

    network: LabelledModel
    description: dict[str, Any]


def write_model(run: Store, model: LabelledModel, description: dict[str, Any], trained_on: bytes, card: str) -> None:
    """Write `model/` of a run; OSError when the disk or the store refuses."""
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    content = {"version": VERSION, **description}
    files = {
        "model.safetensors": save_tensors(weights),
        DESCRIPTION: json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode(),
        "trained_on.bin": trained_on,
        "README.md": card.encode(),
    }
    write_folder(run, MODEL_FOLDER, files)


def describe_model(path: str) -> dict[str, Any]:
    """model.json of the model at `path`: a run folder, or its model/ folder."""
    return dict(json.loads(model_files(path)[DESCRIPTION]))


def model_sha256(path: str) -> str:
    """SHA-256 of all that decides the answers of the model at `path`; where it lies does not count."""
    files = model_files(path)
    description = json.loads(files[DESCRIPTION])
    deciding = {key: description.get(key) for key in DECIDING}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    digest.update(files["model.safetensors"])
    return digest.hexdigest()


def read_model(path: str) -> LoadedModel:
    """The model at `path`: a run folder, or its model/ folder.

    Raises CheckpointError when it is not there, is damaged or does not fit this version.
    """
    files = model_files(path)
    description = json.loads(files[DESCRIPTION])
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"the model at {path} has version {description.get('version')}; this beatray reads {VERSION}"
        )
    try:
        encoder = build_encoder(description["encoder"]["name"], **description["encoder"]["settings"])
        head = description["head"]
        model = LabelledModel(encoder, build_head(encoder, head), head["name"] in OF_SAMPLES)
        model.load_state_dict(load_tensors(files["model.safetensors"]), strict=True)
    except (ValueError, RuntimeError) as error:  # a user's own network that is not here, or another version's
        raise CheckpointError(f"the model at {path} cannot be built here: {error}") from error
    model.eval()
    return LoadedModel(model, description)


def is_model(path: str) -> bool:
    """Whether a model lies at `path`: a run folder, or its model/ folder."""
    return _model_store(path).size(DESCRIPTION) is not None


def model_files(path: str) -> dict[str, bytes]:
    """The files of the model at `path`, every hash checked."""
    store = _model_store(path)
    if store.size(DESCRIPTION) is None:
        raise CheckpointError(f"there is no model at {path} (a run folder of `beatray finetune`, or its model/ folder)")
    return read_folder(store)


def _model_store(path: str) -> Store:
    store = Store(location_of(str(path)))
    return store if store.size(DESCRIPTION) is not None else store.child(MODEL_FOLDER)
