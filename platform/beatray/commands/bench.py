"""`beatray bench [overrides of pretrain]`: what this machine does with a run, beside a plain PyTorch loop."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from beatray.bench.corpus import write_large_corpus
from beatray.bench.run import cores, measure
from beatray.bench.table import lines
from beatray.commands.console import say
from beatray.errors import SettingsError
from beatray.schema import as_dict
from beatray.settings import PretrainSettings
from beatray.train.composed import pretrain_settings
from beatray.train.prepare import prepare_run

CHOICES = ("recipe", "objective", "encoder")
ROWS, BATCHES = 2048, 4
"""The corpus that is made has at least so many recordings, and batches."""


def settings_from(overrides: list[str]) -> PretrainSettings:
    """The settings of pretraining that the overrides mean, for one rank.

    Where nothing is chosen it is Beat-SSL, full-size on a GPU and its small recipe on a CPU; the corpus is read from
    disk as if it did not fit in memory, by one reader for each core, unless overrides change it.
    """
    if any(override.partition("=")[0] == "train.workers" for override in overrides):
        raise SettingsError("a bench runs on one rank: leave out train.workers")
    usual = ["train.cache_mb=0", f"train.readers_per_worker={min(cores(), 16)}"]
    if not any(override.partition("=")[0].partition(".")[0] in CHOICES for override in overrides):
        gpu = torch.cuda.is_available() and "train.device=cpu" not in overrides
        usual += [f"recipe={'beat_ssl' if gpu else 'beat_ssl_tiny'}"]
        usual += ["train.precision=bf16"] if gpu else []
    settings = pretrain_settings([*usual, *overrides])
    return replace(settings, train=replace(settings.train, workers=1, validate_every_epochs=0))


def run(overrides: list[str], *, seconds: float, json_file: str | None) -> int:
    """Measure, print the table, write the JSON."""
    ends = time.perf_counter() + seconds
    if seconds <= 0:
        raise SettingsError("--seconds must be above 0")
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise SettingsError(f"--json {json_file}: there is no such folder")
    settings = settings_from(overrides)
    with tempfile.TemporaryDirectory(prefix="beatray-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if not settings.corpus.path:
            batch = settings.train.batch_size
            rows = batch * max(BATCHES, -(-ROWS // batch))
            say(f"bench: making a corpus of {rows:,} recordings")
            path = write_large_corpus(folder / "corpus", rows)
            settings = replace(settings, corpus=replace(settings.corpus, path=path))
        run_spec = prepare_run(settings)
        ray = find_spec("ray") is not None
        if ray:
            import beatray.train.read  # noqa: F401  # sets up Ray Data's loggers, which would log every execution
            from beatray.ray_session import RaySettings, session

            logging.getLogger("ray.data").setLevel(logging.ERROR)
            stack.enter_context(session(RaySettings(**as_dict(settings.cluster))))
        say(f"bench: about {seconds:.0f} s in all")
        report = measure(run_spec, folder, ends, ray=ray, say=say).as_dict()
    report["overrides"] = overrides
    say()
    for line in lines(report):
        say(line)
    if json_file is not None:
        Path(json_file).write_text(json.dumps(report, indent=1) + "\n")
    return 0
