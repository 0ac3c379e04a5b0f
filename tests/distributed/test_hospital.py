"""A hospital's way, whole: its DICOM and XML files and a table -> a corpus -> a model made from the bundled encoder ->
answers on new files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import beatray
from beatray.cli import main
from beatray.ingest.plan import SAMPLE
from device_files import PERSON, aecg_xml, dicom, dicom_group, philips_xml
from evaluation_rows import read_rows

pytestmark = pytest.mark.ray

KNOWN, NEW = 60, 6
SPLIT = ("corpus.hashed_test_sources=[files]", "corpus.validation_folds=[]", "corpus.test_folds=[]")


@pytest.fixture(scope="module")
def ecgs() -> tuple[NDArray[np.int64], list[bool]]:
    """Recordings (n, 5000, 12) in microvolts, as whole counts, and whether each is called normal.

    They are of PTB-XL, weaker by a tenth: as they are, many of them trained the encoder, and none may test it.
    """
    rows = read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), KNOWN + NEW))
    counts = np.round(0.9 * rows.signal_uv.transpose(0, 2, 1)).astype(np.int64)
    return counts, ["NORM" in str(labels) for labels in rows.labels]


def file_of(counts: NDArray[np.int64], number: int, device: str) -> bytes:
    """A recording as the device writes it, of a patient of its own."""
    made = {
        "dcm": lambda: dicom([dicom_group(counts)]),
        "xml": lambda: aecg_xml(counts),
        "philips.xml": lambda: philips_xml(counts, compression=None),
    }[device]()
    return made.replace(PERSON["id"].encode(), f"PAT-{number:04}".encode())


def test_from_the_files_of_a_hospital_to_answers_on_new_ones(
    ecgs: tuple[NDArray[np.int64], list[bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, normal = ecgs
    archive, ward = tmp_path / "archive", tmp_path / "ward"
    archive.mkdir()
    ward.mkdir()
    lines = ["file;normal"]
    for number in range(KNOWN):
        name = f"ecg-{number:03}.{'dcm' if number % 2 else 'xml'}"
        (archive / name).write_bytes(file_of(counts[number], number, name.partition(".")[2]))
        lines.append(f"{name};{int(normal[number]) if number % 10 else ''}")  # of a tenth nobody knows
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    for number in range(KNOWN, KNOWN + NEW):
        (ward / f"new-{number}.xml").write_bytes(file_of(counts[number], number, "philips.xml"))
    (ward / "letter.txt").write_text("Dear colleague")

    corpus, runs = f"corpus={tmp_path / 'corpus'}", f"out={tmp_path / 'runs'}"
    labels = f"labels={tmp_path / 'labels.csv'}"
    assert main(["ingest", f"files={archive}", "--out", str(tmp_path / "corpus")]) == 0
    assert main(["labels", "check", str(tmp_path / "labels.csv"), corpus, *SPLIT]) == 0
    output = capsys.readouterr().out
    assert f"{KNOWN} rows match" in output and PERSON["name"] not in output

    small = ("trained=head", "train.epochs=4", "train.batch_size=16", "train.workers=1", "tracking.uri=null")
    assert main(["finetune", "encoder=beatray-small", corpus, runs, "run=normal", labels, *small, *SPLIT]) == 0
    output = capsys.readouterr().out
    assert "recordings trained" in output and "test auroc" in output

    model = tmp_path / "runs" / "normal"
    out = tmp_path / "answers.parquet"
    assert main(["predict", f"model={model}", f"files={ward}", f"out={out}"]) == 0
    table = pq.read_table(out).to_pandas()
    assert len(table) == NEW and all(str(name).startswith("new-") for name in table["record_id"].str.split("/").str[-1])
    loaded = beatray.load_model(str(model))
    expected = loaded.predict(counts[KNOWN:].transpose(0, 2, 1) / 1000.0).probabilities
    assert expected is not None
    by_number = np.array([int(name.rpartition("-")[2]) - KNOWN for name in table["record_id"]])
    column = next(name for name in table.columns if name.startswith("probability"))
    assert np.allclose(table[column], expected[by_number, 0], atol=1e-3)
    assert len(set(np.round(expected[:, 0], 3))) > 1  # it says different things of different people
    with (tmp_path / "answers.refused.csv").open() as file:
        refused = list(csv.DictReader(file))
    assert [line["item"] for line in refused] == ["(not listed)"] and ".txt 1" in refused[0]["detail"]
