"""A model of recordings longer than 10 s is judged by what it says of them: by the means over their windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

import beatray
from beatray.errors import SettingsError
from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.finetune.finish import make_model
from beatray.finetune.prepare import Assignment, assignment
from beatray.ingest.convert import ingest
from beatray.ingest.plan import SAMPLE, IngestSettings
from beatray.models.model_folder import describe_model
from beatray.record import LEADS
from beatray.train.loop import train
from beatray.train.ranks import Ranks
from evaluation_rows import read_rows
from finetuning import spec_of
from label_tables import written

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


RECORDINGS, EACH = 14, 2
SPLIT = ("corpus.hashed_test_sources=[files]", "validation_share=0.4")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with recordings of 20 s, files/r0 and so on, and the corpus made of them."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "files").mkdir()
    signal_uv = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), RECORDINGS * EACH)).signal_uv
    for number in range(RECORDINGS):
        joined = np.concatenate(signal_uv[EACH * number : EACH * (number + 1)], axis=1)
        wfdb.wrsamp(
            f"r{number}", fs=500, units=["mV"] * 12, sig_name=list(LEADS), d_signal=joined.T.astype(np.int64),
            fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(folder / "files"),
        )  # fmt: skip
    ingest(IngestSettings({"files": str(folder / "files")}, str(folder / "corpus")))
    return folder, str(folder / "corpus")


def names_of(found: Assignment, part: str) -> list[str]:
    """The recordings of a part, each of which has all its windows there."""
    ids = found.corpus.index["record_id"].iloc[getattr(found.parts, part)].tolist()
    names = list(dict.fromkeys(name.partition("#")[0] for name in ids))
    assert len(ids) == EACH * len(names) > EACH
    return names


def test_thresholds_and_scores_are_of_recordings(long: tuple[Path, str], tmp_path: Path) -> None:
    folder, corpus = long
    drawn = np.random.default_rng(0).integers(0, 2, (RECORDINGS, 2))
    lines = [f"files/r{number},{row[0]},{row[1]}" for number, row in enumerate(drawn.tolist())]
    table = written(tmp_path, "record_id,a,b\n" + "\n".join(lines))
    spec = spec_of(corpus, tmp_path, "long", f"labels={table}", "train.epochs=1", *SPLIT)
    assert train(spec, Ranks())
    make_model(spec)
    description, found = describe_model(spec.run.location), assignment(spec.settings)
    assert spec.rows == EACH * description["records"]["train"] == EACH * sum(description["sources"].values())
    model = beatray.load_model(spec.run.location)
    for part in ("validation", "test"):
        names = names_of(found, part)
        assert description["records"][part] == len(names)
        truth = drawn[[int(name.partition("/r")[2]) for name in names]] > 0
        chance = model.predict_proba([wfdb.rdrecord(str(folder / name)).p_signal.T for name in names])
        scores = description["scores"][part]
        assert scores["auroc"]["value"] == pytest.approx(macro_auroc(truth, chance).value)
        likelihood = np.where(truth, chance, 1 - chance)
        assert scores["calibration"]["nll"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)
        if part == "validation":
            np.testing.assert_allclose(description["thresholds"], best_thresholds(truth, chance), rtol=1e-4)


def test_a_refusal_names_why_no_patient_is_left_to_train_on(long: tuple[Path, str], tmp_path: Path) -> None:
    """Every recording has two rows, so one row is no whole patient."""
    corpus = long[1]
    names = [f"files/r{number}" for number in range(RECORDINGS)]
    table = written(tmp_path, "\n".join(["record_id,all", *(f"{name},{k}" for k, name in enumerate(names))]))
    overrides = (f"labels={table}", "labels.key=record_id", "task=regress", *SPLIT)
    with pytest.raises(SettingsError, match=r"corpus\.most_recordings=1 holds no whole patient of the \d+ recordings"):
        spec_of(corpus, tmp_path, "few", *overrides, "corpus.most_recordings=1")
    tested = names_of(assignment(spec_of(corpus, tmp_path, "all", *overrides).settings), "test")
    rows = [f"{name},{k},{k if name in tested else ''}" for k, name in enumerate(names)]
    written(tmp_path, "\n".join(["record_id,all,tested", *rows]))
    with pytest.raises(SettingsError, match=r"tested is known in none of the \d+ recordings to train on"):
        spec_of(corpus, tmp_path, "numbers", *overrides)
