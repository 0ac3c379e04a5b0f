"""`beatray report SWEEP` of a sweep over labels: the scores of its models, as HTML, markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from beatray.commands.console import say
from beatray.commands.what_ran import what_ran
from beatray.corpus.reader import open_corpus
from beatray.errors import CorpusError
from beatray.models.encoder_folder import describe_encoder
from beatray.objectives.registry import objective_class
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

PATH_KEYS = ("out", "run", "tracking", "cluster", "corpus.path", "encoder_weights")
"""Settings that are paths, and do not change what was done."""


def write(
    folder: Store, record: SweepRecord, results: ModelResults, out: Path, corpus: str | None = None
) -> list[Path]:
    """report.html and the tables into `out`; prints the main one. `corpus` is where the corpus lies now."""
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
            **what_ran(folder, settings, description["manifest_hash"], _recordings(settings, corpus)),
            "trials": f"{len(finished)} of {len(record.trials)} finished",
            "labels": learned,
            "network": description["encoder"]["name"],
            "encoder": settings["encoder_weights"] or "random weights",
            **_pretraining(settings["encoder_weights"]),
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


def _recordings(settings: Mapping[str, Any], moved_to: str | None) -> int | None:
    """Of the whole corpus; None where it is not there any more."""
    try:
        return int(open_corpus(moved_to or settings["corpus"]["path"]).manifest.statistics["recordings"])
    except (OSError, CorpusError) as error:
        if moved_to is not None:
            say(f"  without the number of recordings: {error}")
        return None


def _pretraining(weights: str | None) -> dict[str, str]:
    """By which method the encoder was pretrained, and its paper; nothing where the encoder is gone or had none."""
    if not weights:
        return {}
    try:
        kind = objective_class(str(describe_encoder(weights)["objective"]["name"]))
    except (OSError, KeyError, ValueError):  # CheckpointError is a ValueError
        return {}
    return {"pretrained by": kind.title, **({"paper": kind.paper} if kind.paper else {})}


def shared_settings(folder: Store, record: SweepRecord, trial: str) -> dict[str, object]:
    """The settings of a trial without what the trials differ in and without paths."""
    settings = flat(yaml.safe_load(folder.child(trial).read(SETTINGS)))
    varied = {key for each in record.trials for key in each.changes}
    return {
        key: value
        for key, value in settings.items()
        if not any(key == other or key.startswith(f"{other}.") for other in (*varied, *PATH_KEYS))
    }
