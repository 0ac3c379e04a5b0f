"""`beatray sweep sweep=NAME corpus=PATH ...`: many pretraining runs over a space; `beatray sweep show FOLDER`."""

from __future__ import annotations

from beatray.commands.console import say
from beatray.errors import SettingsError
from beatray.ray_session import RaySettings, session
from beatray.schema import as_dict
from beatray.storage.store import Store
from beatray.sweep.budget import budgeted
from beatray.sweep.plan import plan_from
from beatray.sweep.progress import Prepared, alone, prepare
from beatray.sweep.ranking import as_json, as_text
from beatray.sweep.record import ENDED, SweepRecord, read
from beatray.sweep.run import run as run_trials
from beatray.sweep.tracking import settle
from beatray.track.memory import how_to_compare, how_to_open

EX_TEMPFAIL = 75
"""Exit code of a sweep that was asked to stop: the same command continues."""


def run(overrides: list[str], *, resume: bool = False) -> int:
    """Run, or go on with, the sweep that the overrides mean; 0 when every trial has ended, 1 when one failed.

    With `resume` there must be one to continue: a mistyped folder does not start an hour's work again.
    """
    plan = plan_from(overrides)
    if resume and read(plan.folder) is None:
        raise SettingsError(f"{plan.folder.where()} holds no sweep to go on with; without --resume one starts there")
    with alone(plan):
        say(f"sweep {plan.name}: {plan.sweep.search}, {len(plan.trials)} trials, into {plan.folder.where()}")
        prepared = prepare(budgeted(plan, say))
        record = _run(prepared, overrides)
    say(as_text(record))
    for line in where_to_look(plan.folder, record):
        say(f"  {line}")
    statuses = {trial.status for trial in record.trials}
    if "failed" in statuses:
        say("  some trials failed; the same command tries them again")
    elif not statuses <= set(ENDED):
        say("  stopped before the end; the same command continues")
        return EX_TEMPFAIL
    return 1 if "failed" in statuses else 0


def _run(prepared: Prepared, overrides: list[str]) -> SweepRecord:
    if not prepared.todo:
        say("  nothing to do: every trial has ended")
        settle(prepared)
        return prepared.record.snapshot()
    with session(RaySettings(**as_dict(prepared.plan.base.cluster))):
        return run_trials(prepared, say, overrides)


def where_to_look(folder: Store, record: SweepRecord) -> list[str]:
    """How to open the sweep and the comparison of its trials in MLflow; nothing for one that was not tracked, or lies
    in an object store (its trials' jobs name their runs)."""
    if not folder.is_local:
        return []
    trials = [folder.folder / trial.name for trial in record.trials if trial.status == "finished"]
    opened, compared = how_to_open(folder.folder), how_to_compare(trials)
    return [*([f"MLflow: {opened}"] if opened else []), *([f"compared: {compared}"] if compared else [])]


def show(overrides: list[str], *, json: bool) -> int:
    """Print the ranking of the sweep in a folder, running or not."""
    if len(overrides) != 1:
        raise SettingsError("which sweep? use beatray sweep show FOLDER, the folder out/run of the sweep")
    record = read(Store(overrides[0]))
    if record is None:
        raise SettingsError(f"{overrides[0]} holds no sweep.json: it is not the folder of a sweep")
    say(as_json(record) if json else as_text(record))
    return 0
