"""Whom an encoder serves worse: its scores by age, sex and quality flag of the test recordings, and what a class hides.

One row for each group of each variant: the macro score and that of each class (AUROC) or wave (F1), on the recordings
of the group alone. Then, for classes that several codes make (PTB-XL superclasses and subclasses, SNOMED classes), one
row for each code: the recordings that carry it against those without the class, by AUROC, and the share of them that
is found at the class's threshold. A class can look fair while one of its codes is missed.

What is compared is the main protocol and fine-tuning, with the most labels that were tried, on clean recordings.
Intervals are over test patients and seeds (`intervals`); groups are small, so they are wide, and none of the rows is a
test.

Contract: `rows` is a `corpus.reader.Rows` that holds the test recordings. A group or code with fewer than `FEWEST`
recordings has no row; a class without both answers in a group has NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beatray.dsp.quality import Flag
from beatray.evaluate.detail_tables import interval_text, markdown_table
from beatray.evaluate.intervals import Interval, class_intervals, own_intervals, row_patients
from beatray.evaluate.label_spaces import SPACES, label_space
from beatray.evaluate.metrics import SegmentCounts, macro_auroc, pooled_f1
from beatray.evaluate.recordings import count
from beatray.evaluate.results import Decisions, Evaluation, Run, TaskPart, percent
from beatray.evaluate.settings import MAIN_PROTOCOL, EvaluateSettings
from beatray.record import WAVE_KINDS

if TYPE_CHECKING:
    from beatray.corpus.reader import Rows

FEWEST = 10
"""Recordings of a group or code that are worth a row."""

AGES = ((18, "under 18"), (40, "18 to 39"), (60, "40 to 59"), (80, "60 to 79"), (np.inf, "80 and over"))
"""Years below which a band ends, and its name."""

COMPARED = ("pretrained", "random", "features")
EVERYBODY = "all"
SCORED = {"classify": "AUROC of each class", "segment": "F1 of each wave"}


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of one variant: `macro` over classes or waves, and each of them in `parts`, by name."""

    task: str
    protocol: str
    fraction: float
    variant: str
    encoder: str
    group: str
    recordings: int
    macro: Interval
    parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class CodeRow:
    """One code of a class: `recordings` carry it; `found` is the share of them at or above the class's threshold."""

    protocol: str
    fraction: float
    variant: str
    encoder: str
    name: str
    code: str
    recordings: int
    auroc: Interval
    found: float


def groups_of(rows: Rows, position: int) -> list[str]:
    """The groups that one recording belongs to."""
    age, sex, flags = float(rows.age[position]), rows.sex[position], Flag(int(rows.flags[position]))
    band = next((name for below, name in AGES if age < below), "unknown")
    raised = [flag.name.lower() for flag in Flag if flag in flags and flag.name]
    return [
        EVERYBODY,
        f"age {band}",
        f"sex {sex or 'unknown'}",
        *(f"flag {name}" for name in raised or ["none"]),
    ]


def group_rows(evaluation: Evaluation, rows: Rows) -> list[GroupRow]:
    """All rows, by task, in the order of the runs, then all recordings, ages, sexes and flags."""
    found = []
    position_of = {record_id: position for position, record_id in enumerate(rows.record_id)}
    for task, part in evaluation.parts.items():
        groups = [groups_of(rows, position_of[record_id]) for record_id in part.test_ids]
        names = sorted({name for each in groups for name in each}, key=_order)
        members = {name: np.array([name in each for each in groups]) for name in names}
        for runs in _compared(evaluation, task):
            for name, inside in members.items():
                recordings = _recordings(part, inside)
                if recordings >= FEWEST:
                    macro, parts = _scores(runs, part, inside, evaluation.settings)
                    first = runs[0]
                    about = (task, first.protocol, first.fraction, first.variant, first.encoder)
                    found.append(GroupRow(*about, name, recordings, macro, parts))
    return found


def code_rows(evaluation: Evaluation, rows: Rows) -> list[CodeRow]:
    """All rows of the classification, classes in their order; empty where every class is one code, or a table's."""
    part, chosen = evaluation.parts.get("classify"), evaluation.settings.classify
    if part is None or part.truth is None or chosen.labels not in SPACES:
        return []
    labels = dict(zip(rows.record_id, rows.labels, strict=True))
    train = [labels[each] for each in part.train_ids if each in labels]
    space = label_space(chosen.labels, train, chosen.min_positives, chosen.snomed_classes)
    codes: dict[str, list[str]] = {}
    for code, name in sorted(space.class_of_code.items()):
        codes.setdefault(name, []).append(code)
    carried = [set(labels[each]) for each in part.test_ids]
    patients = np.asarray(part.test_patients, np.str_)
    found = []
    for runs in _compared(evaluation, "classify"):
        for column, name in enumerate(part.classes):
            for code in codes.get(name, []) if len(codes.get(name, [])) > 1 else []:
                has = np.array([code in each for each in carried])
                recordings = _recordings(part, has)
                if recordings < FEWEST:
                    continue
                chosen_rows = np.flatnonzero(has | (part.truth[:, column] == 0))
                outcomes = [
                    Decisions(o.scores[chosen_rows][:, [column]], o.thresholds[[column]]) for o in _decisions(runs)
                ]
                area = class_intervals(
                    outcomes, has[chosen_rows, None], patients[chosen_rows].tolist(), evaluation.settings.bootstraps
                )["auroc"][0]
                share = np.mean([(o.scores[has, column] >= o.thresholds[column]).mean() for o in _decisions(runs)])
                first = runs[0]
                about = (first.protocol, first.fraction, first.variant, first.encoder)
                found.append(CodeRow(*about, name, code, recordings, area, float(share)))
    return found


