"""One training step of every method there is: seconds and memory, and both as multiples of a two-view NT-Xent step.

Run: PYTHONPATH=platform python tests/benchmarks/bench_methods.py [RECIPE ...] [--full] [--steps N] [--corpus PATH]

Each recipe at its own batch, network and precision, on bundled recordings (or those of a corpus), on one core: views,
forward, backward and optimizer. A method and the reference (simclr_tiny) are two fresh processes that take turns, a
step each, so that whatever else the machine does meets both: medians of CPU time, and of the ratio of the two. Memory
is the most that the process ever held, and what of it came after the libraries and the recordings were there. --full
takes the recipes as published: those whose step does not fit in memory, or takes longer than --longest seconds, are
said to.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
from pathlib import Path

from beatray.commands.demo import SAMPLE
from beatray.config import config_folder
from beatray.errors import SettingsError, TrainingError
from beatray.ingest.convert import ingest
from beatray.ingest.plan import IngestSettings
from beatray.ray_session import RaySettings, session
from beatray.train.composed import pretrain_settings
from beatray.train.prepare import prepare_run
from beatray.train.run_spec import RunSpec
from beatray.train.timing import StepCost, apart, processor

REFERENCE = "simclr_tiny"


def run_spec_of(recipe: str, corpus: str) -> RunSpec:
    return prepare_run(pretrain_settings([f"corpus={corpus}", f"recipe={recipe}", "train.device=cpu"]))


def side_by_side(run_spec: RunSpec, reference: RunSpec, steps: int, longest: float) -> tuple[StepCost, StepCost, float]:
    """The costs of both, and the median of the ratios of steps that followed each other."""
    with apart(run_spec) as one, apart(reference) as other:
        other.step(counts=False)
        if one.step(counts=False) > longest:
            raise TrainingError(f"a step takes longer than {longest:g} s")
        pairs = [(one.step(), other.step()) for _ in range(steps)]
        return one.cost(), other.cost(), statistics.median(a / b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="some alone (default: every *_tiny)")
    parser.add_argument("--full", action="store_true", help="the recipes as published")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds of the longest step that is waited for")
    parser.add_argument("--corpus", help="a corpus made earlier; its recordings are the batch")
    asked = parser.parse_args()
    there = sorted(path.stem for path in (config_folder() / "recipe").glob("*.yaml"))
    recipes = asked.recipes or [name for name in there if name.endswith("_tiny") != asked.full]
    with tempfile.TemporaryDirectory() as folder:
        corpus = asked.corpus or str(Path(folder) / "corpus")
        if asked.corpus is None:
            sources = {name: str(SAMPLE / f"{name}-sample.zip") for name in ("ludb", "ptbxl")}
            with session(RaySettings(cpus=2)):
                ingest(IngestSettings(sources, corpus, items_per_shard=64))
        reference = run_spec_of(REFERENCE, corpus)
        print(f"{processor()}, {os.cpu_count()} cores, one of them used; {datetime.date.today():%d %B %Y}")
        print(f"one training step, mean of {asked.steps}, turn by turn with {REFERENCE}\n")
        print(
            f"{'recipe':<18} {'network':<14} {'batch':>5} {'encoder':>9} {'trained':>9} {'s':>7} {'times':>6} "
            f"{'MiB':>6} {'times':>6} {'process MiB':>11}"
        )
        for recipe in recipes:
            try:
                run_spec = run_spec_of(recipe, corpus)
                cost, other, ratio = side_by_side(run_spec, reference, asked.steps, asked.longest)
            except (TrainingError, SettingsError) as error:
                print(f"{recipe:<18} {error}", flush=True)
                continue
            print(
                f"{recipe:<18} {run_spec.settings.encoder['name']:<14} {cost.batch_size:>5} "
                f"{cost.encoder_parameters:>9,} {cost.parameters:>9,} {cost.step_s:>7.3f} {ratio:>5.2f}x "
                f"{cost.step_mib:>6.0f} {cost.step_mib / other.step_mib:>5.2f}x {cost.peak_mib:>11.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
