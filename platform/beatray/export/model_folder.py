"""A fine-tuned model as a folder to hand to others: weights, calibration, programs, card, every file hashed.

The programs hold the whole of it, network, head and calibration. From `x_mv` (batch, 12, samples), prepared millivolts
at 500 Hz, they give

    probabilities (batch, C)    calibrated, of yes-or-no targets or of one of several classes
    numbers (batch, C)          in the units of the labels
    chances (batch, M, 4, samples)   of none, P, QRS and T for every sample; M = 1 (shared) or 12

`beatray.load_model` reads the folder. Contract: it appears whole or not at all; ExportError where a proof fails,
CheckpointError where the model is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beatray.export.folder import real_recordings
from beatray.export.programs import INPUT, INSTALL, TOLERANCE, ExportError, Programs, programs_of
from beatray.models.labelled_heads import LabelledModel
from beatray.models.model_folder import model_files, read_model
from beatray.models.segmentation import CLASSES
from beatray.preprocess import CLIP_MV, CUTOFF_HZ
from beatray.record import LEADS, RATE_HZ, WINDOW_SAMPLES
from beatray.storage.hashed_folder import write_folder
from beatray.storage.store import Store

OUTPUT = {"multilabel": "probabilities", "classes": "probabilities", "numbers": "numbers", "waves": "chances"}


class Answers(nn.Module):
    """A model with all that turns its logits into answers; see the module text."""

    slope: Tensor
    offset: Tensor

    def __init__(self, network: LabelledModel, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.kind = network, str(description["kind"])
        calibration = description.get("calibration", {"slope": [1.0], "offset": [0.0]})
        slope, offset = calibration["slope"], calibration["offset"]
        if self.kind == "numbers":
            slope, offset = description["sd"], description["mean"]
        self.register_buffer("slope", torch.tensor(slope, dtype=torch.float32))
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.float32))

    def forward(self, x_mv: Tensor) -> tuple[Tensor]:
        """Prepared millivolts (B, 12, T) to answers."""
        logits = self.network(x_mv)
        if self.kind == "waves":
            return (logits.unflatten(1, (-1, len(CLASSES))).softmax(2),)
        scaled = logits * self.slope + self.offset
        if self.kind == "numbers":
            return (scaled,)
        return (scaled.softmax(1) if self.kind == "classes" else scaled.sigmoid(),)


def export_model(path: str, out: Path, *, with_onnx: bool = True) -> Programs:
    """Write the folder `out`, which must not exist; returns the programs with what was measured."""
    if out.exists():
        raise ExportError(f"{out} exists already; choose another --out")
    loaded, files = read_model(path), model_files(path)
    x_mv = real_recordings()
    output = OUTPUT[loaded.description["kind"]]
    programs = programs_of(Answers(loaded.network, loaded.description), (output,), x_mv, "model", with_onnx=with_onnx)
    card = files["README.md"].decode() + "\n" + _programs_section(programs, output, loaded.description, len(x_mv))
    files |= {
        "README.md": card.encode(),
        "model.pt2": programs.pt2,
        **({} if programs.onnx is None else {"model.onnx": programs.onnx}),
    }
    write_folder(Store(str(out.absolute().parent)), out.name, files)
    return programs


def _programs_section(programs: Programs, output: str, description: Mapping[str, Any], count: int) -> str:
    names = "`model.pt2` (torch.export)" + (" and `model.onnx`" if programs.onnx is not None else "")
    proofs = "; ".join(f"{name} {value:.1e}" for name, value in programs.difference.items())
    samples = f"samples <= {programs.longest}" if programs.longest is not None else "samples"
    shape = f"(batch, 12, {samples if programs.any_length else WINDOW_SAMPLES})"
    gives = ", ".join(["none, P, QRS, T"] if output == "chances" else description["names"])
    decided = f" Yes above {description['thresholds']}, in this order." if "thresholds" in description else ""
    return f"""## Without beatray

{names} take `{INPUT}` {shape} float32 and give `{output}`: {gives}.{decided}

`{INPUT}` is in millivolts at {RATE_HZ} Hz, leads {" ".join(LEADS)}, after a zero-phase high-pass with gain
1 / (1 + (f_c / f)^4), f_c = {CUTOFF_HZ} Hz, and clipping to +-{CLIP_MV:g} mV. All samples given count: do not pad. A
recording of more than 10 s is answered window by window.

Verified at export on {count} recordings of PTB-XL and LUDB: largest difference from the model {proofs} (allowed:
{TOLERANCE:g} of 1 + the value). A .pt2 file can hold code: open only those you trust. safetensors and ONNX cannot. ONNX
export needs `{INSTALL}`.
"""
