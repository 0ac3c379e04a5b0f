"""An exported encoder as a folder to hand to others: weights, programs, card, every file hashed.

The folder is one that `beatray.load_encoder` and `beatray.EcgEncoder` read: safetensors, encoder.json and files.json
with the SHA-256 of each file, beside README.md, model.pt2 and model.onnx. The path of the corpus, which shows more of
the machine than of the model, is left out of encoder.json.

Contract: it appears whole or not at all; ExportError where a proof fails, CheckpointError where the encoder is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.corpus.label_settings import without_folders
from beatray.export.card import model_card
from beatray.export.programs import ExportError, Programs, to_programs
from beatray.ingest.canonical import to_windows
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree
from beatray.models.encoder import Encoder
from beatray.models.encoder_folder import encoder_files, encoder_sha256, load_encoder
from beatray.preprocess import prepare
from beatray.record import RATE_HZ, WINDOW_SAMPLES
from beatray.storage.hashed_folder import write_folder
from beatray.storage.store import Store

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
BUNDLED = {"ptbxl": "ptbxl-sample.zip", "ludb": "ludb-sample.zip"}
EACH = 4


def export_folder(
    encoder_path: str, out: Path, results: Mapping[str, Any] | None = None, *, with_onnx: bool = True
) -> Programs:
    """Write the folder `out`, which must not exist; returns the programs with what was measured."""
    if out.exists():
        raise ExportError(f"{out} exists already; choose another --out")
    files = dict(encoder_files(encoder_path))
    encoder = cast(Encoder, load_encoder(encoder_path))
    x_mv = real_recordings()
    programs = to_programs(encoder, x_mv, with_onnx=with_onnx)
    description = without_path(json.loads(files["encoder.json"]))
    proven_on = f"{len(x_mv)} recordings of PTB-XL and LUDB"
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    card = model_card(description, programs, parameters, results, proven_on, encoder_sha256(encoder_path))
    files |= {
        "encoder.json": json.dumps(description, indent=1, sort_keys=True).encode(),
        "README.md": card.encode(),
        "model.pt2": programs.pt2,
        **({} if programs.onnx is None else {"model.onnx": programs.onnx}),
    }
    write_folder(Store(str(out.absolute().parent)), out.name, files)
    return programs


def real_recordings(each: int = EACH) -> NDArray[np.float32]:
    """Whole recordings of the bundled sample, prepared as for any encoder: (2 * each, 12, WINDOW_SAMPLES) mV."""
    signals = []
    for source, archive in BUNDLED.items():
        tree = open_tree(str(SAMPLE / archive))
        items = SOURCES[source].find(tree)
        for item in items[:: len(items) // each][:each]:
            signals += [to_windows(record)[0].signal_uv for record in SOURCES[source].read(tree, item)]
    x_mv: NDArray[np.float32] = prepare(torch.from_numpy(np.stack(signals)), rate_hz=RATE_HZ).numpy()
    assert x_mv.shape[1:] == (12, WINDOW_SAMPLES), x_mv.shape
    return x_mv


def without_path(description: dict[str, Any]) -> dict[str, Any]:
    """The description without the paths of the corpus, a table of labels and the beat classifier; digests stay."""
    shown = dict(description)
    for part, key in (("corpus_settings", "path"), ("objective", "beat_classifier")):
        if isinstance(shown.get(part), dict):
            shown[part] = {name: value for name, value in shown[part].items() if name != key}
    objective = shown.get("objective")
    if isinstance(objective, dict) and isinstance(objective.get("table"), dict):
        shown["objective"] = {**objective, "table": without_folders(objective["table"])}
    return shown
