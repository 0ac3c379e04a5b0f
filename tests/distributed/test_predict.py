"""`beatray predict`: what it says is what the model says in memory, whoever computes it, killed or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

import beatray
from beatray.cli import main
from beatray.commands.job import main as job
from beatray.commands.predict import settings_from
from beatray.corpus.reader import open_corpus
from beatray.errors import SettingsError
from beatray.infer.predict import Predicted, predict
from beatray.infer.predict_plan import prepare_plan
from made_models import CLASSES, made_model
from wards import ward_folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Sums of other batches round otherwise."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kinds = {"a": "multilabel", "b": "multilabel", "classes": "classes", "numbers": "numbers", "waves": "waves"}
    return {
        name: made_model(tmp_path_factory.mktemp(name), kind, seed=number)
        for number, (name, kind) in enumerate(kinds.items())
    }


def start(model: str, out: Path, *overrides: str) -> Predicted:
    return predict(prepare_plan(settings_from([f"model={model}", f"out={out}", *overrides])))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def of_corpus(models: dict[str, str], sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models as an ensemble over the corpus, by one worker, through the command."""
    out = tmp_path_factory.mktemp("predictions")
    overrides = [f"model={models['a']},{models['b']}", f"corpus={sample_corpus}", f"out={out}"]
    assert main(["predict", *overrides]) == 0
    return out


