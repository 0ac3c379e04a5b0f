"""Goodput on 1 to 64 nodes against the checkpoint interval: measured costs, simulated failures (see goodput.py).

    PYTHONPATH=platform python tests/benchmarks/bench_goodput.py [--encoder NAME] [--rows N]

Measured here: a training step of `--rows` recordings on one rank; the messages of such a step between two real gloo
ranks, and what gloo needs for messages of several sizes; copying and writing a checkpoint with the real module; the
time from the SIGKILL of a Ray Train worker to the next step. With --costs SNAPSHOT,WRITE,RESTART (seconds) the table is
made from those, without measuring: the same costs and seed give the same table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from goodput import Costs, Link, Message, best_interval_s, fit_link, parallel_efficiency, seconds_on, simulate
from torch import distributed as dist

from beatray.augment.draws import Draws
from beatray.corpus.reader import read_row_group
from beatray.objectives.objective import Progress
from beatray.storage.store import Store
from beatray.train import checkpoint as checkpoints
from beatray.train.blocks import corpus_columns, decode
from beatray.train.composed import pretrain_settings
from beatray.train.prepare import prepare_run
from beatray.train.run_spec import RunSpec, build_model, to_tensors

NODES = (1, 4, 16, 64)
MINUTES_BETWEEN_FAILURES = (30, 120, 1440, 43200)
INTERVALS_S = (10, 60, 600, 3600)
SIZES = (1_000, 30_000, 1_000_000, 8_000_000)
FAILURES = 300
"""A simulated run is so long that about so many fall into it."""


def run_spec_of(corpus: str, encoder: str, rows: int) -> RunSpec:
    """A pretraining job with the default objective."""
    overrides = [f"corpus={corpus}", f"encoder={encoder}", f"train.batch_size={rows}", "train.shuffle_streams=1"]
    return prepare_run(pretrain_settings(overrides))


def first_rows(run_spec: RunSpec, rows: int) -> dict[str, torch.Tensor]:
    """The first recordings of the corpus, as a rank gets them."""
    group = run_spec.stream.groups[0]
    table = read_row_group(run_spec.stream.store, group.shard, group.group, corpus_columns(run_spec.stream.arrays))
    arrays = decode(table.combine_chunks(), run_spec.stream.arrays, run_spec.stream.clusters)
    return to_tensors({name: values[:rows] for name, values in arrays.items()}, torch.device("cpu"))


def step_of(run_spec: RunSpec, rows: int) -> tuple[Any, Any, Callable[[], None]]:
    """The objective, its optimiser and one training step on the same real rows."""
    objective = build_model(run_spec.settings.objective, run_spec.settings.encoder, 0, run_spec.statistics)
    optimiser = torch.optim.AdamW(objective.parameters(), 1e-3)
    batch = first_rows(run_spec, rows)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = objective(objective.views(batch, Draws.of(batch, 0, 0)), Progress()).loss
        loss.backward()
        optimiser.step()
        objective.after_step(Progress())

    return objective, optimiser, step


def least_s(call: Callable[[], object], repeats: int) -> float:
    """Least seconds of a call: whatever else the machine does can only add to it."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@contextmanager