def groups_markdown(rows: Sequence[GroupRow]) -> str:
    """A table in GitHub's markdown for each task, one after the other."""
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        scored = f"{SCORED[task]} with {percent(of_task[0].fraction)} of the labels"
        note = f"{scored}. macro: their mean, with its interval over patients and seeds."
        tables.append(markdown_table(group_header(of_task), [group_cells(row) for row in of_task], note))
    return "\n".join(tables)


def group_header(rows: Sequence[GroupRow]) -> list[str]:
    """The names of `group_cells`."""
    return ["protocol", "variant", "group", "recordings", "macro [95 %]", *rows[0].parts]


def group_cells(row: GroupRow) -> list[str]:
    """One row as texts."""
    parts = ["-" if np.isnan(value) else f"{value:.3f}" for value in row.parts.values()]
    return [row.protocol, row.encoder, row.group, str(row.recordings), interval_text(row.macro), *parts]


CODE_HEADER = ("protocol", "variant", "class", "code", "recordings", "AUROC [95 %]", "found")


def code_cells(row: CodeRow) -> list[str]:
    """One row as texts."""
    return [
        row.protocol,
        row.encoder,
        row.name,
        row.code,
        str(row.recordings),
        interval_text(row.auroc),
        f"{row.found:.0%}",
    ]


def codes_markdown(rows: Sequence[CodeRow]) -> str:
    """GitHub-flavoured markdown."""
    note = (
        "AUROC: recordings with the code against those without its class. found: the share of them at or above the "
        "class's threshold, which was chosen without the test part."
    )
    return markdown_table(CODE_HEADER, [code_cells(row) for row in rows], note)


def _recordings(part: TaskPart, inside: NDArray[np.bool_]) -> int:
    """How many recordings the chosen rows of the test part belong to."""
    return count([part.test_ids[row] for row in np.flatnonzero(inside)])


def _compared(evaluation: Evaluation, task: str) -> Iterator[list[Run]]:
    """The runs of one variant, a seed each, of the protocols that are compared.

    Where random weights of several architectures were tried, the encoder of each says whose control it is.
    """
    fractions = [run.fraction for run in evaluation.runs if run.task == task]
    several = len({run.architecture for run in evaluation.runs if run.variant == "random"}) > 1
    labels: dict[str, dict[str, None]] = {}  # of the encoders, by architecture
    for run in evaluation.runs:
        if run.variant == "pretrained":
            labels.setdefault(run.architecture, {})[run.encoder] = None
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in evaluation.runs:
        if several and run.variant == "random":
            whose = ", ".join(labels.get(run.architecture, ())) or run.architecture
            run = replace(run, encoder=f"{run.encoder} ({whose})")
        if (
            run.task == task
            and run.fraction == max(fractions)
            and run.condition == "clean"
            and run.variant in COMPARED
            and run.protocol in (MAIN_PROTOCOL[task], "finetune")
        ):
            found.setdefault((run.protocol, run.variant, run.encoder), []).append(run)
    yield from found.values()


def _decisions(runs: Sequence[Run]) -> list[Decisions]:
    return [run.outcome for run in runs if isinstance(run.outcome, Decisions)]


def _scores(
    runs: Sequence[Run], part: TaskPart, inside: NDArray[np.bool_], settings: EvaluateSettings
) -> tuple[Interval, dict[str, float]]:
    """The macro score of a group and that of each class or wave, as means over seeds."""
    counts = [run.outcome for run in runs if isinstance(run.outcome, SegmentCounts)]
    patients = np.asarray(part.test_patients, np.str_)[inside].tolist()
    if counts:
        masks = len(counts[0].both) // len(inside)
        kept = np.repeat(inside, masks)
        cut = [SegmentCounts(each.both[kept], each.truth[kept], each.predicted[kept]) for each in counts]
        macro = own_intervals(cut, None, row_patients(patients, masks * len(patients)), settings.bootstraps)["f1"]
        by_wave = np.mean([pooled_f1(each).per_class for each in cut], axis=0)
        return macro, {kind: float(value) for kind, value in zip(WAVE_KINDS, by_wave, strict=True)}
    if part.truth is None:
        raise ValueError("classification scores need the truth of the test part")
    truth = part.truth[inside]
    outcomes = [Decisions(each.scores[inside], each.thresholds) for each in _decisions(runs)]
    macro = own_intervals(outcomes, truth, patients, settings.bootstraps)["auroc"]
    by_class = np.mean([macro_auroc(truth, each.scores).per_class for each in outcomes], axis=0)
    return macro, dict(zip(part.classes, by_class.tolist(), strict=True))


def _order(name: str) -> tuple[int, int, str]:
    kind, _, what = name.partition(" ")
    bands = [band for _, band in AGES]
    return (EVERYBODY, "age", "sex", "flag").index(kind), bands.index(what) if what in bands else len(bands), what
