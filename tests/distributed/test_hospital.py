"""A hospital's way, whole: its DICOM and XML files and a table -> a corpus -> a model made from the bundled encoder ->
answers on new files."""

from __future__ import annotations

import csv
import json
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
    lines, visits = ["file;normal"], ["mrn;seen;normal"]
    for number in range(KNOWN):
        name = f"ecg-{number:03}.{'dcm' if number % 2 else 'xml'}"
        (archive / name).write_bytes(file_of(counts[number], number, name.partition(".")[2]))
        lines.append(f"{name};{int(normal[number]) if number % 10 else ''}")  # of a tenth nobody knows
        visits.append(f"PAT-{number:04};17.02.2024 09:40;{int(normal[number]) if number % 10 else ''}")
        visits.append(f"PAT-{number:04};27.02.2024 11:00;{int(not normal[number])}")  # ten days later all is different
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "visits.csv").write_text("\n".join(visits) + "\n")
    (tmp_path / "id-key").write_text("a secret of the hospital, kept elsewhere")
    for number in range(KNOWN, KNOWN + NEW):
        (ward / f"new-{number}.xml").write_bytes(file_of(counts[number], number, "philips.xml"))
    (ward / "letter.txt").write_text("Dear colleague")

    corpus, runs = f"corpus={tmp_path / 'corpus'}", f"out={tmp_path / 'runs'}"
    id_key = str(tmp_path / "id-key")
    by_time = (
        "labels.time=seen",
        "labels.time_format=%d.%m.%Y %H:%M",
        "labels.window=2d",
        f"labels.id_key_file={id_key}",
    )
    assert main(["ingest", f"files={archive}", "--id-key-file", id_key, "--out", str(tmp_path / "corpus")]) == 0
    found = []
    for table, more in (("labels", ()), ("visits", by_time)):
        written = ("--json", str(tmp_path / "found.json"))
        assert main(["labels", "check", str(tmp_path / f"{table}.csv"), corpus, *SPLIT, *more, *written]) == 0
        found.append(json.loads((tmp_path / "found.json").read_text()))
    assert found[0]["rows_matched"] == KNOWN and found[1]["times"]["recordings_labelled"] == KNOWN - KNOWN // 10
    assert found[0]["columns"] == found[1]["columns"]  # by patient and time as by name, split by split
    output = capsys.readouterr().out
    assert all(text not in output for text in (PERSON["name"], "PAT-0", "2024"))

    labels = (f"labels={tmp_path / 'visits.csv'}", *by_time)
    small = ("trained=head", "train.epochs=4", "train.batch_size=16", "train.workers=1", "tracking.uri=null")
    assert main(["finetune", "encoder=beatray-small", corpus, runs, "run=normal", *labels, *small, *SPLIT]) == 0
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
