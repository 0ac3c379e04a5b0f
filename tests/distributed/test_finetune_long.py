"""A model of recordings longer than 10 s is judged by what it says of them: by the means over their windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

import beatray
from beatray.evaluate.metrics import best_thresholds, macro_auroc
from beatray.finetune.finish import make_model
from beatray.finetune.prepare import assignment
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


def test_thresholds_and_scores_are_of_recordings(tmp_path: Path) -> None:
    files, corpus = tmp_path / "files", str(tmp_path / "corpus")
    files.mkdir()
    signal_uv = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 28)).signal_uv
    for number in range(14):
        long = np.concatenate(signal_uv[2 * number : 2 * number + 2], axis=1)
        wfdb.wrsamp(
            f"r{number}", fs=500, units=["mV"] * 12, sig_name=list(LEADS), d_signal=long.T.astype(np.int64),
            fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(files),
        )  # fmt: skip
    ingest(IngestSettings({"files": str(files)}, corpus))
    drawn = np.random.default_rng(0).integers(0, 2, (14, 2))
    lines = [f"files/r{number},{row[0]},{row[1]}" for number, row in enumerate(drawn.tolist())]
    table = written(tmp_path, "record_id,a,b\n" + "\n".join(lines))
    words = ("corpus.hashed_test_sources=[files]", "train.epochs=1", "validation_share=0.4")
    spec = spec_of(corpus, tmp_path, "long", f"labels={table}", *words)
    assert train(spec, Ranks())
    make_model(spec)

    description, found = describe_model(spec.run.location), assignment(spec.settings)
    assert spec.rows == 2 * description["records"]["train"] == 2 * sum(description["sources"].values())
    model = beatray.load_model(spec.run.location)
    for part in ("validation", "test"):
        ids = found.corpus.index["record_id"].iloc[getattr(found.parts, part)]
        names = list(dict.fromkeys(name.partition("#")[0] for name in ids))
        assert description["records"][part] == len(names) > 2 and len(ids) == 2 * len(names)
        truth = drawn[[int(name.partition("/r")[2]) for name in names]] > 0
        x_mv = [wfdb.rdrecord(str(tmp_path / name)).p_signal.T for name in names]
        chance = model.predict_proba(x_mv)
        told = description["scores"][part]
        assert told["auroc"]["value"] == pytest.approx(macro_auroc(truth, chance).value)
        likelihood = np.where(truth, chance, 1 - chance)
        assert told["calibration"]["nll"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)
        if part == "validation":
            np.testing.assert_allclose(description["thresholds"], best_thresholds(truth, chance), rtol=1e-4)
