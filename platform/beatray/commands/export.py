"""`beatray export PATH --out FOLDER`: an encoder or a model to hand to others: card, weights, torch.export, ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from beatray.commands.console import say
from beatray.commands.local import local_folder
from beatray.errors import SettingsError
from beatray.evaluate.older import results_today
from beatray.export.folder import export_folder
from beatray.export.model_folder import export_model
from beatray.export.programs import ExportError
from beatray.models.model_folder import is_model


def run(encoder: str, out: str, *, results: str | None = None, onnx: bool = True) -> int:
    """Export, and report what was measured; SettingsError where an argument is wrong or the export is not equal."""
    folder = local_folder("--out ", out)
    kind = "model" if is_model(encoder) else "encoder"
    if kind == "model" and results is not None:
        raise SettingsError(f"--results is for an encoder, and {encoder} holds a model, whose card has its scores")
    known = None if results is None else read_results(results)
    try:
        if kind == "model":
            programs = export_model(encoder, folder, with_onnx=onnx)
        else:
            programs = export_folder(encoder, folder, known, with_onnx=onnx)
    except ExportError as error:
        raise SettingsError(str(error)) from error
    for name, difference in programs.difference.items():
        say(f"  {name}: equal to the {kind} to {difference:.1e} on real recordings")
    if not programs.any_length:
        say("  the number of samples is fixed to that of a corpus window: the exporter could not keep it free")
    elif programs.longest is not None:
        say(f"  at most {programs.longest} samples: this network is exported with kernels of that length")
    say(f"  {out}: README.md, model.safetensors, {', '.join(programs.difference)}; beatray.load_{kind}({out!r})")
    return 0


def read_results(path: str) -> dict[str, Any]:
    """A results.json of `beatray evaluate`, or the one in a folder."""
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not {"runs", "tasks"} <= set(document):
            raise ValueError("it lacks runs or tasks")
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{file} is no results.json of beatray evaluate: {error}") from error
    return results_today(document)
