"""Every method on two and three ranks is the method on one: loss, gradient, statistics, teachers, over several steps.

Real processes over gloo, under DistributedDataParallel, in float64, with uneven ranks and one without any row. A method
is here by being in the registry: see tests/every_method.py. Those that learn from labels are here, too (labelled.py).
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beatray.objectives import row_chunks
from beatray.objectives.objective import Progress
from beatray.train.blocks import Arrays
from beatray.train.optimizer import build_optimizer
from counts import count
from every_method import RECIPES, batch_of, model_of, rows_of, settings_of, views_of
from labelled import KINDS, settings_for, targets_of

torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other

CHUNKS, STATIC = "in chunks", "static shapes"

FORMS: list[tuple[str, ...]] = [
    ("simclr_tiny", CHUNKS),
    ("physio_contrast_tiny", "objective.ratio=true", CHUNKS),
    ("clocs_tiny", CHUNKS),
    ("cpc_tiny", "objective.batch_negatives=3", CHUNKS, STATIC),
    ("ts2vec_tiny", CHUNKS, STATIC),
    ("beat_ssl_tiny", "objective.rhythm=soft_z", "objective.beat=soft_z", "objective.loss=softclt", CHUNKS),
    ("beat_ssl_tiny", "objective.rhythm=soft_1", "objective.beat=soft_1", "objective.positive_mass=0", CHUNKS, STATIC),
    ("beat_ssl_tiny", "objective.rhythm=soft_2", "objective.beat_positives=clusters", STATIC),
    ("beat_ssl_tiny", "objective.rhythm=soft_z", "objective.beat=soft_z", "objective.loss=sigmoid", STATIC),
    ("dense_beats_conv_tiny", "objective.prediction.batch_negatives=3", "objective.prediction.negatives=iid"),
]
"""Chunks of rows, and shapes that follow from the rows alone."""

LABELLED: list[tuple[str, ...]] = [
    ("multilabel", "objective.weights=[0.5,2,0.5,2,0.5,2,0.5,2,0.5,2]"),
    ("waves", "objective.trained=last"),
    ("classes", "objective.layer_decay=0.5"),
    ("numbers", "objective.hidden=8"),
    ("waves", "objective.trained=head", "objective.decoder=unet"),
]
"""Kinds of labels, each with some that are not known: the divisor is the count of known ones over all ranks."""

CASES: list[tuple[str, ...]] = [
    *((recipe,) for recipe in RECIPES),
    ("cpc_tiny", "objective.batch_negatives=3"),  # moments gathered from all ranks, with their gradient
    ("clocs_tiny", "objective.symmetric=false"),  # the order of recordings over all ranks counts
    ("swav_tiny", "objective.queue_rows=8", "objective.queue_start=0", "objective.freeze=0"),  # a queue that is full
    ("lead_contrast_tiny", "objective.segments=halves"),
    ("beat_ssl_tiny", "objective.rhythm=soft_1", "objective.beat=soft_2", "objective.feature_weight=0.5"),
    ("dense_beats_tiny", "objective.prediction.signal=views", "objective.prediction.batch_negatives=3", CHUNKS, STATIC),
    *count(FORMS[::4], FORMS),
    *LABELLED,
]
"""Every method, and settings that gather something else. Chunks and static shapes are for ranks, not for one."""

SIZES = count({3: [3, 0, 4]}, {2: [6, 1], 3: [3, 0, 4]})
ATOL = 1e-9
WHOLE = row_chunks.CELLS


def steps_of(case: tuple[str, ...]) -> int:
    """Two show the update, teachers and statistics; the queue of SwAV is full in the third."""
    return 3 if case[0].startswith("swav") else count(2, 3)


def run_case(
    case: tuple[str, ...], arrays: Arrays, statistics: dict[str, Any], sizes: list[int], rank: int
) -> dict[str, Any]:
    """Some steps on this rank's rows: losses, means, the gradient of the first step and the state at the end."""
    if case[0] in KINDS:
        settings, arrays = settings_for(*case), {**arrays, "target": arrays[f"target_{case[0]}"]}
    else:
        settings = settings_of(*(setting for setting in case if setting not in (CHUNKS, STATIC)))
    objective = model_of(settings, statistics, exact=True)
    objective.static_shapes = STATIC in case and len(sizes) > 1
    row_chunks.CELLS = 30 if CHUNKS in case and len(sizes) > 1 else WHOLE
    module: nn.Module = DistributedDataParallel(objective, broadcast_buffers=False) if len(sizes) > 1 else objective
    optimizer = build_optimizer(objective, settings.train)
    first = sum(sizes[:rank])
    mine = batch_of(objective, arrays, slice(first, first + sizes[rank]))
    found: dict[str, Any] = {}
    steps = steps_of(case)
    for number in range(steps):
        at = Progress(number, steps, number, steps)
        result = module(views_of(objective, mine, number, exact=True), at)
        optimizer.zero_grad()
        result.loss.backward()
        for name, value in {**result.means, **result.counts}.items():
            found[f"{number}/{name}"] = value.numpy()
        if number == 0:
            gradients = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
            found |= {f"grad/{name}": gradient.numpy().copy() for name, gradient in gradients.items()}
        optimizer.step()
        objective.after_step(at)
    return found | {f"state/{name}": value.numpy() for name, value in objective.state_dict().items()}


