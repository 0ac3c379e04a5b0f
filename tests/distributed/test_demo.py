"""The main job as a user meets it: a wheel, installed far from the tree, `beatray demo` on 24 recordings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from beatray.cli import main
from beatray.commands.demo import MARK
from beatray.corpus.reader import open_corpus
from beatray.evaluate.settings import MAIN_PROTOCOL

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.ray

QUICK = [
    "records=12",
    "train.epochs=3",
    "train.batch_size=16",
    "evaluate.seeds=[0]",
    "evaluate.permutations=1",
    "evaluate.inner_folds=3",
    "evaluate.bootstraps=20",
    "evaluate.decoder.steps=8",
    "evaluate.segment_finetune.steps=4",
    "evaluate.classify_finetune.steps=4",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding the installed wheel, far from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "platform/__init__.py" not in names
    assert {"beatray/configs/demo.yaml", "beatray/sample/ATTRIBUTION.md", "beatray/sample/ludb-sample.zip"} <= set(
        names
    )
    assert sum(path.stat().st_size for path in (ROOT / "platform/beatray/sample").glob("*.zip")) < 15_000_000
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def demo(installed: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "BEATRAY_"))}
    # Ray's usual niceness would leave its workers next to nothing beside other tests
    environment |= {"PYTHONPATH": str(installed), "COLUMNS": "120", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "beatray", "demo", *args]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def test_the_whole_main_job_and_its_second_run(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = demo(installed, tmp_path, *QUICK)
    assert first.returncode == 0, first.stdout[-4000:] + first.stderr[-4000:]
    out = tmp_path / "beatray-demo"
    manifest = open_corpus(str(out / "corpus")).manifest
    assert manifest.statistics["by_source"] == {"ludb": 12, "ptbxl": 12}
    results = json.loads((out / "results.json").read_text())
    variants = {(run["task"], run["protocol"], run["variant"]) for run in results["runs"]}
    for task in ("segment", "classify"):
        for protocol in (MAIN_PROTOCOL[task], "finetune"):
            assert {(task, protocol, "pretrained"), (task, protocol, "random")} <= variants
    assert {("classify", "linear_probe", "features"), ("classify", "linear_probe", "permuted_labels")} <= variants
    seen = {
        line for text in (out / "runs/pretrain/metrics.jsonl").read_text().splitlines() for line in json.loads(text)
    }
    assert {"loss", "record/loss", "beat/loss", "data_wait_s"} <= seen
    page = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?https?:""", page), "the report must stand alone"
    assert page.count("<img") + page.count("<svg") >= 5
    for phrase in ("CC BY 4.0", "ODC-By", "Beat-SSL"):
        assert phrase in page
    assert "mlflow ui --backend-store-uri sqlite:" in first.stdout and "report.html" in first.stdout
    assert re.search(r"127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}", first.stdout)
    of_ray = [line for line in first.stderr.splitlines() if re.search(r"raylet|gcs|\w+\.cc:\d+|\(pid=", line)]
    assert not of_ray, of_ray

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{out}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("beatray demo").experiment_id])
    assert run.info.status == "FINISHED" and "train/loss" in run.data.metrics
    assert "eval/segment/frozen_decoder/10pct/f1" in run.data.metrics
    assert {"report", "evaluation", "encoder"} <= {item.path for item in client.list_artifacts(run.info.run_id)}

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "mlflow" not in path.name}
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *QUICK]) == 0 and capsys.readouterr().out.count("nothing to do") == 3
    kept = [
        path
        for path, when in before.items()
        if path.suffix in (".parquet", ".safetensors", ".html", ".json") and path.stat().st_mtime_ns != when
    ]
    assert [path for path in kept if path.name != "tracking.json"] == []

    assert main(["demo", *QUICK, "seed=1"]) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error and "seed" in error


def test_a_folder_of_somebody_else_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beatray-demo").mkdir()
    (tmp_path / "beatray-demo" / "thesis.txt").write_text("mine")
    for args in ([], ["--overwrite"]):
        assert main(["demo", *args]) == 2
        assert "was not made by beatray demo" in capsys.readouterr().err
    assert (tmp_path / "beatray-demo" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("mark", ['{"run": "mine", "seed": 7}', "{"])
def test_a_demo_anew_leaves_what_it_did_not_make(mark: str, local_ray: None, tmp_path: Path) -> None:
    """Up to the first step of the pretraining. A damaged mark names the run `pretrain`."""
    run = "mine" if "mine" in mark else "pretrain"
    made = {"corpus/manifest-9.json", f"runs/{run}/encoder/weights", "results.json", "table.md", "report.html"}
    own = {"runs/superdiagnostic/model/weights", "runs/mlflow.db", "thesis.txt"}
    for name in made | own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("finished")
    (tmp_path / MARK).write_text(mark)
    words = ["demo", "--out", str(tmp_path), "--overwrite", "records=6", "seed=3", "tracking.uri=null"]
    main([*words, "train.batch_size=4", "train.stop_after_steps=1"])
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert own <= there and not made & there and open_corpus(str(tmp_path / "corpus")).manifest.rows == 12
    assert json.loads((tmp_path / MARK).read_text())["seed"] == 3
