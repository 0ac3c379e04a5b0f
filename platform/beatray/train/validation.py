"""The validation of training: the objective itself on recordings that are never trained on.

The batches, their views and their order are the same at every validation, whatever the number of ranks, so the values
of one run can be compared. Rows are read once and kept by each rank: its own share only. Contract: `scores` changes no
weight, no running statistic and no random state; every rank has the same scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from beatray.augment.draws import VALIDATION_EPOCH
from beatray.corpus.reader import read_row_group
from beatray.corpus.schema import SCHEMA
from beatray.errors import CorpusError
from beatray.objectives.objective import Objective, Progress
from beatray.train.blocks import Arrays, corpus_columns, decode
from beatray.train.order import epoch_order, share, steps_per_epoch
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec

log = logging.getLogger(__name__)


class Validation:
    """One rank's share of the validation batches."""

    def __init__(self, run_spec: RunSpec, ranks: Ranks) -> None:
        self._run_spec, self._ranks = run_spec, ranks
        self._batches: list[Arrays] = []
        stream = run_spec.validation
        sizes = [len(group.rows) for group in stream.groups]
        n_rows, batch_size = int(sum(sizes)), run_spec.settings.train.batch_size
        order = epoch_order(sizes, replace(stream.order, patients=None), 0) if n_rows else np.empty((0, 2), np.int32)
        shares = [
            share(n_rows, batch_size, step, ranks.rank, ranks.world)[0]
            for step in range(steps_per_epoch(n_rows, batch_size))
        ]
        needed = order[np.concatenate([cut for cut, _ in shares])] if shares else order
        nothing = decode(SCHEMA.empty_table(), stream.arrays, stream.clusters, stream.targets)
        held: dict[int, Arrays] = {}
        for number in np.unique(needed[:, 0]).tolist():
            group = stream.groups[number]
            columns = corpus_columns(stream.arrays)
            try:
                table = read_row_group(stream.store, group.shard, group.group, columns).take(list(group.rows))
            except CorpusError:
                if stream.on_bad_shard == "stop":
                    raise
                log.warning("validating without the rows of a shard that cannot be read: %s", group.shard.name)
                continue
            held[number] = decode(table.combine_chunks(), stream.arrays, stream.clusters, stream.targets)
        for cut, _ in shares:
            picked = [(held[g], row) for g, row in order[cut].tolist() if g in held]
            self._batches.append(_rows(picked) if picked else nothing)
        self._rows = ranks.sums([len(arrays["record_key"]) for arrays in self._batches])

    @torch.no_grad()
    def scores(
        self,
        objective: Objective,
        to_views: Callable[[Arrays, int], dict[str, Tensor]],
        at: Progress,
        precision: str = "fp32",
    ) -> dict[str, float]:
        """`validation_loss`, the mean loss at that point of the run over all validation recordings, or over what the
        objective averages; and its scores of the outputs as `validation_NAME`. Every rank must call it.
        """
        was_training = objective.training
        objective.eval()
        random = torch.random.get_rng_state()
        total, weights = torch.zeros(2, dtype=torch.float64, device=self._ranks.device)
        outputs: list[Arrays] = []
        for arrays, rows in zip(self._batches, self._rows, strict=True):
            if not rows:
                continue  # on every rank
            views = to_views(arrays, VALIDATION_EPOCH)
            with torch.autocast(self._ranks.device.type, torch.bfloat16, enabled=precision == "bf16"):
                result = objective(views, at)
            weight = rows if objective.mean_over is None else result.counts[objective.mean_over].double()
            total += result.means["loss"].double() * weight
            weights += weight
            outputs.append({name: value.float().cpu().numpy() for name, value in result.outputs.items()})
        torch.random.set_rng_state(random)
        objective.train(was_training)
        means = {"validation_loss": float(total) / max(float(weights), 1.0)}
        if outputs and outputs[0]:
            parts = [part for of_rank in self._ranks.gather(outputs) for part in of_rank]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in outputs[0]}
            means |= {f"validation_{name}": value for name, value in objective.validated(whole).items()}
        return means


def _rows(picked: list[tuple[Arrays, int]]) -> Arrays:
    return {name: np.stack([arrays[name][row] for arrays, row in picked]) for name in picked[0][0]}
