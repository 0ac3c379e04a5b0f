"""An exported encoder as a hashed folder: written by a finished run, read by all users of the encoder.

`encoder/` holds model.safetensors, encoder.json (name, settings, recipe of the corpus, objective, sources) and
trained_on.bin, the content hashes of the recordings it was trained on, so that an evaluation can refuse them. Contract:
what is read was checked against its hashes; CheckpointError names what is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from beatray.errors import CheckpointError
from beatray.models.bundled import location_of
from beatray.models.registry import build_encoder
from beatray.record import BLANK
from beatray.storage.hashed_folder import read_folder, write_folder
from beatray.storage.store import Store

ENCODER_FOLDER = "encoder"


def export_encoder(run: Store, encoder: nn.Module, description: dict[str, Any], trained_on: bytes = b"") -> None:
    """Write `encoder/`: the weights, encoder.json (name, settings, recipe, objective, corpus) and the content hashes of
    the recordings it was trained on, so that an evaluation can refuse them."""
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    files = {
        "model.safetensors": save_tensors(weights),
        "encoder.json": json.dumps(description, indent=1, sort_keys=True).encode(),
        "trained_on.bin": trained_on,
    }
    write_folder(run, ENCODER_FOLDER, files)


def encoder_files(path: str) -> dict[str, bytes]:
    """What `export_encoder` wrote, every hash checked: model.safetensors, encoder.json and trained_on.bin."""
    files = _read(path)
    return {name: files[name] for name in ("model.safetensors", "encoder.json", "trained_on.bin")}


def describe_encoder(path: str) -> dict[str, Any]:
    """encoder.json of an exported encoder: `path` is the run folder or its encoder/ folder."""
    return dict(json.loads(_read(path)["encoder.json"]))


def trained_on(path: str) -> NDArray[np.uint64]:
    """Content hashes (first 8 bytes, little endian, sorted) of the recordings an exported encoder was trained on."""
    return np.frombuffer(_read(path)["trained_on.bin"], "<u8")


def seen_by(path: str, content_hashes: Iterable[bytes]) -> NDArray[np.bool_]:
    """Of recordings with these content hashes, which ones an exported encoder was trained on; blank ones never."""
    hashes = np.frombuffer(b"".join(value[:8] for value in content_hashes), "<u8")
    seen: NDArray[np.bool_] = np.isin(hashes, trained_on(path)) & (hashes != np.frombuffer(BLANK[:8], "<u8")[0])
    return seen


def encoder_sha256(path: str, *, listed: bool = False) -> str:
    """SHA-256 of the architecture and the weights of an exported encoder; where it lies does not count.

    `listed`: as embeddings.json has it, where the architecture counts by a SHA-256 of its own.
    """
    files = encoder_files(path)
    described = json.loads(files["encoder.json"])
    about = {key: described[key] for key in ("name", "settings")}
    architecture = json.dumps(about, sort_keys=True, separators=(",", ":") if listed else None).encode()
    if listed:
        architecture = hashlib.sha256(architecture).hexdigest().encode()
    return hashlib.sha256(architecture + files["model.safetensors"]).hexdigest()


def load_encoder(path: str) -> nn.Module:
    """The exported encoder at `path` (the run folder or its encoder/ folder), in eval mode.

    Its `description` attribute is encoder.json: name, settings and the recipe its input must follow. Raises
    CheckpointError when the folder is not there, is damaged or does not fit this version.
    """
    files = _read(path)
    description = json.loads(files["encoder.json"])
    try:
        encoder = build_encoder(description["name"], **description["settings"])
    except ValueError as error:  # a user's own network that is not here, or settings of another version
        raise CheckpointError(f"the encoder at {path} cannot be built here: {error}") from error
    try:
        encoder.load_state_dict(load_tensors(files["model.safetensors"]), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit this version of beatray: {error}") from error
    encoder.description = description
    return encoder.eval()


def is_encoder(path: str) -> bool:
    """Whether an exported encoder lies at `path`: a run folder, its encoder/ folder, or the name of a bundled one."""
    return _encoder_store(path).size("encoder.json") is not None


def _read(path: str) -> dict[str, bytes]:
    """The files of an exported encoder; CheckpointError where none is there, or none yet."""
    store = _encoder_store(path)
    if not store.names():
        if Store(location_of(str(path))).exists("checkpoints"):
            raise CheckpointError(
                f"{path} is a run that has not ended, and has no encoder yet; the command that began it continues it"
            )
        raise CheckpointError(f"there is no exported encoder at {path} (a run folder, or its encoder/ folder)")
    return read_folder(store)


def _encoder_store(path: str) -> Store:
    store = Store(location_of(str(path)))
    return store if store.size("encoder.json") is not None else store.child(ENCODER_FOLDER)


def check_recipe(made_for: dict[str, Any], corpus: dict[str, Any], what: str) -> None:
    """Raise CheckpointError naming every line in which a corpus differs from the recipe a model was made for.

    Two lines may differ: how patient ids were hashed changes no number in a row, and a later version of the signal
    analysis no signal, which is what a model reads.
    """
    differing = [
        f"{key}: {made_for.get(key)!r} against {corpus.get(key)!r}"
        for key in sorted({*made_for, *corpus} - {"patient_salt", "dsp_version"})
        if made_for.get(key) != corpus.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{what} was made for another corpus recipe ({'; '.join(differing)}). Ingest the recordings again with "
            "this version, or use the version that made it."
        )
