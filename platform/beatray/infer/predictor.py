"""A worker of a prediction run: holds the models and turns windows into their outputs for each.

No Ray here: Ray Data makes one `Predictor` per worker process and calls it with one unit of reading. Contract: what it
returns depends on the unit and on `Work` alone, so that predictions are the same whoever computes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from beatray.corpus.schema import signals_of
from beatray.errors import CheckpointError, CorpusError
from beatray.infer.found_waves import Waves
from beatray.infer.model import EcgModel
from beatray.infer.worker import packed
from beatray.models.model_folder import model_sha256
from beatray.record import WAVE_DTYPE, WINDOW_SAMPLES

WAVE = pa.struct([(name, pa.int32()) for name in ("lead", "kind", "onset", "peak", "offset")])
OF_WINDOWS = {
    "values": pa.schema([("record_id", pa.string()), ("source", pa.string()), ("values", pa.list_(pa.float64()))]),
    "waves": pa.schema([("record_id", pa.string()), ("source", pa.string()), ("waves", pa.list_(WAVE))]),
}
"""The outputs for each window: the numbers of all members, one after another, or waves in samples of the window."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker must know of the plan."""

    models: tuple[str, ...]
    sha256: tuple[str, ...]
    threads: int
    use_gpu: bool


class Predictor:
    """The models in evaluation mode, on the GPU where the worker has one."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.threads)
        if work.use_gpu:
            torch.backends.cudnn.allow_tf32 = False  # the answers of a CPU, but for the rounding of sums
            torch.backends.cudnn.deterministic = True
        for path, sha256 in zip(work.models, work.sha256, strict=True):
            if model_sha256(path) != sha256:
                raise CheckpointError(f"{path} is not the same model on every node, or was replaced meanwhile")
        self._model = EcgModel(list(work.models), device="cuda" if work.use_gpu else "cpu").fit()

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row: the unit, the outputs for its windows as an Arrow stream, and its refusals as JSON."""
        units = set(table["unit"].to_pylist())
        if len(units) != 1:
            raise CorpusError(f"Ray Data mixed units: {sorted(units)}")
        refused = table.filter(pc.is_valid(table["reason"])).select(["source", "record_id", "reason", "detail"])
        windows = table.filter(pc.is_null(table["reason"])).combine_chunks()
        return pa.table(
            {
                "unit": list(units),
                "answers": [packed(answers_of(self._model, windows))],
                "refused": [json.dumps(refused.to_pylist())],
            }
        )


def answers_of(model: EcgModel, windows: pa.Table) -> pa.Table:
    """The outputs of the models for each window, as one of `OF_WINDOWS`."""
    signal_uv = signals_of(windows["signal"]) if len(windows) else np.empty((0, 12, WINDOW_SAMPLES), np.int16)
    n_samples = windows["n_samples"].to_numpy().astype(np.int64)
    name = "waves" if model.kind == "waves" else "values"
    if name == "waves":
        lists = _lists(model.waves(signal_uv, n_samples))
    else:
        values = model.values(signal_uv, n_samples)
        lists = pa.array(list(values.swapaxes(0, 1).reshape(len(windows), len(values) * values.shape[2])))
    schema = OF_WINDOWS[name]
    about = {"record_id": windows["record_id"], "source": windows["source"]}
    return pa.table({**about, name: lists.cast(schema.field(name).type)}).cast(schema)


def _lists(waves: list[Waves]) -> pa.Array:
    flat = np.concatenate([*waves, np.empty(0, WAVE_DTYPE)])
    starts = np.cumsum([0, *map(len, waves)], dtype=np.int32)
    fields = [pa.array(flat[item.name].astype(np.int32)) for item in WAVE]
    return pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(fields, fields=list(WAVE)))
