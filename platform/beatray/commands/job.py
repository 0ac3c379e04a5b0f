"""A command as a cluster job: the same overrides, with the paths checked, because a job runs in a temporary copy."""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise

from beatray.cli_parser import parser
from beatray.corpus.label_settings import is_path
from beatray.ingest.sources.registry import SOURCES
from beatray.models import bundled

_TABLE = ("labels", "labels.table", "labels.id_key_file", "objective.table.table", "objective.table.id_key_file")
_EVALUATED = ("evaluate.labels.table", "evaluate.labels.id_key_file", "evaluate.robustness.noise_folder")
_TRACKED = "tracking.uri"
_BEATS = "objective.beat_classifier"

PATH_KEYS = {
    "ingest": (*SOURCES, "out", "id_key_file", "id-key-file", "salt_file", "salt-file"),
    "pretrain": ("corpus", "corpus.path", "encoder.weights", "encoder_weights", "out", _TRACKED, _BEATS),
    "finetune": ("corpus", "corpus.path", "encoder", "encoder.weights", "encoder_weights", "out", _TRACKED, *_TABLE),
    "sweep": (
        *("corpus", "corpus.path", "encoder.weights", "encoder_weights", "out", _TRACKED, _BEATS),
        *(*_TABLE, *_EVALUATED),
    ),
    "evaluate": ("corpus", "corpus.path", "encoder", "encoder_path", "run", "out", _TRACKED, *_TABLE, *_EVALUATED),
    "predict": ("corpus", "corpus.path", "files", "model", "out"),
    "embed": ("corpus", "corpus.path", "encoder", "encoder_path", "out"),
    "report": ("PLACE", "--corpus", "--results"),
}
LOCAL_KEYS = {"evaluate": ("run", "out"), "report": ("--results",)}
"""Of these, what may not be the URI of an object store."""
NOT_PATHS = ("random", "null", *bundled.names())
NOT_FOLDERS = ("auto", "databricks", "databricks-uc")
"""What `tracking.uri` may be beside an address."""
DATABASE_FILE = re.compile(r"sqlite(?:\+\w+)?:///(?!/)")
"""How the address of a database begins whose file is relative: an absolute path is a fourth stroke."""
NEEDED = "out"
MLFLOW_ID = r"[0-9a-f]{32}"
"""What `beatray report` takes in place of a folder."""


def main(command: str, argv: list[str]) -> int:
    """Run `beatray COMMAND ARGUMENTS` on the cluster this process belongs to; returns the exit code.

    Exit code 2 for a path that is relative or an `out` that is not set: it would be lost with the job's folder.
    """
    from beatray.cli import main as run

    given = list(_of_report(argv).items()) if command == "report" else _pairs(argv)
    for key, value in given:  # a source may be given several times
        if key not in PATH_KEYS[command] or _names_labels(command, key, value):
            continue
        each = _models(value) if key == "model" else [value]
        stays = _outlives if key == _TRACKED else _is_absolute
        if not all(path in NOT_PATHS or stays(path) for path in each):
            return _refuse(command, f"{key}={value} is relative", key)
    if NEEDED not in dict(given) and command != "report" and "--help" not in argv:
        return _refuse(command, f"{NEEDED}= is not set", NEEDED)
    os.environ.setdefault("RAY_ADDRESS", "auto")
    return run([command, *argv])


def _models(value: str) -> list[str]:
    """The models of an ensemble, as `beatray predict` reads them."""
    from beatray.infer.predict_plan import paths_in  # imports torch

    return paths_in(value)


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or "://" in path


def _outlives(uri: str) -> bool:
    """Whether what is tracked there outlives the job's folder."""
    known = uri in NOT_FOLDERS or uri.startswith("file:/")
    return known or (_is_absolute(uri) and not DATABASE_FILE.match(uri))


def _names_labels(command: str, key: str, value: str) -> bool:
    """Whether the value is the name of labels that the corpus has, and no path at all."""
    return command in ("finetune", "sweep") and key == "labels" and not is_path(value)


def _of_report(argv: list[str]) -> dict[str, str]:
    """The paths of `beatray report`, which has no overrides but an argument and options."""
    parsed = parser().parse_args(["report", *argv])
    given = {"PLACE": parsed.parent, "--corpus": parsed.corpus, "--results": parsed.results}
    return {key: path for key, path in given.items() if path is not None and not re.fullmatch(MLFLOW_ID, path)}


def _pairs(argv: list[str]) -> list[tuple[str, str]]:
    pairs = [tuple(arg.split("=", 1)) for arg in argv if "=" in arg]
    pairs += [(arg, after) for arg, after in pairwise(argv) if arg in ("--out", "--id-key-file", "--salt-file")]
    return [(key.lstrip("-"), value) for key, value in pairs]


def _refuse(command: str, why: str, key: str) -> int:
    or_uri = "" if key in LOCAL_KEYS.get(command, ()) else ", or a URI"
    print(
        f"jobs/{command}.py: {why}. A job runs in a temporary copy of the tree that is lost with it: give an absolute "
        f"path that every node sees{or_uri}.",
        file=sys.stderr,
    )
    return 2
