"""Who may import whom, and how light the command line is."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "beatray"

HEAVY = {
    "ray": {
        "ingest/convert.py",
        "ingest/progress_board.py",
        "train/read.py",
        "train/launch.py",
        "train/worker_news.py",
        "sweep/asha.py",
        "sweep/callback.py",
        "sweep/evaluation.py",
        "sweep/run.py",
        "sweep/trial.py",
        "infer/stream.py",
        "ray_internals.py",
        "ray_session.py",
        "ray_job.py",
        "doctor/collective.py",
        "doctor/probe.py",
    },
    "mlflow": {"track/server.py"},
}
NO_TORCH = (
    "record.py",
    "errors.py",
    "storage",
    "dsp",
    "corpus",
    "ingest",
    "track",
    "settings.py",
    "config.py",
    "schema.py",
    "cli.py",
    "cli_parser.py",
    "ray_session.py",
)

GROUND = {"record", "errors", "fields", "full_disk", "plugins", "schema"}
"""What every room may import."""

INTERNAL = re.compile(
    r"\bray(\.\w+)*\._\w|\bray\.(core|dashboard|experimental|gcs_utils)\b|\bray\.train\.v2\b|_internal_|_consumer_idling"
    r"|custom_execution_callback|RAY_JOB_CONFIG_JSON"
)
"""Names of parts of Ray that it does not document."""

LOWER: dict[str, set[str]] = {
    "record": set(),
    "errors": set(),
    "fields": set(),
    "full_disk": set(),
    "plugins": set(),
    "schema": {"fields"},
    "settings": set(),
    "config": {"settings"},
    "ray_session": set(),
    "ray_internals": set(),
    "ray_job": {"ray_internals"},
    "storage": set(),
    "dsp": set(),
    "corpus": {"storage", "dsp", "settings"},
    "ingest": {"storage", "dsp", "corpus"},
    "track": set(),
    "preprocess": set(),
    "augment": {"preprocess"},
    "beat_classifier": {"storage", "ingest", "augment", "preprocess"},
    "models": {"storage"},
    "objectives": {"storage", "corpus", "augment", "preprocess", "models", "beat_classifier", "evaluate"},
    "train": {
        *("storage", "dsp", "corpus", "settings", "config", "track", "ray_job", "ray_internals"),
        *("augment", "preprocess", "models", "objectives", "beat_classifier"),
    },
    "bench": {"storage", "corpus", "ingest", "settings", "config", "models", "objectives", "train"},
    "evaluate": {"dsp", "corpus", "settings", "augment", "preprocess", "models"},
    "finetune": {
        *("storage", "corpus", "settings", "augment", "preprocess", "models", "objectives", "train", "evaluate"),
    },
    "sweep": {
        *("storage", "dsp", "corpus", "models", "objectives", "settings", "config", "track", "ray_job"),
        *("ray_internals", "train", "evaluate", "finetune"),
    },
    "infer": {"storage", "corpus", "ingest", "settings", "augment", "preprocess", "models", "objectives", "evaluate"},
    "export": {"storage", "corpus", "ingest", "preprocess", "models", "evaluate"},
    "report": {
        *("storage", "dsp", "corpus", "augment", "preprocess", "models", "objectives"),
        *("train", "evaluate", "sweep"),
    },
    "doctor": {"storage", "corpus", "settings", "config", "track", "train", "ray_session"},
}


def imports_of(path: Path) -> set[str]:
    """Modules imported anywhere in the file, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {str(path.relative_to(PACKAGE)): imports_of(path) for path in sorted(PACKAGE.rglob("*.py"))}


def test_ray_and_mlflow_stay_in_their_rooms() -> None:
    for heavy, rooms in HEAVY.items():
        users = {name for name, found in FILES.items() if any(i.split(".")[0] == heavy for i in found)}
        assert users == rooms, f"{heavy} is imported in {sorted(users ^ rooms)}"


def test_what_ray_does_not_document_is_used_in_one_file() -> None:
    users = {name for name in FILES if INTERNAL.search((PACKAGE / name).read_text())}
    assert users == {"ray_internals.py"}


def test_signal_code_does_not_know_torch() -> None:
    for name, found in FILES.items():
        if name.startswith(NO_TORCH):
            assert not any(i.split(".")[0] == "torch" for i in found), name


def test_layers_only_look_down() -> None:
    for name, found in FILES.items():
        layer = name.split("/")[0].removesuffix(".py")
        if layer not in LOWER:
            continue  # commands, cli and the package front may use everything
        used = {i.split(".")[1] for i in found if i.startswith("beatray.") and i.count(".") >= 1}
        allowed = LOWER[layer] | {layer} | (GROUND if layer not in GROUND else {"errors"})
        assert used <= allowed, f"{name} imports {sorted(used - allowed)}"


def test_evaluate_does_not_bring_ray() -> None:
    """An encoder is evaluated on a laptop without a cluster: nothing below `evaluate` may import Ray either."""
    modules = [f"beatray.evaluate.{path.stem}" for path in sorted((PACKAGE / "evaluate").glob("[!_]*.py"))]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'ray' not in sys.modules, name"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_reads_pickles() -> None:
    for name in FILES:
        text = (PACKAGE / name).read_text()
        assert "torch.load" not in text and "import pickle" not in text and "allow_pickle=True" not in text, name


def test_platform_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform; assert platform.python_version(), platform"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_and_import_are_light() -> None:
    code = (
        "import sys, beatray, beatray.cli\n"
        "try: beatray.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": str(ROOT / "platform"), "PATH": "/usr/bin:/bin"}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    print(f"beatray --help took {time.perf_counter() - started:.2f} s")
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
