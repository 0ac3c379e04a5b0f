"""What the classification asks for: which codes of a recording make which class.

PTB-XL: its 71 SCP-ECG codes (Wagner et al., Sci Data 7:154, 2020) are read in six ways, as in the published benchmark
(Strodthoff et al., IEEE JBHI 25:1519, 2021): `superdiagnostic` (5 classes), `subdiagnostic` (23), `diagnostic` (44
codes), `form` (19), `rhythm` (12) and `all` (71). A code counts whenever its key is present, whatever its likelihood,
and a recording without any class of the space is left out.

`snomed`: the codes of the PhysioNet/CinC Challenge sets. Codes that the Challenge of 2021 scores as one diagnosis are
one class here (Reyna et al., CinC 48, 2021). The classes are those that it scores (`scored`), or all codes that occur
(`counted`), in both cases only with at least `min_positives` recordings in the training part: a space is fitted to
training labels and named before a test label is read.

Contract: classes are in alphabetical order; a code has one class or none; targets are (n, c) bool. The tables lie in
`data/` with their sources.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

PTBXL_SPACES = ("superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all")
SPACES = (*PTBXL_SPACES, "snomed")
TABLE = "table"
"""The name for a table of the user's own: see `own_labels`."""
SNOMED_CLASSES = ("scored", "counted")

TITLES = {
    "superdiagnostic": "PTB-XL superclasses",
    "subdiagnostic": "PTB-XL subclasses",
    "diagnostic": "PTB-XL diagnostic codes",
    "form": "PTB-XL form codes",
    "rhythm": "PTB-XL rhythm codes",
    "all": "PTB-XL, all codes",
    "snomed": "CinC SNOMED codes",
}


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """A set of classes and the codes that make them; `left_out` names classes with too few training recordings."""

    name: str
    classes: tuple[str, ...]
    class_of_code: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For tables and pictures."""
        return TITLES[self.name]

    def targets(self, labels: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """Multi-hot (n, c); codes without a class are passed over."""
        column = {name: position for position, name in enumerate(self.classes)}
        targets = np.zeros((len(labels), len(self.classes)), bool)
        for row, codes in enumerate(labels):
            for code in codes:
                name = self.class_of_code.get(code)
                if name is not None:
                    targets[row, column[name]] = True
        return targets


def label_space(
    name: str, train_labels: Sequence[Sequence[str]] = (), min_positives: int = 20, snomed_classes: str = "scored"
) -> LabelSpace:
    """The space `name`; `snomed` is fitted to the training labels. Raises ValueError for an unknown name."""
    if name in PTBXL_SPACES:
        return _ptbxl(name)
    if name == "snomed":
        return _snomed(train_labels, min_positives, snomed_classes)
    raise ValueError(f"unknown label space {name!r}; known are {', '.join(SPACES)}")


def superclass_targets(labels: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Multi-hot (n, 5) of the PTB-XL superclasses CD, HYP, MI, NORM, STTC."""
    return _ptbxl("superdiagnostic").targets(labels)


@cache
def _ptbxl(name: str) -> LabelSpace:
    rows = _table("scp_codes.csv")
    if name == "superdiagnostic":
        class_of_code = {row["code"]: row["diagnostic_class"] for row in rows}
    elif name == "subdiagnostic":
        class_of_code = {row["code"]: row["diagnostic_subclass"] for row in rows}
    else:
        marks = {"diagnostic": ("diagnostic_class",), "form": ("form",), "rhythm": ("rhythm",)}
        statements = marks.get(name, ("diagnostic_class", "form", "rhythm"))
        class_of_code = {row["code"]: row["code"] for row in rows if any(row[mark] for mark in statements)}
    class_of_code = {code: found for code, found in class_of_code.items() if found}
    return LabelSpace(name, tuple(sorted(set(class_of_code.values()))), class_of_code)


def _snomed(train_labels: Sequence[Sequence[str]], min_positives: int, which: str) -> LabelSpace:
    if which not in SNOMED_CLASSES:
        raise ValueError(f"unknown choice of SNOMED classes {which!r}; known are {', '.join(SNOMED_CLASSES)}")
    scored = {row["code"]: row["class"] for row in _table("cinc2021_scored.csv")}
    class_of_code = dict(scored)
    if which == "counted":
        class_of_code |= {c: c for codes in train_labels for c in codes if c.isdigit() and c not in scored}
    positives: Counter[str] = Counter()
    for codes in train_labels:
        positives.update({class_of_code[code] for code in codes if code in class_of_code})
    names = sorted(set(class_of_code.values()))
    kept = tuple(name for name in names if positives[name] >= max(1, min_positives))
    return LabelSpace(
        "snomed",
        kept,
        {code: name for code, name in class_of_code.items() if name in kept},
        tuple(name for name in names if name not in kept),
    )


def _table(name: str) -> list[dict[str, str]]:
    text = files("beatray.evaluate").joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
