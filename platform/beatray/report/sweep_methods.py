"""Sections of a sweep over methods: what each costs, and a page for each on how it learned and whether it collapsed.

Contract: as `sweep_page`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beatray.evaluate.names import parts_of
from beatray.objectives.objective import Objective, Progress
from beatray.objectives.registry import objective_class, objective_settings
from beatray.report.html import Section, plain_table
from beatray.report.learning import learning_pictures
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_table import Line, mean_sd, network_names, network_of, shown
from beatray.sweep.ranking import CORE_MINUTES
from beatray.sweep.results import Evaluated, Method

PAGES = "Method by method"


def anchors(material: SweepMaterial) -> dict[str, str]:
    """Where the page of each method is, by the name of its line; empty where methods have none."""
    if not material.compares_methods:
        return {}
    return {line.name: f"method-{re.sub(r'[^A-Za-z0-9_-]+', '-', line.name)}" for line in material.table.lines}


def cost_rows(material: SweepMaterial) -> list[dict[str, Any]]:
    """What each method costs, plain numbers; None where something was not measured."""
    timed, of_trial = material.costs.get("steps", {}), material.costs.get("trials", {})
    reference = timed.get((material.costs.get("reference") or {}).get("step"), {}).get("cost")
    networks = network_names(material.results)
    rows = []
    for line, method in zip(material.table.lines, material.results.methods, strict=True):
        first = method.trials[0]
        budget = of_trial.get(first.trial, {})
        cost = timed.get(budget.get("step", ""), {}).get("cost", {})
        step_mib = max(cost["peak_mib"] - cost["base_mib"], 0.0) if cost else None
        base = max(reference["peak_mib"] - reference["base_mib"], 1e-9) if reference else None
        used = np.array([trial.figures.get(CORE_MINUTES, np.nan) for trial in method.trials])
        wall = np.array([material.seconds.get(trial.trial, np.nan) / 60 for trial in method.trials])
        lines = [material.journals.get(trial.trial, ()) for trial in method.trials]
        rows.append(
            {
                "method": line.name,
                "network": networks[network_of(first)],
                "encoder parameters": cost.get("encoder_parameters"),
                "trained parameters": cost.get("parameters"),
                "batch": first.settings.get("train", {}).get("batch_size"),
                "step s": cost.get("step_s"),
                "step x": cost["step_s"] / reference["step_s"] if cost and reference else None,
                "step MiB": step_mib,
                "memory x": step_mib / base if step_mib is not None and base else None,
                "process MiB": cost.get("peak_mib"),
                "epochs": first.settings.get("train", {}).get("epochs"),
                "steps": lines[0][-1]["step"] + 1 if lines[0] else None,
                "budget core-min": budget.get("core_minutes"),
                "core-min mean": mean_sd(used)[0],
                "core-min SD": mean_sd(used)[1],
                "wall min mean": mean_sd(wall)[0],
            }
        )
    return rows


def costs_csv(material: SweepMaterial) -> str:
    """The costs as CSV."""
    out = io.StringIO()
    rows = cost_rows(material)
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        writer.writerow({key: "" if _unknown(row[key]) else value for key, value in cells.items()})
    return out.getvalue()


def cost_section(material: SweepMaterial) -> Section | None:
    """One table: a step of each method, its parameters, and what its training took."""
    rows = cost_rows(material)
    if all(_unknown(row["step s"]) and _unknown(row["core-min mean"]) for row in rows):
        return None
    timed = material.costs.get("steps", {})
    reference = material.costs.get("reference")
    machines = sorted({each["processor"] for each in timed.values()})
    clocks = {each["cost"]["clock"] for each in timed.values()}
    paragraphs = []
    if timed:
        clock = "CPU time of one core" if clocks == {"cpu"} else "time on the GPU"
        paragraphs.append(
            "A step is views, forward, backward and optimizer of one batch, the median of a few before anything was "
            f"trained ({clock}, {'; '.join(machines)}). Memory is what the step adds to a process that holds the "
            "libraries and the recordings." + (f" Multiples are of a step of {reference['row']}." if reference else "")
        )
    budgets = {row["budget core-min"] for row in rows if row["budget core-min"] is not None}
    if budgets:
        paragraphs.append(
            f"All methods had the same budget of {', '.join(f'{each:g}' for each in sorted(budgets))} core-minutes of "
            "training steps; their epochs follow from it."
        )
    paragraphs.append(
        "Core-minutes are what the training really took: the CPU time of all workers (on GPUs their wall time), with "
        "validation and checkpoints and without the evaluation; minutes are by the clock of all attempts, evaluation "
        "included."
    )
    times = f"x {reference['row']}" if reference else "x"
    header = (
        *("method", "network", "encoder", "trained", "batch", "s / step", times, "MiB / step", times),
        *("epochs", "steps", "core-min", "min"),
    )
    cells = [
        (
            row["method"],
            row["network"],
            _count(row["encoder parameters"]),
            _count(row["trained parameters"]),
            _plain(row["batch"], "d"),
            _plain(row["step s"], ".3g"),
            _plain(row["step x"], ".2f"),
            _plain(row["step MiB"], ".0f"),
            _plain(row["memory x"], ".2f"),
            _plain(row["epochs"], "d"),
            _plain(row["steps"], "d"),
            _with_sd(row["core-min mean"], row["core-min SD"]),
            _plain(row["wall min mean"], ".1f"),
        )
        for row in rows
    ]
    return Section(
        title="What each method costs", paragraphs=paragraphs, html=plain_table(header, cells, anchors(material))
    )


def method_sections(material: SweepMaterial) -> list[Section]:
    """A page for each method: what it is, its scores, how it learned, and the findings of its collapse watch."""
    links = anchors(material)
    if not links:
        return []
    costs = {row["method"]: row for row in cost_rows(material)}
    return [
        _method_section(material, method, line, costs[line.name], links[line.name])
        for method, line in zip(material.results.methods, material.table.lines, strict=True)
    ]


def _method_section(
    material: SweepMaterial, method: Method, line: Line, cost: Mapping[str, Any], anchor: str
) -> Section:
    first = method.trials[0]
    kind, settings = _objective(first)
    train = first.settings["train"]
    journals = [material.journals.get(trial.trial, ()) for trial in method.trials]
    used = _with_sd(cost["core-min mean"], cost["core-min SD"])
    facts: dict[str, object] = {
        "method": kind.described(settings),
        **({"paper": kind.paper} if kind.paper else {}),
        "recipe": first.settings.get("recipe"),
        "network": f"{cost['network']}, {_count(cost['encoder parameters'])} parameters"
        if cost["encoder parameters"]
        else cost["network"],
        "training": f"{train['epochs']} epochs, {_plain(cost['steps'], 'd')} steps of {train['batch_size']} "
        f"recordings, {used} core-minutes",
    }
    for column in material.table.shown:
        if column.variant == "pretrained" and column.tests:
            control = shown(method.control_scores(column.score, "random"))
            scratch = parts_of(column.score)[1] == "finetune"
            beside = f"from scratch {control}" if scratch else f"random weights of its network {control}"
            facts[column.title] = f"{shown(line.scores[column.title])} ({beside})"
    found = [sentence for trial, lines in zip(method.trials, journals, strict=True) for sentence in watch(trial, lines)]
    trials = f"{len(method.trials)} trial{'s' if len(method.trials) > 1 else ''}"
    paragraphs = [f"Collapse watch: {sentence}" for sentence in (*found, *_quiet(journals, len(found) > 0))]
    known = {trial.trial: lines for trial, lines in zip(method.trials, journals, strict=True) if lines}
    drawn, *others = known or {"": ()}
    pictures = learning_pictures(known[drawn], kind.curves(settings), [known[each] for each in others]) if known else []
    beside = f", the others of its {trials} in grey" if others else ""
    return Section(
        title=line.name,
        paragraphs=paragraphs,
        facts=facts,
        pictures=pictures,
        small_print=[f"Curves of trial {drawn}{beside}."] if pictures else [],
        anchor=anchor,
        of=PAGES,
    )


def papers(material: SweepMaterial) -> list[str]:
    """The papers of all methods of the sweep, each once."""
    kinds = [_objective(method.trials[0])[0] for method in material.results.methods]
    return list(dict.fromkeys(kind.paper for kind in kinds if kind.paper))


def _quiet(journals: Sequence[Sequence[object]], warned: bool) -> list[str]:
    """What the watch says where it has no warning to give: nothing found, or no journal to look at."""
    seen, unseen = sum(map(bool, journals)), sum(not lines for lines in journals)
    texts = []
    if seen and not warned:
        texts.append(f"nothing in {seen} trial{'s' if seen > 1 else ''}.")
    if unseen:
        texts.append(f"no journal of {unseen} trial{'s' if unseen > 1 else ''}: of these nothing is known.")
    return texts


def watch(trial: Evaluated, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method's warnings on a trial: each once, with the steps at which it held, of those that were logged."""
    if not lines:
        return []
    kind, settings = _objective(trial)
    steps, epochs = int(lines[-1]["step"]) + 1, int(trial.settings["train"]["epochs"])
    held: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        known = {key: value for key, value in line.items() if isinstance(value, (int, float))}
        at = Progress(int(line["step"]), steps, int(line["epoch"]), epochs)
        for key, sentence in kind.warnings(settings, known, at).items():
            held.setdefault(key, []).append((int(line["step"]) + 1, sentence))
    texts = []
    for found in held.values():
        (first, sentence), last = found[0], found[-1][0]
        until = "to the end" if last == steps else f"last at step {last}"
        logged = f"{len(found)} of {len(lines)} logged steps"
        texts.append(f"{trial.trial}, from step {first} of {steps}, {until} ({logged}): {sentence}.")
    return texts


def _objective(trial: Evaluated) -> tuple[type[Objective], Any]:
    """The class behind a trial and its settings; the bare base for one of the user's that cannot be imported here."""
    content = dict(trial.settings["objective"])
    name = str(content.pop("name"))
    try:
        return objective_class(name), objective_settings(name, content)
    except ValueError:
        return Objective, None


def _unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))


def _plain(value: Any, form: str) -> str:
    return "-" if _unknown(value) else format(value, form)


def _count(value: int | None) -> str:
    """Parameters as people write them: 39 k, 0.48 M, 86.1 M."""
    if value is None:
        return "-"
    if value < 1e5:
        return f"{value / 1e3:.0f} k"
    return f"{value / 1e6:.2f} M" if value < 1e7 else f"{value / 1e6:.1f} M"


def _with_sd(mean: float, sd: float) -> str:
    if not np.isfinite(mean):
        return "-"
    return f"{mean:.2f}±{sd:.2f}" if np.isfinite(sd) else f"{mean:.2f}"
