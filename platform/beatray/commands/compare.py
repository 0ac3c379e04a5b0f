"""`beatray compare RESULTS_A RESULTS_B ...`: paired tests between evaluated encoders.

An argument is a results.json (or its folder), or NAME=FILE; a name given several times pools its files as runs of one
method. What exists under the whole argument is a path, though it holds a "=" (`runs/lr=1`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from beatray.commands.console import say
from beatray.errors import SettingsError
from beatray.evaluate.paired import as_document, as_rows, compare_runs, runs_of
from beatray.evaluate.statistics import ALPHA

VARIANTS = {
    **{name: name for name in ("random", "features", "encoder_features")},
    "encoder+features": "encoder_features",
    "joined": "encoder_features",
}
"""Values of --with and what they mean; the last is an older one."""


def run(folders: Sequence[str], *, variants: str | None = None, alpha: float = ALPHA, as_json: bool = False) -> int:
    """Print the comparison; SettingsError where the files cannot be compared."""
    chosen = [name for name in (variants or "").split(",") if name]
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown:
        raise SettingsError(f"--with {unknown[0]} is not one of random, features, encoder+features")
    if "joined" in chosen:
        say("  --with joined is called encoder+features now; the old name will go with the next version")
    try:
        runs, unit = runs_of(methods(folders), list(dict.fromkeys(VARIANTS[name] for name in chosen)))
        comparisons = compare_runs(runs, alpha)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if not comparisons:
        raise SettingsError("there is nothing that all methods were evaluated on: compare results of the same task")
    if as_json:
        print(json.dumps({"unit": unit, "comparisons": as_document(comparisons)}, indent=1))
        return 0
    for comparison in comparisons:
        say("\n".join(as_rows(comparison)) + "\n")
    say(f"Note: {unit}.")
    if len(comparisons) > 1:
        say(
            f"Note: p is corrected for the pairs of one score, not for looking at {len(comparisons)} scores: choose "
            "the one that counts before you look."
        )
    return 0


def methods(folders: Sequence[str]) -> dict[str, list[Path]]:
    """Results files by method; one without a name is called by the part of its path that sets it apart."""
    named = [["", arg] if Path(arg).exists() or "=" not in arg else arg.split("=", 1) for arg in folders]
    bare = [Path(path) for name, path in named if not name]
    seen = set()
    for name, location in named:
        key = name, _folder(Path(location)).resolve()
        if key in seen:
            raise SettingsError(f"the same results are given twice{f' for {name}' if name else ''}: {location}")
        seen.add(key)
    short = dict(zip(bare, _short_names(bare), strict=True))
    for path, name in short.items():
        if any(name == other for other, _ in named):
            raise SettingsError(
                f"{path} has no name and would be called {name}, as the results that {name}=FILE names: write "
                f"{name}={path} to pool them, or give it another name"
            )
    found: dict[str, list[Path]] = {}
    for name, location in named:
        found.setdefault(name or short[Path(location)], []).append(Path(location))
    return found


def _folder(path: Path) -> Path:
    """The folder of a results file; a folder itself."""
    return path.parent if path.name == "results.json" else path


def _short_names(paths: Sequence[Path]) -> list[str]:
    parts = [_folder(path).parts for path in paths]
    for depth in range(1, max((len(each) for each in parts), default=0) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