def rank_main(rank: int, processes: int, folder: str) -> None:
    """The same processes are two ranks and then three: starting them takes longer than what they do."""
    torch.set_num_threads(1)
    arrays = dict(np.load(f"{folder}/rows.npz"))
    statistics = json.loads(Path(f"{folder}/statistics.json").read_text())
    for world in sorted(SIZES):
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
            for number, case in enumerate(CASES):
                found = run_case(case, arrays, statistics, SIZES[world], rank)
                np.savez(f"{folder}/{number}-{world}-{rank}.npz", **found)
            dist.barrier()
            dist.destroy_process_group()
    os._exit(0)  # left to itself the tear-down of the interpreter aborts now and then behind DistributedDataParallel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every rank of two and of three wrote."""
    into = tmp_path_factory.mktemp("methods")
    arrays, statistics = copy.deepcopy(rows_of(7))
    arrays["r_peaks"][1] = -1
    arrays["n_samples"][4] = 700  # shorter than a crop
    arrays["signal_uv"][4, :, 700:] = 0
    arrays["patient_key"][[3, 6]] = arrays["patient_key"][0]  # a patient on several ranks
    arrays |= {f"target_{kind}": targets_of(kind, 7) for kind in KINDS}
    np.savez(into / "rows.npz", **arrays)
    (into / "statistics.json").write_text(json.dumps(statistics))
    mp.spawn(rank_main, args=(max(SIZES), str(into)), nprocs=max(SIZES))
    return into


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_ranks_together_are_one_rank(number: int, folder: Path) -> None:
    arrays = dict(np.load(folder / "rows.npz"))
    statistics = json.loads((folder / "statistics.json").read_text())
    alone = run_case(CASES[number], arrays, statistics, [7], 0)
    part = "grad/head" if "objective.trained=head" in CASES[number] else "grad/encoder"
    assert max(np.abs(value).max() for name, value in alone.items() if name.startswith(part)) > 1e-6
    for world, sizes in SIZES.items():
        for rank in range(len(sizes)):
            with np.load(folder / f"{number}-{world}-{rank}.npz") as together:
                assert sorted(together.files) == sorted(alone)
                for name, expected in alone.items():
                    rtol = 1e-5 if name[0].isdigit() else 1e-7  # means are kept in float32
                    np.testing.assert_allclose(
                        together[name], expected, atol=ATOL, rtol=rtol, err_msg=f"{name}, rank {rank} of {world}"
                    )
