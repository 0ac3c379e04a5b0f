"""The bundled code tables against the published ones, and targets against a plain reading of the database."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beatray.evaluate.label_spaces import PTBXL_SPACES, label_space, superclass_targets
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree

SIZES = {"superdiagnostic": 5, "subdiagnostic": 23, "diagnostic": 44, "form": 19, "rhythm": 12, "all": 71}
FOLDS_OF_1_0_1 = (17441, 2193, 2203)  # folds 1-8, 9, 10


@pytest.fixture(scope="module")
def statements(data_dir: Path) -> pd.DataFrame:
    return pd.read_csv(data_dir / "ptbxl" / "scp_statements.csv", index_col=0)


def test_the_spaces_are_those_of_the_published_table(statements: pd.DataFrame) -> None:
    diagnostic = statements[statements["diagnostic"] == 1]
    expected = {
        "superdiagnostic": diagnostic["diagnostic_class"].to_dict(),
        "subdiagnostic": diagnostic["diagnostic_subclass"].to_dict(),
        "diagnostic": {code: code for code in diagnostic.index},
        "form": {code: code for code in statements.index[statements["form"] == 1]},
        "rhythm": {code: code for code in statements.index[statements["rhythm"] == 1]},
        "all": {code: code for code in statements.index},
    }
    for name in PTBXL_SPACES:
        space = label_space(name)
        assert dict(space.class_of_code) == expected[name], name
        assert space.classes == tuple(sorted(set(expected[name].values()))), name


def test_sizes_of_the_spaces_and_of_the_superclasses() -> None:
    assert {name: len(label_space(name).classes) for name in PTBXL_SPACES} == SIZES
    of_code = label_space("superdiagnostic").class_of_code
    assert {name: list(of_code.values()).count(name) for name in label_space("superdiagnostic").classes} == {
        "NORM": 1, "MI": 14, "STTC": 13, "CD": 11, "HYP": 5,
    }  # fmt: skip


def test_class_counts_and_fold_sizes_equal_a_plain_reading_of_the_database(data_dir: Path, ptbxl_dir: Path) -> None:
    """Counted twice: from the records that the reader gives, and from the csv itself."""
    table = pd.read_csv(ptbxl_dir / "ptbxl_database.csv")
    statements = pd.read_csv(data_dir / "ptbxl" / "scp_statements.csv", index_col=0)
    table = table[~table["ecg_id"].isin((137, 139, 140, 141, 142, 143, 145, 456, 458, 459, 461, 462))]
    codes = [set(ast.literal_eval(text)) for text in table["scp_codes"]]
    tree = open_tree(str(ptbxl_dir))
    items = [item for item in SOURCES["ptbxl"].find(tree) if "refused" not in item.meta]
    labels = [tuple(item.meta["labels"].split()) for item in items]
    assert len(items) == len(table) > 400
    folds = np.bincount([int(item.meta["fold"]) for item in items], minlength=11)
    assert folds.tolist() == np.bincount(table["strat_fold"], minlength=11).tolist()
    superclass = statements.loc[statements["diagnostic"] == 1, "diagnostic_class"]
    subclass = statements.loc[statements["diagnostic"] == 1, "diagnostic_subclass"]
    plain = {
        "superdiagnostic": lambda found, name: any(superclass.get(code) == name for code in found),
        "subdiagnostic": lambda found, name: any(subclass.get(code) == name for code in found),
        "form": lambda found, name: name in found and statements.loc[name, "form"] == 1,
        "all": lambda found, name: name in found,
    }
    for name, has in plain.items():
        space = label_space(name)
        expected = [sum(has(found, each) for found in codes) for each in space.classes]
        assert space.targets(labels).sum(axis=0).tolist() == expected, name


def test_fold_sizes_of_the_whole_database(data_dir: Path) -> None:
    """The published sizes, where the folder holds release 1.0.1 whole."""
    folds = pd.read_csv(data_dir / "ptbxl" / "ptbxl_database.csv")["strat_fold"]
    if len(folds) != sum(FOLDS_OF_1_0_1):
        pytest.skip(f"needs all 21,837 rows of release 1.0.1, the folder has {len(folds)}")
    assert ((folds <= 8).sum(), (folds == 9).sum(), (folds == 10).sum()) == FOLDS_OF_1_0_1


def test_targets_are_multi_hot_and_pass_over_other_codes() -> None:
    targets = superclass_targets([("NORM", "SR"), ("IMI", "LVH", "AFIB"), (), ("PACE", "SBRAD")])
    expected = [[0, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert targets.astype(int).tolist() == expected


def test_snomed_classes_need_training_recordings_and_join_codes_scored_alike() -> None:
    train = [("59118001", "426783006"), ("713427006",), ("426783006",), ("999999999",), ("999999999", "164889003")]
    scored = label_space("snomed", train, min_positives=2)
    assert scored.classes == ("CRBBB|RBBB", "NSR")
    assert len(scored.classes) + len(scored.left_out) == 26 and "AF" in scored.left_out
    assert scored.targets([("59118001",), ("164889003",), ("426783006", "713427006")]).astype(int).tolist() == [
        [1, 0], [0, 0], [1, 1],
    ]  # fmt: skip
    counted = label_space("snomed", train, min_positives=2, snomed_classes="counted")
    assert counted.classes == ("999999999", "CRBBB|RBBB", "NSR")


def test_codes_of_real_challenge_recordings_find_their_classes(data_dir: Path) -> None:
    tree = open_tree(str(data_dir / "misc" / "cinc2021_samples"))
    source = SOURCES["cinc"]
    labels = {item.name: next(iter(source.read(tree, item))).labels for item in source.find(tree)}
    space = label_space("snomed", list(labels.values()), min_positives=1)
    found = {
        name: [space.classes[k] for k in np.flatnonzero(row)]
        for name, row in zip(labels, space.targets(list(labels.values())), strict=True)
    }
    assert found["A0001"] == ["CRBBB|RBBB"] and found["E00001"] == ["NSR"] and found["JS01048"] == ["SB"]
    assert found["A0004"] == ["AF"] and found["S0001"] == ["LQRSV", "NSR"] and found["Q0010"] == ["PVC|VPB"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown label space 'super'; known are superdiagnostic"):
        label_space("super")
    with pytest.raises(ValueError, match="scored, counted"):
        label_space("snomed", [], 1, "all")
