"""A trained beat classifier as a hashed folder: model.safetensors, and beats.json with how it was made.

Contract: `write` makes it whole or not at all; `load` raises CheckpointError where it is damaged, was made by another
recipe of windows, or is not the one whose digest was asked for. `digest_of` is the SHA-256 over both files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from beatray.beat_classifier.labels import BeatLabels
from beatray.beat_classifier.network import AFTER, BEFORE, CLASSES, RR_LIMITS, BeatNet
from beatray.errors import CheckpointError
from beatray.preprocess import CLIP_MV, CUTOFF_HZ
from beatray.record import RATE_HZ
from beatray.storage.hashed_folder import read_folder, write_folder
from beatray.storage.store import Store

WEIGHTS, ABOUT = "model.safetensors", "beats.json"
RECIPE = {
    "version": 1,
    "rate_hz": RATE_HZ,
    "before_smp": BEFORE,
    "after_smp": AFTER,
    "high_pass_hz": CUTOFF_HZ,
    "clip_mv": CLIP_MV,
    "rr": f"interval before and after over the median of 10 s, within {RR_LIMITS[0]} to {RR_LIMITS[1]}",
    "classes": list(CLASSES),
}
"""What an input must be like; a classifier made for another is refused."""


def write(out: Path, labels: BeatLabels, about: dict[str, Any]) -> None:
    """Write the folder `out`; `about` is plain JSON and goes beside the recipe."""
    content = {
        **about,
        "recipe": RECIPE,
        "leads": list(labels.leads),
        "known": list(labels.known),
        "min_probability": labels.min_probability,
    }
    files = {
        WEIGHTS: save_tensors({name: tensor.cpu().contiguous() for name, tensor in labels.net.state_dict().items()}),
        ABOUT: json.dumps(content, indent=1, sort_keys=True).encode(),
    }
    write_folder(Store(str(out.absolute().parent)), out.name, files)


def read(path: str) -> tuple[dict[str, bytes], str]:
    """The files of a classifier, hashes checked, and their digest."""
    try:
        files = read_folder(Store(path))
        files = {name: files[name] for name in (WEIGHTS, ABOUT)}
    except KeyError as error:
        raise CheckpointError(f"{path} is no beat classifier: it has no {error}") from error
    return files, hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files))).hexdigest()


def digest_of(path: str) -> str:
    """SHA-256 of the classifier at `path`."""
    return read(path)[1]


def load(path: str, digest: str | None = None) -> BeatLabels:
    """The classifier at `path`, in eval mode; see the module's contract."""
    files, found = read(path)
    if digest is not None and found != digest:
        raise CheckpointError(f"the beat classifier {path} is not the one this run began with ({digest[:12]})")
    about = json.loads(files[ABOUT])
    if about["recipe"] != RECIPE:
        raise CheckpointError(f"the beat classifier {path} was made for other windows; train it again")
    net = BeatNet(len(about["leads"]))
    net.load_state_dict(load_tensors(files[WEIGHTS]), strict=True)
    return BeatLabels(net.eval(), tuple(about["leads"]), tuple(about["known"]), float(about["min_probability"]))
