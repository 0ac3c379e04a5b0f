"""Tables of labels in Parquet: columns of every type, those that have no words, and text that is none."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beatray.errors import LabelError
from label_tables import read, values, written


def test_the_rows_of_a_parquet_table_are_those_of_the_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "record": [1.0, 2.0, 17.0],
            "lvef": [35.5, np.nan, 60.0],
            "ill": pd.array([True, None, False], "boolean"),
            "site": pd.Categorical(["a", "b", None]),
            "codes": [["MI", "AF"], [], None],
        }
    )
    frame.to_parquet(tmp_path / "labels.parquet")
    found = read(tmp_path / "labels.parquet", "labels.source=ptbxl")
    assert values(found, "lvef")[:3] == [35.5, None, 60.0] and values(found, "ill")[:3] == [True, None, False]
    assert values(found, "site")[:3] == [{"a"}, {"b"}, None] and values(found, "codes")[:3] == [
        {"MI", "AF"},
        set(),
        None,
    ]
    plain = frame.assign(codes=["MI|AF", "|", None]).to_csv(index=False).encode()
    packed = read(written(tmp_path, gzip.compress(plain), "labels.csv.gz"), "labels.source=ptbxl")
    for name in ("lvef", "ill", "site", "codes"):
        assert values(packed, name) == values(found, name)


def table_of(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"record": ["00001", "00002", "00017"], **columns}), folder / "t.parquet")
    return folder / "t.parquet"


def test_an_entry_of_null_in_a_list_is_refused(tmp_path: Path) -> None:
    """Neither is the rest of the list lost without a word, nor is what is unknown taken for no."""
    with pytest.raises(LabelError, match="1 lists with an entry of null"):
        read(table_of(tmp_path, codes=pa.array([["a", None], ["a", "b"], None])))


def test_values_of_every_type(tmp_path: Path) -> None:
    sites = pa.array(["a", "b", None])
    table = table_of(
        tmp_path,
        site=sites.dictionary_encode(),
        other=sites.cast(pa.large_string()),
        pair=pa.array([["a", "b"], ["b", "b"], ["a", "a"]], pa.list_(pa.string(), 2)),
        coded=pa.array([["a"], ["b", "c"], []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        half=pa.array(np.array([1.5, 2.5, 3.5], np.float16)),
    )
    found = read(table)
    assert values(found, "site")[:3] == values(found, "other")[:3] == [{"a"}, {"b"}, None]
    assert values(found, "pair")[:3] == [{"a", "b"}, {"b"}, {"a"}]
    assert values(found, "coded")[:3] == [{"a"}, {"b", "c"}, set()]
    assert values(found, "half")[:3] == [1.5, 2.5, 3.5]


WORDLESS = {
    "struct<a: int64>": pa.array([{"a": 1}, {"a": 1}, {"a": 2}]),
    "binary": pa.array([b"a", b"b", b"b"]),
    "dictionary<values=binary, indices=int32, ordered=0>": pa.array([b"a", b"b", b"b"]).dictionary_encode(),
    "fixed_size_binary[1]": pa.array([b"a", b"b", b"b"], pa.binary(1)),
    "list<element: binary>": pa.array([[b"a"], [b"b"], []]),
    "list<element: list<element: string>>": pa.array([[["a"]], [["b"]], [["b"]]]),
}


@pytest.mark.parametrize("kind", list(WORDLESS))
def test_structs_and_bytes_are_no_labels_and_no_ids(tmp_path: Path, kind: str) -> None:
    found = read(table_of(tmp_path, odd=WORDLESS[kind], ill=[True, False, None]))
    assert [column.name for column in found.targets] == ["ill"]
    (left,) = found.left_out
    assert left.name == "odd" and left.why == f"its values are {kind}, neither text nor numbers"
    for overrides in (("labels.columns=[odd]",), ("labels.types.odd=classes", "labels.columns=[odd]")):
        with pytest.raises(LabelError, match="column 'odd' is no label: its values are"):
            read(tmp_path / "t.parquet", *overrides)
    for key in ("key", "patient"):
        with pytest.raises(LabelError, match=f"column 'odd' is read as ids.*write them as text.*labels.{key}=COLUMN"):
            read(tmp_path / "t.parquet", f"labels.{key}=odd")


@pytest.mark.parametrize("encode", [False, True])
def test_text_that_is_no_utf8_is_refused_with_its_column(tmp_path: Path, encode: bool) -> None:
    raw = pa.array([b"M\xfcller", b"b", b"b"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = table_of(tmp_path, name=text.dictionary_encode() if encode else text, ill=[True, False, None])
    with pytest.raises(LabelError, match=r"t\.parquet: column 'name' holds .* no UTF-8: write the table again"):
        read(table)
