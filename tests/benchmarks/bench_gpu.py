"""All that is to be known of steps on one accelerator, in one line and under eight minutes.

Run: PYTHONPATH=platform python tests/benchmarks/bench_gpu.py [--out FOLDER] [--corpus PATH] [--seconds N] [--smoke]

It needs torch, numpy, pandas, pyarrow, scipy, safetensors and PyYAML; no Ray, no Hydra, no MLflow. It prints a line for
each row and writes bench_gpu.json after each, so that what ended early has left what it had; kernels of the step as it
was and of the best one go to profile_*.txt. Every row has a time limit and a fault costs that row alone.

Rows, the most important first: xresnet1d50 with Beat-SSL, bf16, batch 256, two views of 12 x 5000 samples: (a) maps
(N, C, T), each step read at once, eager; (b) channels last; (c) steps overlapped; then compiled (e) whole, (d) the
network alone, (f) as CUDA graphs; the loop with a feed from disk; a plain PyTorch loop; (g) batch 1,024. Each way of
compiling is held to the eager step over 50 steps, and a refused step to leave everything as it was. Then the tiny
network, transformers and S4D. --smoke is all of it at a size for a CPU, without generated code.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_checks as checks
import torch
from torch.profiler import ProfilerActivity, profile

from beatray.bench.corpus import write_large_corpus
from beatray.bench.feed import Fed, direct, same, to_time
from beatray.bench.peak import matmul_roof, step_flop
from beatray.bench.plain import PlainLoop
from beatray.bench.run import MANY, about, cores, row_of
from beatray.bench.settings import recipe_settings
from beatray.bench.timing import time_feed, time_steps
from beatray.models.layout import channels_first, channels_last_on
from beatray.train.order import MicroBatch
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec
from beatray.train.step import Learner
from beatray.train.timing import first_rows

WHOLE = {"objective.augment.crop_seconds": 10.0}
"""Two views of 12 x 5000 samples."""

OVERLAPPED, STEP, GRAPHS = "(c) channels last, overlap", "(e) overlap, compile=step", "(f) overlap, compile=graphs"

Row = dict[str, Any]


class Bench:
    """What the rows share: the corpus, the device, the clock, and what was found so far."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.device, self.smoke, self.out, self.folder = torch.device(asked.device), asked.smoke, asked.out, folder
        self.only: str | None = asked.only
        self.ends = time.perf_counter() + asked.seconds
        self.steps, self.seconds, self.least = (50, 4.0, 20) if not asked.smoke else (3, 0.1, 2)
        sizes = (64, 16) if self.smoke else (2048, 64)
        self.corpus = asked.corpus or write_large_corpus(folder / "corpus", *sizes)
        self.readers = max(1, min(cores() - 2, 12))
        self.found: dict[str, Row] = {}
        self.roof: dict[str, float] = {}
        self.flop: dict[str, float] = {}
        self.losses: list[float] = []

    def spec(self, recipe: str, batch: int, changes: dict[str, Any] | None = None, **groups: str) -> RunSpec:
        """The run of a recipe; at the smoke's size, its small recipe."""
        train: Row = {"train.batch_size": batch, "train.precision": "bf16", "train.workers": 1, "train.cache_mb": 0}
        train |= {"corpus.path": self.corpus, "out": str(self.folder / "runs"), "train.validate_every_epochs": 0}
        train |= {"train.device": self.device.type, "train.gradient_accumulation_steps": 1, **(changes or {})}
        if self.smoke:
            recipe, groups = f"{recipe}_tiny", {}
            train |= {"train.batch_size": max(batch // 64, 4), "train.threads_per_worker": 1}
            train |= {key: 2.0 for key in train if key.endswith("crop_seconds")}
        return prepare_run(recipe_settings(recipe, train, **groups))

    def batches(self, spec: RunSpec, count: int = 4) -> list[Fed]:
        """Batches in memory, of the first recordings."""
        batch = spec.settings.train.batch_size
        arrays = first_rows(spec, count * batch)
        cuts = [slice(first, first + batch) for first in range(0, len(arrays["record_key"]), batch)]
        counts = [len(arrays["record_key"][cut]) for cut in cuts]
        return [
            Fed(0, (MicroBatch(n, n),), {name: values[cut] for name, values in arrays.items()})
            for n, cut in zip(counts, cuts, strict=True)
        ]

    def row(self, name: str, limit: float, make: Callable[[], Row]) -> None:
        """One row, within its limit and the time that is left; a fault is written down in its place."""
        if self.only and not re.search(self.only, name):
            return
        left = self.ends - time.perf_counter()
        began = time.perf_counter()
        if left < min(limit, 20.0) and not self.smoke:
            row: Row = {"left_out": f"{left:.0f} s were left"}
        else:
            try:
                with time_limit(min(limit, left) if not self.smoke else 600.0):
                    row = make()
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                text = " ".join(str(error).split())[:300]
                row = {"fault": f"{type(error).__name__}: {text}", "at": f"{Path(last.filename).name}:{last.lineno}"}
        row["took_s"] = round(time.perf_counter() - began, 1)
        self.found[name] = row
        print(f"{name:<44} {told_of(row)}", flush=True)
        (self.out / "bench_gpu.json").write_text(json.dumps(self.found, indent=1, default=str) + "\n")
        gc.collect()
        torch._dynamo.reset()  # one network's compiled code is of no use to the next, and there is a limit to both
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def roof_of(self, spec: RunSpec) -> float:
        """Of a matrix product in the type of the run, measured once."""
        precision = spec.settings.train.precision
        if precision not in self.roof:
            self.roof[precision] = matmul_roof(self.device, precision, 256 if self.smoke else None)
        return self.roof[precision]

    def flop_of(self, spec: RunSpec) -> float:
        """Of one record, counted once for each method and network."""
        settings = spec.settings
        kind = json.dumps([settings.objective, settings.encoder], sort_keys=True)
        if kind not in self.flop:
            fed = self.batches(spec, 1)[0]
            self.flop[kind] = step_flop(spec, self.device, fed) / fed.rows
        return self.flop[kind]

    def timed(self, learner: Learner, spec: RunSpec, feed: Any, seconds: float) -> Row:
        """Steps of a learner as a row of the table."""
        roof, flop = self.roof_of(spec), self.flop_of(spec)
        timing = time_steps(learner, feed, seconds, spec.steps - 1, least=self.least)
        return {**row_of(timing, flop, roof), "gflop_per_record": flop / 1e9}

    def study(
        self,
        spec: RunSpec,
        *,
        first: bool = False,
        hold: bool = False,
        loop: bool = False,
        top: int = 0,
        name: str = "",
    ) -> Row:
        """One way to make steps: its losses, a refused step, its speed, the loop with a feed from disk, its kernels."""
        how = {key: getattr(spec.settings.train, key) for key in ("batch_size", "compile", "overlap")}
        row: Row = {"settings": how}
        with channels_first() if first else channels_last_on(self.device.type):
            learner, feds = Learner(spec, Ranks(device=self.device)), self.batches(spec)
            if hold:
                losses = checks.losses_of(learner, feds, self.steps)
                self.losses = self.losses or losses  # of the first row: maps (N, C, T), eager
                row["losses"] = checks.compared(losses, self.losses)
                row["refused_step"] = checks.refused(learner, feds[0], self.steps)
            else:
                checks.losses_of(learner, feds, 3)
            graphs = graphs_made()
            row |= self.timed(learner, spec, same(feds[0]), self.seconds)
            if loop:
                row["loop"] = self.timed(learner, spec, direct(spec, MANY, self.readers), 2 * self.seconds)
            row["compiled_again"] = graphs_made() - graphs
            if top:
                row["kernels"] = kernels(learner, feds[0], top)
                if name:
                    write_profile(self.out / f"profile_{name}.txt", row["kernels"])
        return row


def graphs_made() -> int:
    """How many graphs torch.compile has taken in this process: more while steps are timed is a fault of shapes."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def told_of(row: Row) -> str:
    """A row in a line."""
    if "fault" in row or "left_out" in row:
        return row.get("left_out") or f"FAULT {row['fault']} ({row['at']})"
    overrides = []
    if "step_ms" in row:
        overrides.append(
            f"{row['records_per_s']:9,.0f} records/s {row['step_ms']:8.1f} ms {100 * row['share_of_peak']:5.1f} %"
        )
        overrides.append(f"wait {100 * row['data_wait']:4.1f} % {row['memory_mib']:8,.0f} MiB")
    elif "records_per_s" in row:
        overrides.append(f"{row['records_per_s']:9,.0f} records/s")
    if "loop" in row:
        overrides.append(f"| loop {row['loop']['records_per_s']:,.0f}, wait {100 * row['loop']['data_wait']:.1f} %")
    if row.get("compiled_again"):
        overrides.append(f"| COMPILED {row['compiled_again']} GRAPHS WHILE TIMED")
    overrides += [f"| {key} {'ok' if row[key]['ok'] else 'NOT OK'}" for key in ("losses", "refused_step") if key in row]
    if "ok" in row:
        overrides.append(
            f"{'ok' if row['ok'] else 'NOT OK'} {[v for k, v in row.items() if k not in ('ok', 'took_s')]}"
        )
    return " ".join(overrides or [str({key: row[key] for key in row if key != "kernels"})])


def kernels(learner: Learner, fed: Fed, top: int, steps: int = 3) -> list[Row]:
    """What the device did longest in a step: name, milliseconds a step, part of all."""
    cuda = next(learner.objective.parameters()).is_cuda
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        for _ in range(steps):
            learner.step(0, fed.arrays, 0, fed.parts)
    if cuda:
        events = [event for event in found.key_averages() if str(event.device_type).endswith("CUDA")]
        took = {event.key: event.self_device_time_total / 1e3 / steps for event in events}
    else:
        took = {event.key: event.self_cpu_time_total / 1e3 / steps for event in found.key_averages()}
    whole = sum(took.values()) or 1.0
    longest = sorted(took.items(), key=lambda item: -item[1])[:top]
    return [{"name": name[:160], "ms": ms, "part": ms / whole} for name, ms in longest] + [{"name": "all", "ms": whole}]


def write_profile(path: Path, found: list[Row]) -> None:
    """Kernels as text."""
    lines = [f"{each['ms']:9.3f} ms {100 * each.get('part', 1.0):5.1f} %  {each['name']}" for each in found]
    path.write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError once so many seconds are over."""

    def over(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(bench: Bench, ranks: int) -> None:
    """All rows."""

    def xresnet(compiled: str = "none", overlap: str = "always", size: int = 256) -> RunSpec:
        return bench.spec("beat_ssl", size, {**WHOLE, "train.compile": compiled, "train.overlap": overlap})

    def tiny(compiled: str, size: int) -> RunSpec:
        return bench.spec("beat_ssl", size, {"train.compile": compiled, "train.overlap": "always"}, encoder="tiny")

    def compiled(how: str) -> Row:
        return bench.study(xresnet(how), hold=True, loop=True, top=15, name=how)

    bench.row("machine", 60.0, lambda: {**about(xresnet(), bench.device), "settings": None})
    bench.row(
        "(a) (N, C, T), read at once, eager",
        60.0,
        lambda: bench.study(xresnet(overlap="never"), first=True, hold=True, top=15, name="before"),
    )
    bench.row("(b) channels last", 45.0, lambda: bench.study(xresnet(overlap="never"), hold=True))
    bench.row(OVERLAPPED, 60.0, lambda: bench.study(xresnet(), hold=True, loop=True))
    bench.row(STEP, 120.0, lambda: compiled("step"))
    bench.row("plain PyTorch loop", 60.0, lambda: plain(bench, xresnet()))
    bench.row("channels last against (N, C, T), fp32", 45.0, lambda: layouts(bench, xresnet(size=64)))
    bench.row("feed alone, direct", 30.0, lambda: feed(bench, xresnet()))
    bench.row(GRAPHS, 120.0, lambda: compiled("graphs"))
    bench.row("tiny, 5 s, 1024, compile=step", 60.0, lambda: bench.study(tiny("step", 1024), loop=True))
    best = max((OVERLAPPED, STEP, GRAPHS), key=lambda name: bench.found.get(name, {}).get("records_per_s", 0.0))
    how = bench.found.get(best, {}).get("settings", {}).get("compile", "none")
    bench.row(f"(g) compile={how}, batch 1024", 90.0, lambda: bench.study(xresnet(how, size=1024)))
    bench.row("tiny, 5 s, 1024, compile=graphs", 60.0, lambda: bench.study(tiny("graphs", 1024)))
    bench.row("tiny, 5 s, 256, eager", 30.0, lambda: bench.study(tiny("none", 256)))
    small = tiny("none", 64)
    bench.row(
        "resumed from a checkpoint, eager", 45.0, lambda: checks.resumed(small, bench.device, bench.batches(small))
    )
    bench.row(
        "two ranks against one, fp32",
        90.0,
        lambda: (
            checks.two_ranks(small, bench.device, bench.batches(small, 1)[0], bench.folder)
            if ranks > 1
            else {"left_out": "there are no two GPUs"}
        ),
    )
    for name, recipe in (("vit S, mae", "mae"), ("vit S, jepa", "jepa"), ("s4d, cpc", "cpc")):
        for how in ("none", "step"):
            changes = {"train.compile": how, "train.overlap": "always"}
            spec = functools.partial(bench.spec, recipe, 256, changes)
            bench.row(f"{name}, 256, compile={how}", 60.0, lambda spec=spec: bench.study(spec(), top=3))  # type: ignore
    bench.row("(d) overlap, compile=encoder", 90.0, lambda: bench.study(xresnet("encoder"), hold=True))
    bench.row("tiny, 5 s, 256, compile=step", 45.0, lambda: bench.study(tiny("step", 256)))
    bench.row("tiny, 5 s, 256, compile=graphs", 45.0, lambda: bench.study(tiny("graphs", 256)))


def layouts(bench: Bench, spec: RunSpec) -> Row:
    """One step in either layout."""
    return checks.layouts(spec, bench.device, bench.batches(spec, 1)[0])


def plain(bench: Bench, spec: RunSpec) -> Row:
    """The loop that most code has, at the same setting."""
    loop = PlainLoop(spec, bench.device, bench.folder, first_rows(spec, spec.rows), bench.readers)
    timing = loop.time(2 * bench.seconds)
    return {**row_of(timing, bench.flop_of(spec), bench.roof_of(spec)), "workers": loop.workers}


def feed(bench: Bench, spec: RunSpec) -> Row:
    """Reading, checking, decoding and putting together, by so many threads."""
    counts = sorted({count for count in (1, 4, 16) if count <= cores()} | {min(cores(), 16)})
    found = {f"{n} readers": time_feed(direct(to_time(spec), MANY, n), bench.seconds).records_per_s for n in counts}
    return {"records_per_s": max(found.values()), **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--corpus", help="one there is; else copies of the bundled recordings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=450.0, help="no row begins after so many")
    parser.add_argument("--ranks", type=int, default=min(torch.cuda.device_count(), 2), help="2: two ranks against one")
    parser.add_argument("--only", metavar="REGEX", help="rows whose names match")
    parser.add_argument("--smoke", action="store_true", help="small sizes, no code is generated; always on a CPU")
    asked = parser.parse_args()
    asked.smoke |= asked.device == "cpu"  # at full size a step would take minutes
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder, contextlib.ExitStack() as stack:
        if asked.smoke:
            torch.set_num_threads(1)
            stack.enter_context(checks.traced_only())
        bench = Bench(asked, Path(folder))
        run(bench, asked.ranks)
    rows = bench.found.values()
    bad = [name for name, row in bench.found.items() if "fault" in row or "NOT OK" in told_of(row)]
    print(f"{len(rows)} rows, {len(bad)} of them with a fault or out of bounds: {'; '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