def test_the_table_is_what_the_models_say_in_memory(
    of_corpus: Path, models: dict[str, str], sample_corpus: str
) -> None:
    table = pq.read_table(of_corpus / "predictions.parquet").to_pandas()
    rows = open_corpus(sample_corpus).rows()
    assert table["record_id"].tolist() == rows.record_id and (table["windows"] == 1).all()
    x_mv = [uv[:, :n] / 1000.0 for uv, n in zip(rows.signal_uv, rows.n_samples, strict=True)]
    found = beatray.load_model([models["a"], models["b"]]).predict(x_mv)
    each = [beatray.load_model(models[name]).predict_proba(x_mv) for name in "ab"]
    assert found.probabilities is not None and found.spread is not None and found.decisions is not None
    np.testing.assert_allclose(found.probabilities, np.mean(each, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.spread, np.abs(each[0] - each[1]) / np.sqrt(2), rtol=1e-6, atol=1e-12)
    for column, name in enumerate(CLASSES):
        np.testing.assert_allclose(table[f"probability_{name}"], found.probabilities[:, column], **NEAR)
        np.testing.assert_allclose(table[f"sd_{name}"], found.spread[:, column], **NEAR)
        threshold = [0.5, 0.4, 0.6][column]
        assert (table[f"decision_{name}"] == (table[f"probability_{name}"] >= threshold)).all()
    assert 0.05 < table[[f"decision_{name}" for name in CLASSES]].to_numpy().mean() < 0.95
    listing = json.loads((of_corpus / "predictions.json").read_text())
    assert listing["recordings"] == 120 and listing["refused"] == 0 and len(listing["made_by"]["models"]) == 2


def test_the_same_bytes_by_two_workers_and_after_an_interruption(
    of_corpus: Path, models: dict[str, str], sample_corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2**18)  # a row group is 2 MB
    overrides = (f"corpus={sample_corpus}", "predict.workers=2", "predict.readers=3")
    plan = prepare_plan(settings_from([f"model=[{models['a']},{models['b']}]", f"out={tmp_path}", *overrides]))

    def die_after_two_shards(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(plan, die_after_two_shards)
    parts = list((tmp_path / "predictions.parts").iterdir())
    assert 2 <= len(parts) < 8 and not (tmp_path / "predictions.parquet").exists()
    parts[0].write_bytes(parts[0].read_bytes()[:-9])  # a torn part is made again
    done = predict(plan)
    assert done.kept == len(parts) - 1 and files_of(tmp_path) == files_of(of_corpus)
    again = predict(plan)
    assert again.computed == 0 and files_of(tmp_path) == files_of(of_corpus)
    with pytest.raises(SettingsError, match=r"made otherwise \(different: models\).*overwrite=true"):
        start(models["a"], tmp_path, *overrides)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ward_folder(tmp_path_factory.mktemp("ward"))


def test_files_are_read_in_place_and_what_is_refused_is_listed(
    models: dict[str, str], ward: Path, sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(ward)
    out = tmp_path / "day.csv"
    overrides = [f"model={models['classes']}", f"files={ward}", f"out={out}", "predict.recordings_per_task=4"]
    assert main(["predict", *overrides, "predict.workers=2"]) == 0
    assert "18 recordings" in capsys.readouterr().out and files_of(ward) == before
    table = pd.read_csv(out)
    assert len(table) == 18 and set(table["source"]) == {"files"}
    shown = table[[f"probability_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(shown.sum(1), 1)
    assert table["decision"].tolist() == [CLASSES[k] for k in shown.argmax(1)]
    refused = pd.read_csv(tmp_path / "day.refused.csv")
    torn = refused[refused["item"] != "(not listed)"]
    assert len(torn) == 2 and set(torn["reason"]) <= {"truncated", "checksum"} and torn["detail"].str.len().min() > 10
    assert refused["detail"].str.contains("txt").any()
    rows = open_corpus(sample_corpus).rows()
    name_of = {Path(name).name: number for number, name in enumerate(rows.record_id) if name.startswith("ludb")}
    model, seen = beatray.load_model(models["classes"]), 0
    for record_id, expected in zip(table["record_id"], shown, strict=True):
        number = name_of.get(Path(record_id).name) if "/ludb/" in record_id else None
        if number is not None:
            x_mv = rows.signal_uv[number][:, : rows.n_samples[number]] / 1000.0
            np.testing.assert_allclose(model.predict_proba(x_mv)[0], expected, **NEAR)
            seen += 1
    assert seen >= 3


def test_mistakes_are_reported_before_anything_starts(
    models: dict[str, str], sample_corpus: str, ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, corpus, out = f"model={models['a']}", f"corpus={sample_corpus}", f"out={tmp_path / 'out'}"
    foreign = made_model(tmp_path / "foreign", "multilabel", recipe={"rate_hz": 250})
    for overrides, code, message in (
        ((corpus,), 2, "which model?"),
        ((model,), 2, "set one of corpus=PATH and files=PATH"),
        ((model, corpus, f"files={ward}"), 2, "set one of corpus=PATH and files=PATH"),
        ((f"model={tmp_path}/none", corpus), 2, "there is no model at"),
        ((f"model={models['a']},{models['waves']}", corpus), 2, "are no ensemble: they differ in outputs"),
        ((f"model={foreign}", corpus), 1, "was made for another corpus recipe"),
        ((model, f"files={tmp_path}/nowhere"), 1, "no such folder or archive"),
        ((model, f"files={ward}", "source=ptbxxl"), 2, "did you mean 'ptbxl'"),
        ((model, corpus, f"out={sample_corpus}/p.csv"), 2, "lies inside the corpus"),
        ((model, corpus, "out=x.csv", "format=parquet"), 2, "name two formats"),
        ((model, corpus, "out=x.tsv"), 2, "as .parquet or .csv, or into a folder"),
        ((model, corpus, "predict.worker=2"), 2, "did you mean 'predict.workers'"),
        ((model, corpus, "predict.workers=50"), 2, "50 workers need 25 CPUs"),
    ):
        assert main(["predict", out, *overrides]) == code, overrides
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.parquet").write_text("finished")
    assert main(["predict", out, model, corpus, "overwrite=true", "predict.workers=50"]) == 2
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["finished"]
    assert job("predict", [model + ",runs/b", corpus, out]) == 2
    assert "is relative" in capsys.readouterr().err


@pytest.mark.skipif(os.environ.get("BEATRAY_CHAOS") != "1", reason="a minute: runs with BEATRAY_CHAOS=1")
def test_a_killed_command_goes_on_to_the_same_bytes(
    of_corpus: Path, models: dict[str, str], sample_corpus: str, tmp_path: Path
) -> None:
    overrides = [f"model={models['a']},{models['b']}", f"corpus={sample_corpus}", f"out={tmp_path}", "cluster.cpus=4"]
    command = [sys.executable, "-m", "beatray", "predict", *overrides, "predict.workers=2"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list(tmp_path.glob("predictions.parts/*.part"))) < 2:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "predictions.json").exists()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert files_of(tmp_path) == files_of(of_corpus)
