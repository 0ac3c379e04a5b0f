"""What is replaced on request is deleted when the work that replaces it can begin, and no more than that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from beatray.bench.corpus import write_large_corpus
from beatray.cli import main
from beatray.commands.demo import MARK
from beatray.corpus.reader import open_corpus
from beatray.infer.predict import remove
from beatray.infer.prediction_paths import output_paths
from beatray.models.encoder_folder import export_encoder
from beatray.models.registry import build_encoder
from beatray.storage.store import Store
from made_models import SAMPLE, made_model

pytestmark = pytest.mark.usefixtures("one_thread")
NOWHERE = "cluster.address=127.0.0.1:9"
"""Where no Ray listens."""


def written(folder: Path, *names: str) -> set[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("finished")
    return set(names)


def there(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is joined that an earlier test of this process has left open."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def predict_command(folder: Path) -> tuple[list[str], set[str]]:
    model = made_model(folder / "model", "waves")
    out = folder / "out"
    words = ["predict", f"model={model}", f"files={SAMPLE / 'ludb-sample.zip'}", "source=ludb", f"out={out}"]
    return words, written(out, "predictions.parquet", "predictions.json", "predictions.annotations/ludb/1.waves")


def embed_command(folder: Path) -> tuple[list[str], set[str]]:
    corpus = write_large_corpus(folder / "corpus", 4, bundled=2)
    description = {"name": "tiny", "settings": {}, "recipe": open_corpus(corpus).recipe}
    export_encoder(Store(str(folder / "encoder")), build_encoder("tiny"), description, b"")
    words = ["embed", f"encoder={folder / 'encoder'}", f"corpus={corpus}", f"out={folder / 'out'}"]
    return words, written(folder / "out", "embeddings.json", "recording/a.parquet")


@pytest.mark.parametrize("command", [predict_command, embed_command])
def test_results_outlast_a_start_that_cannot_be(
    command: Callable[[Path], tuple[list[str], set[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Too few CPUs: tests/distributed/test_embed.py and test_predict.py, with a Ray."""
    words, names = command(tmp_path)
    assert main([*words, "overwrite=true", NOWHERE]) == 1
    assert "no Ray answers" in capsys.readouterr().err and there(tmp_path / "out") == names


def test_a_corpus_outlasts_a_ray_that_cannot_be_reached(tmp_path: Path) -> None:
    corpus = write_large_corpus(tmp_path / "corpus", 4, bundled=2)
    before = there(tmp_path / "corpus")
    words = ["ingest", f"ludb={SAMPLE / 'ludb-sample.zip'}", "--out", corpus, "--overwrite"]
    assert main([*words, NOWHERE]) == 1 and there(tmp_path / "corpus") == before


def test_a_demo_outlasts_a_ray_that_cannot_be_reached(tmp_path: Path) -> None:
    """What goes when one can: tests/distributed/test_demo.py."""
    made = written(tmp_path, "corpus/manifest-0.json", "runs/mine/encoder/weights", "results.json", "thesis.txt")
    (tmp_path / MARK).write_text(json.dumps({"run": "mine", "seed": 7}))
    assert main(["demo", "--out", str(tmp_path), "--overwrite", "seed=3", NOWHERE]) == 1
    assert there(tmp_path) == {*made, MARK} and json.loads((tmp_path / MARK).read_text())["seed"] == 7


def test_what_is_removed_of_a_table_is_all_that_has_its_names(tmp_path: Path) -> None:
    """Also a file where a folder of its own would be, but no folder of the user's with the name of a file."""
    written(tmp_path, "p.parquet/0", "p.annotations", "p.parts/0.part", "p.json", "p.html/x", "mine.csv")
    remove(output_paths(str(tmp_path / "p.parquet")))
    assert there(tmp_path) == {"mine.csv", "p.parquet/0", "p.html/x"}
