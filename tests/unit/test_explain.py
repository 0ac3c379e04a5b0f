"""`beatray ingest explain` and `--dry-run`: every check in order, nothing personal, nothing written, no Ray."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import device_files as made
from array_files import code15_part, mat, npy
from beatray.cli import main
from beatray.commands.explain import REMEDIES
from beatray.dsp.analyse import AnalysisSettings
from beatray.ingest.plan import IngestSettings, list_items, plan, recipe_of
from beatray.record import Reason
from wfdb_files import ecg_counts, mat4, write_record

COUNTS = ecg_counts(5000)
FILES = {
    "a.dcm": lambda: made.dicom([made.dicom_group(COUNTS)]),
    "a.scp": lambda: made.scp_record(made.scp_bodies(COUNTS)),
    "c.xml": lambda: made.aecg_xml(COUNTS),
    "p.xml": lambda: made.philips_xml(COUNTS),
    "s.xml": lambda: made.schiller_xml(COUNTS),
    "m.xml": lambda: made.muse_xml(COUNTS),
    "a.edf": lambda: made.edf(COUNTS),
}
CHECKS = ("format", "leads", "gaps", "age and sex", "amplitudes", "windows", "quality", "R-peaks")


def explain(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str]:
    code = main(["ingest", "explain", *map(str, args)])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_explained_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name]())
    code, output = explain(capsys, tmp_path / name)
    lines = output.splitlines()
    assert code == 0 and lines[-1] == "would be kept as 1 row"
    assert all(line.startswith("  ok ") for line in lines[1:-1])
    checks = [line[10:30].strip() for line in lines[1:-1]]
    positions = [next(k for k, check in enumerate(checks) if check.startswith(what)) for what in CHECKS]
    assert positions == sorted(positions) and positions[0] == 0
    assert (
        "recognised by its content" in lines[1] and "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6" in output
    ) or "V1 V2 V3" in output
    assert "10 in 10 s" in output  # R-peaks of one beat per second
    for secret in (made.PERSON["name"], made.PERSON["id"], made.PERSON["born"], made.PERSON["taken"], "1964"):
        assert secret not in output


def test_wfdb_and_members_of_folders_and_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    write_record(tmp_path / "set", "r", COUNTS)
    code, plain = explain(capsys, tmp_path / "set" / "r.hea")
    assert code == 0 and "checksums" in plain
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        for path in (tmp_path / "set").iterdir():
            packed.write(path, f"deep/{path.name}")
    for path, member in ((tmp_path / "set", "r.hea"), (tmp_path / "set.zip", "deep/r.hea")):
        code, output = explain(capsys, path, member)
        assert code == 0 and output.splitlines()[1:] == plain.splitlines()[1:]
    assert main(["ingest", "explain", str(tmp_path / "set.zip")]) == 2
    assert "holds 2 files; name one" in capsys.readouterr().err


def test_a_refusal_names_the_reason_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.edf").write_bytes(made.edf(COUNTS)[:-1])
    code, output = explain(capsys, tmp_path / "a.edf")
    assert code == 1
    assert output.splitlines()[-1] == f"refused: truncated. What to do: {REMEDIES[Reason.TRUNCATED]}"
    assert "  refused truncated" in output and "  ok      leads" in output  # what was right until then is reported, too
    (tmp_path / "flat.edf").write_bytes(made.edf(np.zeros((5000, 12), np.int64)))
    code, output = explain(capsys, tmp_path / "flat.edf")
    assert code == 1 and "refused: flat" in output
    (tmp_path / "x.bdf").write_bytes(b"\xffBIOSEMI" + bytes(100))
    code, output = explain(capsys, tmp_path / "x.bdf")
    assert code == 1 and "looks like BDF" in output


def test_a_fault_of_a_reader_is_reported_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.edf").write_bytes(made.edf(COUNTS))

    def broken(*_: object) -> None:
        raise ZeroDivisionError(made.PERSON["name"])

    monkeypatch.setattr("beatray.ingest.formats.edf._about", broken)
    code, output = explain(capsys, tmp_path / "a.edf")
    assert code == 1 and "reader_fault" in output and made.PERSON["name"] not in output


@pytest.mark.parametrize("args", [[], ["a", "b", "c"], ["nowhere.dcm"], [""]])
def test_wrong_words(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "explain", *args]) == 2
    assert "explain" in capsys.readouterr().err or args == ["nowhere.dcm"]


def test_every_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason)


@pytest.mark.parametrize("path", ["dicom/sample_12lead_500Hz.dcm", "philips_xml/129DYPRG.XML", "ptbdb/s0010_re.hea"])
def test_real_files(data_dir: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    code, output = explain(capsys, data_dir / "misc" / path)
    assert code == 0 and "would be kept as " in output


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, build in FILES.items():
        if name != "a.scp":  # shares its name with a.dcm
            (root / name.replace("a.edf", "e.edf")).write_bytes(build())
    (root / "notes.txt").write_text("x")
    (root / "cut.scp").write_bytes(FILES["a.scp"]()[:-3])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["ingest", f"files={root}", "--out", str(tmp_path / "c"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "recordings  7 (DICOM 1, EDF 1, HL7 aECG 1, MUSE XML 1, Philips XML 1, SCP-ECG 1, Schiller XML 1)" in output
    assert "known       0 in the corpus or refused before; 7 would be read" in output
    assert "not listed  1 files are of no known format, by suffix: .txt 1" in output
    assert "from 7 recordings read: 6 rows, refused truncated 1" in output
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_dry_run_knows_what_the_corpus_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from beatray.corpus.manifest import Manifest, Shard, write_manifest
    from beatray.ingest.slices import convert_slice
    from beatray.storage.store import Store

    root, out = tmp_path / "in", tmp_path / "c"
    root.mkdir()
    write_record(root, "r1", COUNTS)
    settings = IngestSettings({"wfdb": str(root)}, str(out))
    (part,) = plan(settings, recipe_of(settings), list_items(settings), set())
    (shard,) = convert_slice(Store(str(out)), part, AnalysisSettings()).shards
    made_of = Shard(**{**shard, "row_groups": tuple(shard["row_groups"])})
    write_manifest(Store(str(out)), Manifest(0, recipe_of(settings), (made_of,), {}, {}))
    write_record(root, "r2", ecg_counts(5000, seed=2))
    assert main(["ingest", f"wfdb={root}", "--out", str(out), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "manifest 0" in output and "known       1 in the corpus or refused before; 1 would be read" in output
    assert "(WFDB 2)" in output
    (tmp_path / "id-key").write_bytes(b"0123456789abcdef")
    args = ["ingest", f"wfdb={root}", "--out", str(out), "--dry-run", "--id-key-file", str(tmp_path / "id-key")]
    assert main(args) == 1
    assert "without an id key" in capsys.readouterr().err


def test_neither_starts_nor_imports_ray(tmp_path: Path) -> None:
    (tmp_path / "a.edf").write_bytes(made.edf(COUNTS))
    code = (
        "import sys; from beatray.cli import main\n"
        f"assert main(['ingest', 'explain', {str(tmp_path / 'a.edf')!r}]) == 0\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    code = code.replace(
        f"'explain', {str(tmp_path / 'a.edf')!r}", f"'files={tmp_path}', '--dry-run', '--out', 'nowhere'"
    )
    subprocess.run([sys.executable, "-c", code.replace("'ray' not in sys.modules and ", "")], check=True, cwd=tmp_path)
    assert shutil.which("ray") is None or not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("A1.mat", lambda: mat(ECG={"sex": "Male", "data": np.ones((12, 50))}), "beatray ingest cpsc=FOLDER"),
        ("A1.mat", lambda: mat(val=np.ones((12, 50)), fs=500.0), "a MATLAB file with val (12 x 50), fs (1 x 1), of no"),
        (
            "A1.mat",
            lambda: mat4(COUNTS),
            "a MATLAB level 4 matrix, the signal file of a WFDB record as in",
        ),
        ("A1.mat", lambda: mat4(COUNTS), "its header A1.hea, which gives leads, gain and rate, is missing beside it"),
        ("A1.mat", lambda: b"MATLAB 7.3 MAT-file, Platform" + bytes(600), "save it again with -v7"),
        ("A1.mat", lambda: mat(ECG={"data": np.ones((12, 50))})[:-9], "a MATLAB level 5 file that cannot be read"),
        ("a.dat", lambda: bytes(600), "its header a.hea is missing beside it"),
        ("a.npy", lambda: npy(np.ones((12, 50))), "beatray ingest arrays=FOLDER"),
    ],
)
def test_a_file_that_is_no_recording_by_itself_names_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Callable[[], bytes], message: str
) -> None:
    (tmp_path / name).write_bytes(content())
    code, output = explain(capsys, tmp_path / name)
    assert code == 1 and output.splitlines()[-1].startswith("not read by itself: ") and message in output
    assert "Male" not in output


def test_signal_files_send_to_their_header_and_hdf5_to_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path, "r", COUNTS)
    assert "give its header, r.hea, instead" in explain(capsys, tmp_path / "r.dat")[1]
    code15_part(tmp_path / "exams_part0.hdf5", [7], [np.ones((2934, 12))])
    assert (
        "beatray ingest code15=FOLDER` (FOLDER: where it lies), with exams.csv"
        in explain(capsys, tmp_path / "exams_part0.hdf5")[1]
    )
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        packed.write(tmp_path / "exams_part0.hdf5", "other.hdf5")
    assert "beatray ingest code15=FOLDER" in explain(capsys, tmp_path / "set.zip")[1]
