"""A worker of an embedding run: holds the encoder and turns the rows of one row group into tables of vectors.

No Ray here: Ray Data makes one `Embedder` per worker process and calls it. Contract: what it returns depends on the row
group and on `Work` alone, so that the files are the same whoever computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from beatray.corpus.schema import signals_of
from beatray.errors import CheckpointError, CorpusError
from beatray.infer.files import table_of
from beatray.infer.plan import EmbedPlan
from beatray.infer.vectors import BeatBoxes, embed_rows
from beatray.models.encoder_folder import encoder_sha256, load_encoder

COLUMNS = ("record_id", "source", "fold", "signal", "n_samples", "r_peaks")
"""What it needs of a corpus; two more columns, shard and group, name where the rows belong."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker must know of the plan."""

    encoder: str
    encoder_sha256: str
    levels: tuple[str, ...]
    boxes: BeatBoxes
    batch_size: int
    bf16: bool
    threads: int
    use_gpu: bool


def work_of(plan: EmbedPlan, use_gpu: bool) -> Work:
    """The part of a plan that travels to the workers."""
    s = plan.settings
    return Work(
        plan.encoder,
        plan.encoder_sha256,
        plan.levels,
        plan.boxes,
        s.batch_size,
        s.precision == "bf16",
        s.threads_per_worker,
        use_gpu,
    )


class Embedder:
    """The encoder in eval mode, on the GPU where the worker has one."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.threads)
        if work.use_gpu:
            torch.backends.cudnn.allow_tf32 = False  # the vectors of a CPU, but for the rounding of sums
            torch.backends.cudnn.deterministic = True
        if encoder_sha256(work.encoder, listed=True) != work.encoder_sha256:
            raise CheckpointError(f"{work.encoder} is not the same encoder on every node, or was replaced meanwhile")
        self._encoder: Any = load_encoder(work.encoder).to("cuda" if work.use_gpu else "cpu")
        self._work = work

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row: where the row group belongs, and its tables of vectors as Arrow streams, one column per level."""
        groups = set(zip(table["shard"].to_pylist(), table["group"].to_pylist(), strict=True))
        if len(groups) != 1:
            raise CorpusError(f"Ray Data mixed row groups: {sorted(groups)}")
        ((shard, group),) = groups
        work, table = self._work, table.combine_chunks()
        made = embed_rows(
            self._encoder,
            signals_of(table["signal"]),
            table["n_samples"].to_numpy().astype(np.int64),
            _padded(table["r_peaks"].to_pylist()),
            work.boxes if "beat" in work.levels else None,
            batch_size=work.batch_size,
            bf16=work.bf16,
        )
        out: dict[str, Any] = {"shard": [shard], "group": [group]}
        about = table.select(["record_id", "source", "fold"])
        if "recording" in work.levels:
            out["recording"] = [packed(table_of("recording", made.recording, _columns(about)))]
        if "beat" in work.levels:
            beats = {**_columns(about.take(pa.array(made.row))), "beat": made.number, "r_peak": made.r_peak}
            out["beat"] = [packed(table_of("beat", made.beat, beats))]
        return pa.table(out)


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: table[name] for name in table.column_names}


def _padded(peaks: list[list[int]]) -> NDArray[np.int64]:
    """R-peaks of n rows as (n, P), -1 where a row has fewer."""
    padded = np.full((len(peaks), max([1, *map(len, peaks)])), -1, np.int64)
    for row, samples in enumerate(peaks):
        padded[row, : len(samples)] = samples
    return padded


def packed(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpacked(data: bytes) -> pa.Table:
    """A table of vectors out of its stream."""
    return pa.ipc.open_stream(data).read_all()
