"""The table of a sweep: a line for each method, means and SDs over its trials, beside the paper's figures.

Where a method is a row of the table that its objective has published, its difference from the first row is marked:
`same` if it has the paper's sign in every trial (paired by what repeats them), `opposite` if it has the other sign in
every trial, `mixed` otherwise. A mark is no test: with three trials, two of eight coin tosses come out alike.

How it is written down is for `sweep_table_forms`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.names import score_name
from beatray.evaluate.notes import TASK_TITLES
from beatray.evaluate.results import METRICS, VALIDATION_AUROC, percent
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES
from beatray.objectives.published import AUROC, F1, PUBLISHED_SCORES, SEGMENT_F1, PublishedRow, PublishedTable
from beatray.sweep.results import Evaluated, Method, SweepResults

GAIN = "gain"
"""What a column holds that is the score less that of the same network with random weights."""
SAME, OPPOSITE, MIXED = "same", "opposite", "mixed"
CHOSEN = "chosen on validation, repeat by repeat"
MOST_FEW, MOST_COLUMNS = 3, 8
"""Columns of smaller label fractions that a table has room for, and columns altogether."""
CONTROL_NAMES = {"random": "random weights", "features": "measured features"}


@dataclass(frozen=True, slots=True)
class Column:
    """A score that every method has; `paper` names the figure of the paper that stands beside it."""

    title: str
    score: str
    paper: str | None = None
    variant: str = "pretrained"  # or encoder_features, or GAIN
    tests: bool = True  # False: no score of its own on test records, such as that by which methods may be chosen
    few: bool = False  # with fewer labels than there are
    minor: bool = False  # left out first where a table would be too wide


@dataclass(frozen=True, slots=True)
class Line:
    """One method or control: scores (n trials,) by column title; the paper's row, and how the directions compare."""

    name: str
    scores: dict[str, NDArray[np.float64]]
    repeats: tuple[str, ...] = ()  # what each trial is paired with those of other methods by
    paper: PublishedRow | None = None
    marks: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SweepTable:
    """All lines: the methods in the order of the sweep, then the choice among them and the controls."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    controls: tuple[Line, ...]
    published: PublishedTable | None = None  # what `paper` of the lines are rows of

    @property
    def tests(self) -> tuple[Column, ...]:
        """The columns of test scores."""
        return tuple(column for column in self.columns if column.tests)

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns of a table that is to be read: many label fractions have tables of their own."""
        many = sum(column.few for column in self.columns) > MOST_FEW
        shown = tuple(column for column in self.columns if not (many and column.few))
        wide = many and len(shown) > MOST_COLUMNS
        return tuple(column for column in shown if not (wide and column.minor))

    @property
    def of_paper(self) -> bool:
        """True if some line is a row of the paper."""
        return any(line.paper is not None for line in self.lines)

    @property
    def baseline(self) -> Line | None:
        """The line that is the first row of the paper's table."""
        return next((line for line in self.lines if self.published and line.paper == self.published.baseline), None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim of the paper checked: its difference, the measured ones (n trials,), and how the directions compare."""

    text: str
    rows: tuple[int, int]
    score: str
    paper: float
    measured: NDArray[np.float64]
    mark: str


def make_table(results: SweepResults) -> SweepTable:
    """The table of the scores that all methods have."""
    published = next((m.objective.published for m in results.methods if m.objective.published is not None), None)
    columns = _columns(results, published)
    lines = tuple(
        _line(method, columns, name, published if method.objective.published is published else None)
        for method, name in zip(results.methods, names_of(results), strict=True)
    )
    table = SweepTable(columns, lines, (*_chosen(lines, columns), *_controls(results, columns)), published)
    first = table.baseline
    return table if first is None else replace(table, lines=tuple(_marked(line, first, columns) for line in lines))


def data_name(results: SweepResults, task: str) -> str:
    """The recordings that a task is tested on."""
    if task == "segment":
        return "LUDB"
    title = task_title(results, task)  # of a label space, or the file of a user's own table
    return next((known for known in ("PTB-XL", "CinC") if title.startswith(known)), title)


def task_title(results: SweepResults, task: str) -> str:
    """What is told apart in which recordings, from the first trial that has the task."""
    parts = (trial.results["tasks"].get(task) for method in results.methods for trial in method.trials)
    return next((str(part["title"]) for part in parts if part and part.get("title")), TASK_TITLES[task])


def names_of(results: SweepResults) -> list[str]:
    """The names of the methods: short ones, unless two would be the same."""
    short = [name_of(method) for method in results.methods]
    return [
        name if short.count(name) == 1 else method.name for name, method in zip(short, results.methods, strict=True)
    ]


def _chosen(lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """One line: in each repeat, the method that the validation records of that repeat alone would choose.

    A mean over repeats would not do: where they are splits, one split's test records are among another's validation.
    """
    column = next((column for column in columns if not column.tests and column.variant != GAIN), None)
    repeats = [repeat for repeat in lines[0].repeats if all(repeat in line.repeats for line in lines)]
    if column is None or len(lines) < 2 or not repeats:
        return []
    scores: dict[str, list[float]] = {each.title: [] for each in columns}
    for repeat in repeats:
        reached = [line.scores[column.title][line.repeats.index(repeat)] for line in lines]
        if not np.isfinite(reached).any():
            return []
        best = lines[int(np.nanargmax(reached))]
        for title, values in scores.items():
            values.append(float(best.scores[title][best.repeats.index(repeat)]))
    return [Line(CHOSEN, {title: np.array(values) for title, values in scores.items()}, tuple(repeats))]


def _controls(results: SweepResults, columns: Sequence[Column]) -> list[Line]:
    """Random weights, a line for each architecture, named by its settings; and measured features, which have none."""
    groups: dict[tuple[str, str], Method] = {}
    for method in results.methods:  # a trial for each control of a network, whichever methods have it
        network = network_of(method.trials[0]), _encoder_of(method)
        first = groups.setdefault(network, replace(method, trials=()))
        others = {trial.control: trial for trial in (*method.trials, *first.trials)}
        groups[network] = replace(first, trials=tuple(others.values()))
    named = network_names(results)
    several = len({name for name in named.values() if name}) > 1
    architectures = [
        _encoder_of(method) or (named[network_of(method.trials[0])] if several else "") for method in groups.values()
    ]
    lines = [("features", CONTROL_NAMES["features"], next(iter(groups.values())))]
    for architecture, method in reversed(list(zip(architectures, groups.values(), strict=True))):
        suffix = architecture if architectures.count(architecture) == 1 else method.name
        lines.insert(0, ("random", ", ".join([CONTROL_NAMES["random"], *([suffix] if suffix else [])]), method))
    found = []
    for variant, name, method in lines:
        scores = {
            column.title: method.control_scores(column.score, variant)
            if column.variant == "pretrained"
            else np.array([np.nan])
            for column in columns
        }
        if any(np.isfinite(values).any() for values in scores.values()):
            found.append(Line(name, scores))
    return found


def _encoder_of(method: Method) -> str:
    """The settings of its encoder that make the method another one."""
    changes = {key.rpartition(".")[2]: value for key, value in method.changes.items() if key.startswith("encoder")}
    return ", ".join(f"{key} {value}" for key, value in changes.items())


def verdicts(table: SweepTable) -> list[Verdict]:
    """Every claim of the paper whose two rows are in the table."""
    by_number = {line.paper.number: line for line in table.lines if line.paper is not None}
    found = []
    for claim in table.published.claims if table.published else ():
        column = next((column for column in table.columns if column.paper == claim.score), None)
        higher, lower = by_number.get(claim.higher), by_number.get(claim.lower)
        if column is None or higher is None or lower is None or not higher.paper or not lower.paper:
            continue
        measured = _difference(higher, lower, column.title)
        gap = higher.paper.scores[claim.score] - lower.paper.scores[claim.score]
        rows = (claim.higher, claim.lower)
        found.append(Verdict(claim.text, rows, column.title, gap, measured, _direction(measured, gap)))
    return found


def _columns(results: SweepResults, published: PublishedTable | None) -> tuple[Column, ...]:
    """The main scores at all labels, those of the paper first; then the same with the measured features beside and on
    validation records, other protocols, and fewer labels."""
    runs = [run for m in results.methods for t in m.trials for run in t.results["runs"] if run["condition"] == "clean"]
    kinds = dict.fromkeys((run["protocol"], run["task"], run["fraction"]) for run in runs)
    largest = {task: max(fraction for _, other, fraction in kinds if other == task) for _, task, _ in kinds}
    main: dict[str, Column] = {}
    together, others, fewer, gains = [], [], [], []
    networks = len({network_of(trial) for method in results.methods for trial in method.trials})
    for protocol, task, fraction in kinds:
        name = data_name(results, task)
        how = "" if protocol == MAIN_PROTOCOL[task] else f", {PROTOCOL_NAMES[task, protocol]}"
        for metric, of_paper in (("auroc", AUROC), ("f1", F1)) if task == "classify" else (("f1", SEGMENT_F1),):
            title = f"{name} {METRIC_NAMES[metric].removeprefix('macro ')}"
            score = score_name(task, protocol, fraction, metric)
            if fraction != largest[task]:
                if of_paper != F1:
                    fewer.append(Column(f"{title}{how} at {percent(fraction)}", score, few=True))
            elif protocol == MAIN_PROTOCOL[task]:
                known = published is not None and of_paper in published.baseline.scores
                main[of_paper] = Column(title, score, of_paper if known else None)
                if metric == "auroc":
                    chosen_by = score_name(task, protocol, fraction, VALIDATION_AUROC)
                    together += [Column(f"{title} with features", score, variant="encoder_features")]
                    together += [Column(f"{title}, validation", chosen_by, tests=False, minor=True)]
                if networks > 1 and metric == METRICS[task][0]:
                    gains += [Column(f"{title}, gain over random weights", score, variant=GAIN, tests=False)]
            else:
                others.append(Column(f"{title}{how}", score, minor=metric != METRICS[task][0]))
    fewer.sort(key=lambda column: column.title)
    return tuple(
        column
        for column in (*(main[each] for each in PUBLISHED_SCORES if each in main), *gains, *together, *others, *fewer)
        if all(np.isfinite(_values(method, column)).any() for method in results.methods)
    )


def _line(method: Method, columns: Sequence[Column], name: str, published: PublishedTable | None) -> Line:
    scores = {column.title: _values(method, column) for column in columns}
    return Line(name, scores, method.repeats, published.row_of(method.changes) if published else None)


def _values(method: Method, column: Column) -> NDArray[np.float64]:
    if column.variant == GAIN:
        return method.scores(column.score) - method.control_scores(column.score, "random")
    return method.scores(column.score, column.variant)


def network_of(trial: Evaluated) -> str:
    """The encoder behind a trial, by all its settings; trials of one network share their random weights."""
    return json.dumps(trial.settings.get("encoder", {}), sort_keys=True)


def network_names(results: SweepResults) -> dict[str, str]:
    """What each network is called: its name, and of networks with one name the settings in which they differ."""
    found = {network_of(trial): dict(trial.settings.get("encoder", {})) for m in results.methods for trial in m.trials}
    names = {}
    for key, settings in found.items():
        alike = [other for other in found.values() if other.get("name") == settings.get("name")]
        apart = [name for name in settings if any(other.get(name) != settings[name] for other in alike)]
        differing = [f"{name} {settings[name]}" for name in apart]
        names[key] = " ".join([str(settings.get("name", "")), *([f"({', '.join(differing)})"] if differing else [])])
    return names


def name_of(method: Method) -> str:
    """The method's short name by its objective, with the settings that it leaves out; else the trial's own name."""
    variant = method.objective.variant(method.changes, method.trials[0].settings.get("objective", {}))
    return method.name if variant is None else full_name(*variant)


def full_name(name: str, left: Mapping[str, object]) -> str:
    """The name and the settings that it leaves out."""
    others = [
        value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"
        for key, value in left.items()
        if value is not None
    ]
    return ", ".join([name, *others])


def _marked(line: Line, first: Line, columns: Sequence[Column]) -> Line:
    if line.paper is None or first.paper is None or line.paper == first.paper:
        return line
    marks = {}
    for column in columns:
        if column.paper is not None:
            gap = line.paper.scores[column.paper] - first.paper.scores[column.paper]
            marks[column.title] = _direction(_difference(line, first, column.title), gap)
    return Line(line.name, line.scores, line.repeats, line.paper, marks)


def _difference(one: Line, other: Line, title: str) -> NDArray[np.float64]:
    """Per trial that both have, known by what repeats it."""
    of_other = dict(zip(other.repeats, other.scores[title], strict=True))
    pairs = [(a, of_other[r]) for r, a in zip(one.repeats, one.scores[title], strict=True) if r in of_other]
    differences = np.array([a - b for a, b in pairs], np.float64)
    return differences[np.isfinite(differences)]


def _direction(measured: NDArray[np.float64], paper: float) -> str:
    along, against = np.sign(measured) == np.sign(paper), np.sign(measured) == -np.sign(paper)
    if not measured.size:
        return ""
    return SAME if along.all() else OPPOSITE if against.all() else MIXED


def shown(values: NDArray[np.float64]) -> str:
    """Mean +- SD over trials; the SD is left out where there is none."""
    mean, sd = mean_sd(values)
    if not np.isfinite(mean):
        return "-"
    spread = f"{sd:.3f}".removeprefix("0")  # .031, as in the tables of an evaluation: a page is only so wide
    return f"{mean:.3f}±{spread}" if np.isfinite(sd) and sd > 0 else f"{mean:.3f}"


def mean_sd(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and SD over the trials that are known; NaN where there are too few."""
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if known.size else float("nan")
    return mean, float(known.std(ddof=1)) if known.size > 1 else float("nan")
