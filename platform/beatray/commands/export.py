"""`beatray export ENCODER --out FOLDER`: an encoder to hand to others, with its card, as torch.export and ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from beatray.commands.console import say
from beatray.errors import SettingsError
from beatray.evaluate.older import results_today
from beatray.export.folder import export_folder
from beatray.export.programs import ExportError


def run(encoder: str, out: str, *, results: str | None = None, onnx: bool = True) -> int:
    """Export, and say what was measured; SettingsError where a word is wrong or the export is not equal."""
    try:
        programs = export_folder(encoder, Path(out), None if results is None else read_results(results), with_onnx=onnx)
    except ExportError as error:
        raise SettingsError(str(error)) from error
    for name, difference in programs.difference.items():
        say(f"  {name}: equal to the encoder to {difference:.1e} on real recordings")
    if not programs.any_length:
        say("  the number of samples is fixed to that of a corpus window: the exporter could not keep it free")
    elif programs.longest is not None:
        say(f"  at most {programs.longest} samples: this network is exported with kernels of that length")
    say(f"  {out}: README.md, model.safetensors, {', '.join(programs.difference)}; beatray.load_encoder({out!r})")
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
