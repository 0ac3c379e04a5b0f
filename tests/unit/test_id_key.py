"""Patient ids: hashed under an id key, dropped without one, and nothing personal in any byte of a corpus."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import device_files as made
from beatray.cli import main
from beatray.commands.ingest import settings_from
from beatray.corpus.id_key import RECIPE_KEY, IdKey, read_id_key
from beatray.corpus.manifest import Manifest, Shard, write_manifest
from beatray.corpus.reader import open_corpus
from beatray.dsp.analyse import AnalysisSettings
from beatray.errors import CorpusError, SettingsError
from beatray.ingest.convert import ingest
from beatray.ingest.patients import protect
from beatray.ingest.plan import IngestSettings, list_items, plan, recipe_of
from beatray.ingest.slices import SliceResult, convert_slice
from beatray.models.encoder_folder import check_recipe
from beatray.record import Record
from beatray.schema import warn_renamed
from beatray.storage.store import Store
from wfdb_files import ecg_counts

ID_KEY = IdKey(b"0123456789abcdef-secret")
COUNTS = [ecg_counts(3000, seed=seed) for seed in range(7)]


def record(patient: str | None, *, private: bool, source: str = "files") -> Record:
    signal = np.zeros((12, 3000))
    return Record("files/x", source, signal, 500.0, patient_id=patient, patient_is_private=private)


def test_salted_ids() -> None:
    found, dropped = protect(record("files/PAT-4711", private=True), ID_KEY)
    expected = hmac.new(ID_KEY.secret, b"PAT-4711", hashlib.sha256).digest()[:16].hex()
    assert (found.patient_id, dropped) == (f"files/{expected}", False)
    public, _ = protect(record("ptbxl/15709", private=False, source="ptbxl"), ID_KEY)
    assert public.patient_id is not None and public.patient_id.startswith("ptbxl/") and "15709" not in public.patient_id
    other, _ = protect(record("files/PAT-4711", private=True), IdKey(b"another key of 16 bytes"))
    assert other.patient_id != found.patient_id
    assert protect(record(None, private=False), ID_KEY)[0].patient_id is None


def test_without_a_salt_private_ids_go_and_public_ones_stay() -> None:
    assert protect(record("files/PAT-4711", private=True), None)[0].patient_id is None
    assert protect(record("files/PAT-4711", private=True), None)[1]
    kept, dropped = protect(record("ptbxl/15709", private=False), None)
    assert (kept.patient_id, dropped) == ("ptbxl/15709", False)


def test_the_salt_shows_itself_nowhere() -> None:
    assert "secret" not in repr(ID_KEY) + str(ID_KEY) + ID_KEY.fingerprint
    assert ID_KEY.secret.hex() not in ID_KEY.fingerprint and len(ID_KEY.fingerprint) == 8
    assert pickle.loads(pickle.dumps(ID_KEY)) == ID_KEY  # it goes to the tasks
    assert ID_KEY.fingerprint != IdKey(b"another key of 16 bytes").fingerprint


@pytest.mark.parametrize(("content", "good"), [(b"x" * 15, False), (b"x" * 16, True), (b"x" * 15 + b"\n\n", False)])
def test_length_of_a_salt(tmp_path: Path, content: bytes, good: bool) -> None:
    path = tmp_path / "id-key"
    path.write_bytes(content)
    if good:
        path.write_bytes(content + b"\r\n")
        assert read_id_key(str(path)) == IdKey(content)
    else:
        with pytest.raises(CorpusError, match="16 to 4096"):
            read_id_key(str(path))
    with pytest.raises(CorpusError, match="No such file"):
        read_id_key(str(tmp_path / "nowhere"))


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """Seven recordings of one person in seven formats."""
    root = tmp_path / "ward"
    root.mkdir()
    (root / "a.dcm").write_bytes(made.dicom([made.dicom_group(COUNTS[0])]))
    (root / "b.scp").write_bytes(made.scp_record(made.scp_bodies(COUNTS[1])))
    (root / "c.xml").write_bytes(made.aecg_xml(COUNTS[2]))
    (root / "d.xml").write_bytes(made.philips_xml(COUNTS[3]))
    (root / "e.xml").write_bytes(made.schiller_xml(COUNTS[4]))
    (root / "f.xml").write_bytes(made.muse_xml(COUNTS[5]))
    (root / "g.edf").write_bytes(made.edf(COUNTS[6]))
    (root / "broken.scp").write_bytes(made.scp_record(made.scp_bodies(COUNTS[1]))[:-40])
    return root


def converted(ward: Path, out: Path, id_key: IdKey | None) -> SliceResult:
    """A committed corpus without Ray: the slice is converted here and the manifest written by hand."""
    settings = IngestSettings({"files": str(ward)}, str(out))
    recipe = recipe_of(settings, id_key)
    (part,) = plan(settings, recipe, list_items(settings), set())
    store = Store(str(out))
    result = convert_slice(store, part, AnalysisSettings(), id_key)
    (stored,) = result.shards
    shard = Shard(**{**stored, "row_groups": tuple(stored["row_groups"])})
    write_manifest(store, Manifest(0, recipe, (shard,), {}, {}))
    return result


@pytest.mark.parametrize("id_key", [ID_KEY, None])
def test_no_byte_of_a_corpus_is_personal(ward: Path, tmp_path: Path, id_key: IdKey | None) -> None:
    result = converted(ward, tmp_path / "corpus", id_key)
    assert (result.read, len(result.refused)) == (8, 1)
    assert result.ids_dropped == (0 if id_key else 7)
    rows = open_corpus(str(tmp_path / "corpus")).rows()
    patients = set(open_corpus(str(tmp_path / "corpus")).index["patient_id"])
    assert len(rows) == 7
    times = open_corpus(str(tmp_path / "corpus")).acquired()
    taken = np.datetime64("2024-02-17T10:15:00")
    if id_key:
        assert len(patients) == 1  # one person, whatever the format
        moved_by_s = id_key.moved_by_s(patients.pop().partition("/")[2])
        assert moved_by_s != 0 and set(times) == {taken + np.timedelta64(moved_by_s, "s")}
    else:
        assert patients == {None} and np.isnat(times).all()
    texts = [made.PERSON[key] for key in ("name", "first", "id")]
    texts += ["19641103", "1964-11-03", "03-NOV-1964", "11-03-1964", "20240217", "2024-02-17", "17.02.24"]
    forbidden = [text.encode(code) for text in texts for code in ("utf-8", "utf-16-le")]
    forbidden += [taken.astype(f"datetime64[{unit}]").astype("<i8").tobytes() for unit in ("s", "ms", "us", "ns")]
    forbidden += [text.encode().hex().encode() for text in texts] + [ID_KEY.secret, ID_KEY.secret.hex().encode()]
    written = [path for path in (tmp_path / "corpus").rglob("*") if path.is_file()]
    assert len(written) == 3  # shard, note, manifest
    sink = pa.BufferOutputStream()  # the shard once more without compression, which could hide a word
    (shard,) = (path for path in written if path.suffix == ".parquet")
    pq.write_table(pq.read_table(shard), sink, compression="none", use_dictionary=False)
    contents = {path.name: path.read_bytes() for path in written} | {"unpacked": sink.getvalue().to_pybytes()}
    assert b"files/c" in contents["unpacked"] and b"files/c" not in contents[shard.name]
    for name, content in contents.items():
        for secret in forbidden:
            assert secret not in content and secret.upper() not in content.upper(), (name, secret)


def test_another_salt_is_refused(ward: Path, tmp_path: Path) -> None:
    """No Ray is needed: the refusal comes before anything is started."""
    out = tmp_path / "corpus"
    converted(ward, out, ID_KEY)
    for name, content in (("same", ID_KEY.secret), ("other", b"another key of 16 bytes")):
        (tmp_path / name).write_bytes(content)
    for salt_file, message in ((str(tmp_path / "other"), "fingerprint"), (None, "now none is given")):
        with pytest.raises(CorpusError, match=message) as caught:
            ingest(IngestSettings({"files": str(ward)}, str(out), id_key_file=salt_file))
        assert ID_KEY.fingerprint in str(caught.value) and "another key" not in str(caught.value)
    overrides = [
        "ingest",
        f"files={ward}",
        "--out",
        str(out),
        "--id-key-file",
        str(tmp_path / "nowhere"),
        "--overwrite",
    ]
    assert main(overrides) == 1 and (out / "manifest-0.json").exists()  # a wrong place costs no corpus
    assert recipe_of(IngestSettings({}, ""), ID_KEY)[RECIPE_KEY] == ID_KEY.fingerprint
    assert RECIPE_KEY not in recipe_of(IngestSettings({}, ""))


def test_models_do_not_mind_the_salt() -> None:
    made_for = recipe_of(IngestSettings({}, ""), ID_KEY)
    check_recipe(made_for, recipe_of(IngestSettings({}, "")), "the encoder")


def test_arguments_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id_key = tmp_path / "id-key"
    id_key.write_bytes(ID_KEY.secret)
    (tmp_path / "corpus").mkdir()
    settings, _ = settings_from([f"files={tmp_path / 'in'}"], str(tmp_path / "corpus"), str(id_key))
    assert settings.id_key_file == str(id_key)
    for inside in ("corpus/id-key", "in/id-key"):
        with pytest.raises(SettingsError, match="keep the secret away"):
            settings_from([f"files={tmp_path / 'in'}"], str(tmp_path / "corpus"), str(tmp_path / inside))
    assert main(["ingest", f"files={tmp_path / 'in'}", "--id-key-file", str(id_key), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert f"id_key_file: {id_key}" in printed and "secret" not in printed.replace(str(id_key), "")


def test_the_older_name_of_the_id_key_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "key"
    key.write_bytes(ID_KEY.secret)
    overrides = ["ingest", f"files={tmp_path / 'in'}", "--print-config"]
    assert main([*overrides, "--id-key-file", str(key)]) == 0
    now = capsys.readouterr().out
    assert not caplog.records
    warn_renamed.cache_clear()
    assert main([*overrides, "--salt-file", str(key)]) == 0
    assert capsys.readouterr().out == now and f"id_key_file: {key}" in now
    assert "--salt-file is called --id-key-file now" in caplog.text
    assert main([*overrides, f"salt_file={key}"]) == 0
    assert capsys.readouterr().out == now
    assert "salt" not in now.replace(str(tmp_path), "")
