"""Messages about tables of labels show no key that may be an id where the corpus hides whose its recordings are."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatray.corpus.id_key import RECIPE_KEY, IdKey
from beatray.errors import LabelError
from label_tables import index_of, read, values, written

SECRET = b"0123456789abcdef-secret"


def test_no_message_shows_an_id_where_ids_are_hashed(tmp_path: Path) -> None:
    id_key = IdKey(SECRET)
    index = index_of(["files/a", "files/b"], [f"files/{id_key.hashed('1234')}", f"files/{id_key.hashed('77')}"])
    secret = written(tmp_path, SECRET, "id-key")
    for rows in ("1234,1\n77,0\n9999,1\n", "1234,1\n1234,0\n", "9998,1\n9999,1\n"):
        with pytest.raises(LabelError) as refused:
            overrides = (f"labels.id_key_file={secret}", "labels.key_kind=patient")
            read(
                written(tmp_path, f"mrn,ill\n{rows}"), *overrides, index=index, recipe={RECIPE_KEY: id_key.fingerprint}
            )
        message = str(refused.value)
        assert "in rows " in message and not any(shown in message for shown in ("1234", "999", id_key.hashed("1234")))


@pytest.mark.parametrize("column", ["mrn", "id", "Fallnr", "file"])
def test_no_message_shows_what_may_be_an_id(tmp_path: Path, column: str) -> None:
    """Hashed, or dropped at ingest; where the column's name says that it holds files, they are shown."""
    id_key = IdKey(SECRET)
    secret = written(tmp_path, SECRET, "id-key")
    table = written(tmp_path, f"{column},ill\n5551234,1\n5551235,0\n")
    hashed = index_of(["files/a", "files/b"], [f"files/{id_key.hashed('1')}", f"files/{id_key.hashed('2')}"])
    for index, overrides, recipe in (
        (hashed, [f"labels.id_key_file={secret}"], {RECIPE_KEY: id_key.fingerprint}),
        (index_of(["files/a", "files/b"], [None, None]), [], {}),
    ):
        with pytest.raises(LabelError) as refused:
            read(table, *overrides, index=index, recipe=recipe)
        assert ("5551234" in str(refused.value)) == (column == "file")


def test_files_of_folders_that_the_corpus_does_not_know_apart_are_refused(tmp_path: Path) -> None:
    index = index_of(["files/0001", "files/0002"], [None, None])
    assert values(read(written(tmp_path, "file,ill\na/0001.xml,1\na/0002.xml,0\n"), index=index), "ill") == [
        True,
        False,
    ]
    with pytest.raises(LabelError, match=r"a/0001\.xml and b/0002\.xml lie in folders .*\(a and b\)"):
        read(written(tmp_path, "file,ill\na/0001.xml,1\nb/0002.xml,0\n"), index=index)


@pytest.mark.parametrize("column", ["id", "file"])
def test_names_of_folders_may_be_ids(tmp_path: Path, column: str) -> None:
    id_key = IdKey(SECRET)
    hashed = index_of(["files/0001", "files/0002"], [f"files/{id_key.hashed(each)}" for each in ("smith", "jones")])
    overrides = f"labels.id_key_file={written(tmp_path, SECRET, 'id-key')}"
    table = written(tmp_path, f"{column},ill\nsmith/0001.xml,1\njones/0002.xml,0\n")
    with pytest.raises(LabelError, match="lie in folders that the corpus does not know apart") as refused:
        read(table, overrides, index=hashed, recipe={RECIPE_KEY: id_key.fingerprint})
    assert ("the files of row 1 and of row 2 lie" in str(refused.value)) == (column == "id")
    assert ("smith" in str(refused.value)) == (column == "file")
