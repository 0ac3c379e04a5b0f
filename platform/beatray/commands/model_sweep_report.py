"""`beatray report SWEEP` of a sweep over labels: what its models are worth, as HTML, markdown and CSV."""

from __future__ import annotations

from pathlib import Path

import yaml

from beatray.commands.console import say
from beatray.report.model_sweep import (
    ModelSweepMaterial,
    as_markdown,
    as_text,
    build_model_sweep_report,
    long_csv,
)
from beatray.schema import flat
from beatray.storage.store import Store
from beatray.sweep import ranking
from beatray.sweep.model_results import ModelResults
from beatray.sweep.record import SweepRecord
from beatray.train.run_folder import SETTINGS

PLACES = ("out", "run", "tracking", "cluster", "corpus.path", "encoder_weights")
"""Settings that say where things lie, and not what was done."""


def write(folder: Store, record: SweepRecord, results: ModelResults, out: Path) -> list[Path]:
    """report.html and the tables into `out`; prints the main one."""
    first = results.methods[0].trials[0]
    description = first.description
    finished = [each for each in record.trials if each.status == "finished"]
    settings = yaml.safe_load(folder.child(first.trial).read(SETTINGS))
    learned = description["title"] or description["task"]
    material = ModelSweepMaterial(
        title=f"beatray sweep {record.run}",
        what=f"{learned} ({', '.join(description['names'][:5])}{', ...' if len(description['names']) > 5 else ''})",
        results=results,
        facts={
            "trials": f"{len(finished)} of {len(record.trials)} finished",
            "labels": learned,
            "network": description["encoder"]["name"],
            "encoder": settings["encoder_weights"] or "random weights",
            "corpus": f"{settings['corpus']['path']} ({description['manifest_hash'][:16]})",
            "tested on folds": settings["corpus"]["test_folds"],
            "time of all trials": f"{sum(each.seconds for each in record.trials) / 60:.0f} min",
        },
        settings=yaml.safe_dump(shared_settings(folder, record, first.trial), sort_keys=True),
        ranking=ranking.as_text(record),
        tracking=[f"sweep    {folder.where()}", "trials   each a folder there, with model/"],
    )
    out.mkdir(parents=True, exist_ok=True)
    texts = {"table.md": as_markdown(results), "scores.csv": long_csv(results)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    say(as_text(results))
    return [build_model_sweep_report(out / "report.html", material), *(out / name for name in texts)]


def shared_settings(folder: Store, record: SweepRecord, trial: str) -> dict[str, object]:
    """The settings of a trial without what the trials differ in and without places."""
    settings = flat(yaml.safe_load(folder.child(trial).read(SETTINGS)))
    varied = {key for each in record.trials for key in each.changes}
    return {
        key: value
        for key, value in settings.items()
        if not any(key == other or key.startswith(f"{other}.") for other in (*varied, *PLACES))
    }
