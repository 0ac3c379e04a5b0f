"""Population based training (Jaderberg et al. 2017, arXiv:1711.09846): settings that change while the trials train.

All trials train for `grace_period` epochs, then those of the worst quarter exploit the best: each takes the weights,
optimizer and position of one of the best quarter, with its settings a little changed, and so on to the end. The
paper lets members look at each other whenever they are ready; here all wait for the round to end, so that the same
sweep makes the same decisions however often it is killed: what a member takes is a function of the sweep's settings and
of the journals of the runs, and is written down before anything is copied; a copy that was not finished is made again.

Contract: only settings that change neither the shape of a weight nor the order of the recordings can be searched:
those whose fields are marked `searchable`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from beatray.errors import CheckpointError
from beatray.storage.hashed_folder import read_folder, write_folder
from beatray.storage.store import Store
from beatray.sweep.settings import QUARTER, SweepSettings
from beatray.sweep.space import drawn_value
from beatray.train import checkpoint as checkpoints
from beatray.train.run_folder import METRICS
from beatray.train.run_spec import RunSpec, shown_settings

FACTORS = (0.8, 1.25)
REDRAWN = 0.25
"""How often a setting is drawn anew from the space instead of moved by a factor."""


@dataclass(frozen=True, slots=True)
class Exploit:
    """After round `number` (from 0), a trial continues from `source` at a global step, with these settings."""

    number: int
    step: int
    source: str
    changes: Mapping[str, Any]
    copied: bool = False


def targets(run_spec: RunSpec, interval_epochs: int) -> list[int]:
    """The global steps at which rounds end; the last one is the end of the run."""
    per_epoch = run_spec.steps // run_spec.settings.train.epochs
    ends = range(interval_epochs, run_spec.settings.train.epochs, interval_epochs)
    return [*(per_epoch * epochs for epochs in ends), run_spec.steps]


def exploits(
    number: int, step: int, scores: Mapping[str, float], changes: Mapping[str, Mapping[str, Any]], sweep: SweepSettings
) -> dict[str, Exploit]:
    """Which trials exploit which after round `number`, at `step`: a function of the arguments alone.

    `scores` are those of the trials that are still in the running, `changes` their present settings.
    """
    sign = -1.0 if sweep.mode == "max" else 1.0
    order = sorted(scores, key=lambda name: (math.inf if math.isnan(scores[name]) else sign * scores[name], name))
    count = len(order) // QUARTER
    found = {}
    for name in order[len(order) - count :]:
        generator = random.Random(f"{sweep.seed}/{number}/{name}")
        source = generator.choice(order[:count])
        moved = {key: _moved(values, changes[source][key], generator) for key, values in sweep.space.items()}
        found[name] = Exploit(number, step, source, moved)
    return found


def _moved(values: Any, value: Any, generator: random.Random) -> Any:
    """One step away from the value, inside the space; or a new draw."""
    if generator.random() < REDRAWN:
        return drawn_value(values, generator)
    if isinstance(values, list):
        position = values.index(value) + generator.choice((-1, 1))
        return values[min(max(position, 0), len(values) - 1)]
    kind, (low, high) = next(iter(values.items()))
    if kind == "int_uniform":
        return min(max(round(value * generator.choice(FACTORS)), low), high)
    return min(max(float(f"{value * generator.choice(FACTORS):.4g}"), float(low)), float(high))


def copy_checkpoint(source: Store, to: RunSpec, step: int) -> None:
    """Make the source trial's checkpoint at `step` that of another one, under its own settings; may be repeated.

    CheckpointError if the source trial has none there.
    """
    name = checkpoints.name_of(step)
    files = read_folder(source.child(checkpoints.FOLDER).child(name))
    state = json.loads(files["state.json"])
    state["settings"] = shown_settings(to.settings)
    try:
        state["optimiser_groups"][0]["weight_decay"] = to.settings.train.weight_decay  # the schedule sets the rates
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{source.where(name)} does not state how its optimiser is set: {error}") from error
    files["state.json"] = json.dumps(state, sort_keys=True).encode()
    write_folder(to.run.child(checkpoints.FOLDER), name, files)


def stopped_after(run_spec: RunSpec, step: int) -> RunSpec:
    """The same run, to end with a checkpoint after so many global steps."""
    settings = run_spec.settings
    return replace(run_spec, settings=replace(settings, train=replace(settings.train, stop_after_steps=step)))


def score_at(run_spec: RunSpec, metric: str, step: int) -> float:
    """The last value of a metric in the run's journal before a step; NaN, which ranks last, if there is none.

    The journal is never behind the checkpoint of that step, whatever the driver has received by then.
    """
    try:
        lines = [json.loads(line) for line in run_spec.run.read(METRICS).splitlines() if line.endswith(b"}")]
    except FileNotFoundError:
        return math.nan
    values = [line[metric] for line in lines if line["step"] < step and line.get(metric) is not None]
    return float(values[-1]) if values and math.isfinite(values[-1]) else math.nan