def recorded() -> Iterator[list[Message]]:
    """The collective calls that are made inside the block."""
    found: list[Message] = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor: torch.Tensor, *overrides: Any, **more: Any) -> Any:
        code = sys._getframe(1).f_code
        grows = code.co_name == "backward" and code.co_filename.endswith("reduce.py")
        size = tensor.numel() * tensor.element_size()
        found.append(Message("all_reduce", size // dist.get_world_size() if grows else size, grows))
        return reduce(tensor, *overrides, **more)

    def all_gather(into: list[torch.Tensor], tensor: torch.Tensor, *overrides: Any, **more: Any) -> Any:
        found.append(Message("all_gather", tensor.numel() * tensor.element_size(), True))
        return gather(into, tensor, *overrides, **more)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        yield found
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


def rank_main(rank: int, meeting: str, corpus: str, encoder: str, rows: int) -> None:
    """One of two ranks: the messages of a step, the time of a step, and of messages of several sizes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}/meet", rank=rank, world_size=2)
    objective, _, step = step_of(run_spec_of(corpus, encoder, rows), rows)
    gradient = [p for p in objective.parameters() if p.requires_grad]

    def with_gradient() -> None:
        step()
        dist.all_reduce(torch.cat([p.grad.flatten() for p in gradient if p.grad is not None]))

    with recorded() as messages:
        with_gradient()
    step_s = least_s(with_gradient, 5)
    times = []
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        dist.barrier()
        times.append(least_s(lambda tensor=tensor: dist.all_reduce(tensor), 30))  # type: ignore[misc]
    if rank == 0:
        found = {"messages": [asdict(message) for message in messages], "step_s": step_s, "times": times}
        Path(meeting, "measured.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measure_messages(corpus: str, encoder: str, rows: int) -> tuple[list[Message], float, Link]:
    """The messages of a step between two ranks, the seconds of that step, and what gloo needs for a message."""
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(rank_main, (meeting, corpus, encoder, rows), nprocs=2)
        found = json.loads(Path(meeting, "measured.json").read_text())
    messages = [Message(**message) for message in found["messages"]]
    return messages, found["step_s"], fit_link(list(SIZES), found["times"])


def measure_checkpoint(run_spec: RunSpec, objective: Any, optimiser: Any, folder: Path) -> tuple[float, float, int]:
    """Seconds that training stands still for a copy, seconds that writing it takes, and its bytes."""
    run = Store(str(folder / "run"))
    state = {"settings": {}, "global_step": 1}
    snapshot_s = least_s(lambda: checkpoints.snapshot("step-00000001", state, objective, optimiser), 7)
    taken = checkpoints.snapshot("step-00000001", state, objective, optimiser)
    write_s = least_s(lambda: checkpoints.save(run, taken), 7)
    size = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    return snapshot_s, write_s, size


def restarting_rank(config: dict[str, str]) -> None:
    """A rank that steps with its partner and notes the time; rank 1 is killed in its first life."""
    import ray.train

    notes, killed = Path(config["notes"]), Path(config["notes"] + ".killed")
    rank = ray.train.get_context().get_world_rank()
    for _ in range(60):
        dist.all_reduce(torch.zeros(1000))
        time.sleep(0.1)
        if rank == 0:
            with notes.open("a") as stream:
                stream.write(f"{time.time()}\n")
        elif not killed.exists() and notes.exists() and len(notes.read_text().splitlines()) > 20:
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def measure_restart(folder: Path) -> float:
    """Seconds without a step around the death of a worker, through the real Ray Train."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder.mkdir()
    notes = folder / "steps"
    TorchTrainer(
        restarting_rank,
        train_loop_config={"notes": str(notes)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=1)),
    ).fit()
    times = np.array([float(line) for line in notes.read_text().split()])
    return float(np.diff(times).max())


def table(costs: tuple[float, float, float], seed: int) -> None:
    """Goodput for every number of nodes and rate of failures."""
    snapshot_s, write_s, restart_s = costs
    heads = [f"every {i} s" if i < 60 else f"{i // 60} min" for i in INTERVALS_S]
    print(f"| nodes | a node fails every | {' | '.join(heads)} | best interval | goodput there |")
    print("|---" * (len(heads) + 4) + "|")
    for nodes in NODES:
        for minutes in MINUTES_BETWEEN_FAILURES:
            mtbf_s = 60 * minutes / nodes
            best = best_interval_s(snapshot_s, write_s, mtbf_s)
            values = []
            for number, interval in enumerate((*INTERVALS_S, best)):
                rng = np.random.default_rng((seed, nodes, minutes, number))
                useful_s = max(min(FAILURES * mtbf_s, 50_000 * interval), 20 * interval)
                values.append(simulate(Costs(interval, snapshot_s, write_s, restart_s, mtbf_s), useful_s, rng))
            every = f"{minutes} min" if minutes < 60 else f"{minutes // 60} h" if minutes < 2880 else "30 days"
            cells = " | ".join(f"{value:.3f}" for value in values[:-1])
            shown = f"{best:.2f} s" if best < 100 else f"{best / 60:.1f} min"
            print(f"| {nodes} | {every} | {cells} | {shown} | {values[-1]:.3f} |")


def measure(encoder: str, rows: int, seed: int) -> None:
    """Measure all costs on this machine, and print them and the table."""
    from beatray.bench.corpus import write_large_corpus
    from beatray.ray_session import RaySettings, session

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with session(RaySettings(cpus=4, object_store_mb=256)):
            corpus = write_large_corpus(folder / "corpus", max(rows, 128))
            restart_s = min(measure_restart(folder / str(attempt)) for attempt in range(2))
        run_spec = run_spec_of(corpus, encoder, rows)
        objective, optimiser, step = step_of(run_spec, rows)
        step_s = least_s(step, 5)
        snapshot_s, write_s, size = measure_checkpoint(run_spec, objective, optimiser, folder)
        messages, two_ranks_s, link = measure_messages(corpus, encoder, rows)
    n_parameters = sum(p.numel() for p in objective.parameters())
    sent = sum(message.bytes for message in messages)
    print(f"{encoder}: {n_parameters / 1e6:.2f} M parameters, {rows} recordings per rank and step, one thread a rank")
    print(f"  step {step_s:.3f} s; between two ranks {two_ranks_s:.3f} s, of which messages", end=" ")
    print(f"{sum(seconds_on(2, m, link) for m in messages):.4f} s by the fitted link")
    print(f"  {len(messages)} messages of {sent / 1e6:.2f} MB; gloo: {1e6 * link.latency_s:.0f} us", end=" ")
    print(f"and {1e-9 / link.s_per_byte:.2f} GB/s")
    print(f"  checkpoint of {size / 1e6:.1f} MB: copy {snapshot_s:.4f} s, write {write_s:.3f} s")
    print(f"  a killed worker costs {restart_s:.1f} s until the next step")
    efficiency = {nodes: parallel_efficiency(nodes, step_s, messages, link) for nodes in NODES}
    print("  efficiency of a step: " + ", ".join(f"{n} nodes {value:.3f}" for n, value in efficiency.items()))
    table((snapshot_s, write_s, restart_s), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="*", default=["tiny", "xresnet1d50"])
    parser.add_argument("--rows", type=int, default=16, help="recordings of one rank in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--costs", help="SNAPSHOT,WRITE,RESTART in seconds: only simulate, with these")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.costs:
        snapshot_s, write_s, restart_s = map(float, asked.costs.split(","))
        table((snapshot_s, write_s, restart_s), asked.seed)
        return
    for encoder in asked.encoder:
        measure(encoder, asked.rows, asked.seed)


if __name__ == "__main__":
    main()
