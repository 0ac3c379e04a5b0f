"""Runs in this process, one after the other, where there is no Ray: one GPU and little else.

Run: PYTHONPATH=platform python scripts/train_alone.py RUN.yaml [RUN.yaml ...] [--seconds S]

RUN.yaml is what `beatray pretrain ... --print-config` or `beatray finetune ... --print-config` printed. It needs torch,
numpy, pandas, pyarrow, scipy, scikit-learn, safetensors and PyYAML. Each run leaves its folder: settings.yaml,
metrics.jsonl, the last checkpoint, encoder/, and model/ with its scores if it learned from labels. A run learns what it
would learn under Ray with one worker: the same batches, views and steps. It does not validate on its way, so that the
last weights are exported and nothing ends it early, and it is not continued. With --seconds a run that learns without
labels gets as many epochs as fit into that time: some steps are timed first, then it begins. Where it turns out slower
it ends early, a fifth later than asked at most, and its encoder says so.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from beatray.bench.feed import Fed, direct
from beatray.bench.run import cores
from beatray.finetune.finish import make_model
from beatray.finetune.prepare import prepare_run, prepared
from beatray.models.encoder_folder import describe_encoder
from beatray.objectives.registry import objective_class
from beatray.schema import build
from beatray.settings import PretrainSettings, lasting
from beatray.train.blocks import Arrays
from beatray.train.composed import NAMED
from beatray.train.order import steps_per_epoch
from beatray.train.rank_zero import RankZero
from beatray.train.ranks import Ranks
from beatray.train.run_folder import SETTINGS
from beatray.train.run_spec import RunSpec, shown_settings
from beatray.train.step import Learner, Outcome, ahead

WARM_UP, TIMED = 5, 25
MARGIN, AT_MOST = 0.95, 1.2
"""Parts of the time that is asked for: what is planned, and when a run ends in any case."""
LOG_EVERY_S = 10.0


def settings_of(path: Path) -> PretrainSettings:
    """The settings of a run; the network of one that starts from an encoder is that of the encoder."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    if content.get("encoder_weights"):
        described = describe_encoder(content["encoder_weights"])
        network = NAMED["encoder"].complete(described["name"], described["settings"], "encoder.")
        content["encoder"] = {"name": described["name"], **network}
    content["train"] |= {"validate_every_epochs": 0, "patience": None}
    content["checkpoint"]["export"] = "last"
    return build(PretrainSettings, content)


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def epochs_in(settings: PretrainSettings, seconds: float) -> int:
    """How many epochs fit into the time, one at least."""
    run_spec = prepare_run(settings)
    learner, count = Learner(run_spec, Ranks(device=device())), WARM_UP + TIMED
    began = 0.0
    with contextlib.closing(ahead(learner, direct(run_spec, count, readers()), _cut)) as steps:
        for number, (fed, ready) in enumerate(steps):
            if number == WARM_UP:
                began = time.perf_counter()
            learner.launch(min(number, run_spec.steps - 1), fed.epoch, ready, fed.parts).read()
    step_s = (time.perf_counter() - began) / TIMED
    return max(1, int(MARGIN * seconds / step_s / steps_per_epoch(run_spec.rows, settings.train.batch_size)))


@dataclass(frozen=True, slots=True)
class Step:
    """One that the device was given."""

    number: int
    fed: Fed
    learning_rate: float
    waited_s: float
    outcome: Outcome

    def line(self, read_s: float) -> dict[str, Any]:
        """Of metrics.jsonl, once the step is through; the one before was at `read_s`."""
        logs, norm = self.outcome.read()
        passed_s = time.perf_counter() - read_s
        scores = {"gradient_norm": norm, **(logs or {})}
        return {
            "step": self.number,
            "epoch": self.fed.epoch,
            "records": self.fed.rows,
            "records_per_s": self.fed.rows / passed_s,
            "data_wait_s": min(self.waited_s, passed_s),
            "step_s": max(passed_s - self.waited_s, 0.0),
            "workers": 1,
            "learning_rate": self.learning_rate,
            "loss": None,  # of a refused step
            **{name: value if math.isfinite(value) else None for name, value in scores.items()},
        }


def train(run_spec: RunSpec, at_most: float = math.inf) -> dict[str, Any]:
    """The run, to its end or for so many seconds; what it cost and where its loss ended."""
    settings = run_spec.settings
    per_epoch = steps_per_epoch(run_spec.rows, settings.train.batch_size)
    learner = Learner(run_spec, Ranks(device=device()))
    handed_over: deque[Step] = deque()
    line: dict[str, Any] = {}
    done, began = 0, time.perf_counter()
    told = read = asked = began
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(RankZero(run_spec, 0, None, None, learner.precision))
        feed = direct(run_spec, run_spec.steps, readers())
        for fed, ready in stack.enter_context(contextlib.closing(ahead(learner, feed, _cut))):
            waited_s = time.perf_counter() - asked
            outcome = learner.launch(done, fed.epoch, ready, fed.parts)
            handed_over.append(Step(done, fed, learner.learning_rate, waited_s, outcome))
            done += 1
            over = done == run_spec.steps or time.perf_counter() - began > at_most
            while len(handed_over) > (learner.overlaps and not over):
                line = handed_over.popleft().line(read)
                read = time.perf_counter()
                first.log_metrics(line)
            asked = time.perf_counter()
            if over:
                break
            if time.perf_counter() - told > LOG_EVERY_S:
                told = time.perf_counter()
                print(f"  {settings.run}: step {done} of {run_spec.steps}, loss {line.get('loss')}", flush=True)
        seconds = time.perf_counter() - began
        first.save(done, per_epoch, None, [], learner.objective, learner.optimizer)
        first.settle()
        fault = first.fault()
        if fault is not None:
            raise fault
        first.export(learner.objective, done)
    return {
        "run": settings.run,
        "epochs": round(done / per_epoch, 1),
        "records": run_spec.rows,
        "seconds": round(seconds, 1),
        "records_per_s": round(run_spec.rows * done / per_epoch / seconds),
        "parameters": sum(each.numel() for each in learner.objective.exported().parameters()),
        "memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
        "loss": line.get("loss"),
    }


def readers() -> int:
    """Threads that read: the machine's cores but two."""
    return max(1, min(cores() - 2, 12))


def _cut(fed: Fed) -> tuple[Arrays, int, list[int]]:
    return fed.arrays, fed.epoch, [part.rows for part in fed.parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.yaml")
    parser.add_argument("--seconds", type=float, help="of each run that learns without labels")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for path in asked.runs:
        try:
            settings = settings_of(path)
            run_spec, found = prepared(settings)
        except (OSError, AttributeError, TypeError, KeyError, ValueError, yaml.YAMLError) as error:
            parser.error(f"{path}, which should hold what --print-config printed: {error}")
        if run_spec.run.names():
            parser.error(f"{path}: there is something at {run_spec.run.where()} already; choose another run=")
        at_most = math.inf
        if asked.seconds is not None and not objective_class(settings.objective["name"]).supervised:
            at_most = AT_MOST * asked.seconds
            run_spec, found = prepared(lasting(settings, epochs_in(settings, asked.seconds)))
        run_spec.run.write(SETTINGS, yaml.safe_dump(shown_settings(run_spec.settings), sort_keys=True).encode())
        print(train(run_spec, at_most) | make_model(run_spec, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
