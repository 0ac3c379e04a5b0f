"""scripts/train_alone.py where there is no Ray: the runs that Ray Train would have made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from beatray.cli import main
from beatray.finetune.finish import make_model
from beatray.finetune.settings import finetune_settings
from beatray.models.encoder_folder import describe_encoder, encoder_files
from beatray.models.model_folder import describe_model
from beatray.schema import as_dict
from beatray.settings import PretrainSettings
from beatray.track.journal import read_lines
from beatray.train.composed import pretrain_settings
from finetuning import SMALL, SPLIT, VARIED, spec_of
from pretraining import OVERRIDES, losses

pytestmark = pytest.mark.ray  # for the runs that it is compared with

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_alone.py"
MISSING = ("ray", "mlflow", "hydra", "omegaconf", "neurokit2", "wfdb", "numba", "rich", "matplotlib")


def alone(folder: Path, runs: dict[str, PretrainSettings], *more: str) -> None:
    """Train them by the script, in a process that has no Ray."""
    files = []
    for name, settings in runs.items():
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(as_dict(settings)))
    code = (
        "import runpy, sys\n"
        f"for name in {MISSING}:\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = {['train_alone.py', *map(str, files), *more]!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_runs_are_those_of_ray_train(sample_corpus: str, pretrained: Path, tuned: Path, tmp_path: Path) -> None:
    paths = [f"corpus={sample_corpus}", f"out={tmp_path}", *SPLIT]
    first = pretrain_settings([*paths, "run=encoder", *OVERRIDES, "objective=simclr", "train.epochs=1"])
    # the network of a run that starts from an encoder is read from the encoder
    second = finetune_settings([*paths, "run=all", "encoder=beatray-small", "labels=superdiagnostic", *SMALL, *VARIED])
    alone(tmp_path, {"encoder": first, "all": replace(second, encoder_weights=str(tmp_path / "encoder"))})
    assert losses(tmp_path, "encoder") == losses(pretrained.parent, "encoder")
    assert encoder_files(str(tmp_path / "encoder")) == encoder_files(str(pretrained))
    assert losses(tmp_path, "all") == losses(tuned, "all")
    spec = spec_of(sample_corpus, tuned, "all", f"encoder={pretrained}", *VARIED)
    make_model(spec)
    there, here = (describe_model(str(folder / "all")) for folder in (tuned, tmp_path))
    assert here["made_of"]["steps"] == here["made_of"]["run_steps"] == len(losses(tmp_path, "all"))
    for key in ("names", "records", "kind"):
        assert here[key] == there[key]
    assert set(here["scores"]["test"]) == set(there["scores"]["test"])


def test_a_run_gets_the_epochs_that_fit_into_its_time(sample_corpus: str, tmp_path: Path) -> None:
    paths = [f"corpus={sample_corpus}", f"out={tmp_path}", *SPLIT]
    alone(tmp_path, {"run": pretrain_settings([*paths, "run=run", *OVERRIDES, "objective=simclr"])}, "--seconds", "4")
    described, lines = describe_encoder(str(tmp_path / "run")), read_lines(tmp_path / "run" / "metrics.jsonl")
    assert described["steps"] == len(lines) <= described["run_steps"] and lines
    assert main(["report", str(tmp_path / "run"), "--corpus", sample_corpus]) == 0
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert f"{len(lines)} of " in page and "time training" in page
    again = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "run.yaml")], capture_output=True, text=True, check=False
    )
    assert again.returncode == 2 and "choose another run=" in again.stderr


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    for name, text in (("none.yaml", None), ("list.yaml", "- 1"), ("odd.yaml", "{train: {}, checkpoint: {}, outt: x}")):
        if text is not None:
            (tmp_path / name).write_text(text)
        done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 2 and "should hold what --print-config printed" in done.stderr.splitlines()[-1]
