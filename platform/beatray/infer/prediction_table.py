"""From answers of windows to the table that a user opens: a row for each recording, or for each wave.

    several yes-or-no targets   record_id, source, windows, then of each NAME probability_NAME and decision_NAME
    one of several classes      record_id, source, windows, probability_NAME of each, decision (the likeliest NAME)
    numbers                     record_id, source, windows, value_NAME of each
    waves                       record_id, source, wave (P, QRS, T), lead (null: shared), onset_s, peak_s, offset_s

An ensemble adds sd_NAME, the standard deviation over its members. Probabilities are calibrated. A recording in which no
wave is found has one row without a wave. Contract: recordings keep their order; all windows of one lie together; the
k-th window (`id#k`) begins at k times 10 s. The same answers give the same bytes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from beatray.corpus.writer import parquet_bytes
from beatray.infer.model import EcgModel
from beatray.models.calibration import window_means
from beatray.record import LEADS, RATE_HZ, WAVE_KINDS, WINDOW_SAMPLES

ROWS_PER_GROUP = 65536


def recording_starts(answers: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str], list[str]]:
    """Where each recording begins among the windows, the number of each window, ids and sources of recordings."""
    ids = answers["record_id"].to_pandas().astype(str)
    split = ids.str.partition("#")
    whole, number = split[0], split[2]
    source = answers["source"].to_pandas().astype(str)
    fresh = (whole != whole.shift()) | (source != source.shift())
    numbers = pd.to_numeric(number.where(number != "", "0")).to_numpy(np.int64)
    starts = np.flatnonzero(fresh.to_numpy())
    return starts, numbers, whole.iloc[starts].tolist(), source.iloc[starts].tolist()


def prediction_table(answers: pa.Table, model: EcgModel) -> pa.Table:
    """The table of the module text."""
    starts, numbers, ids, sources = recording_starts(answers)
    if model.kind == "waves":
        return _waves(answers, starts, numbers, ids, sources)
    members, names = len(model.load()), model.names
    flat = answers["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values = np.asarray(flat, np.float64).reshape(len(answers), members, len(names)).swapaxes(0, 1)
    found = model.prediction_of(window_means(values, starts))
    columns: dict[str, Any] = {
        "record_id": pa.array(ids, pa.string()),
        "source": pa.array(sources, pa.string()),
        "windows": pa.array(np.diff([*starts.tolist(), len(answers)]), pa.int32()),
    }
    kind = "value" if found.probabilities is None else "probability"
    shown = found.numbers if found.probabilities is None else found.probabilities
    assert shown is not None
    for column, name in enumerate(names):
        columns[f"{kind}_{name}"] = shown[:, column]
        if found.spread is not None:
            columns[f"sd_{name}"] = found.spread[:, column]
        if found.decisions is not None and model.kind == "multilabel":
            columns[f"decision_{name}"] = found.decisions[:, column]
    if found.decisions is not None and model.kind == "classes":
        columns["decision"] = pa.array([names[k] for k in found.decisions.argmax(1).tolist()], pa.string())
    return pa.table(columns)


def _waves(
    answers: pa.Table, starts: NDArray[np.int64], numbers: NDArray[np.int64], ids: list[str], sources: list[str]
) -> pa.Table:
    lists = answers["waves"].combine_chunks()
    counts = np.diff(lists.offsets.to_numpy())
    of_recording = np.repeat(np.arange(len(ids)), np.diff([*starts.tolist(), len(answers)]))
    flat = lists.flatten()
    begin = np.repeat(numbers * WINDOW_SAMPLES, counts)
    owner = np.repeat(of_recording, counts)
    without = np.setdiff1d(np.arange(len(ids)), owner)
    order = np.argsort(np.concatenate([owner, without]), kind="stable")
    take, empty = pa.array(order), pa.nulls(len(without))
    ids_array, sources_array = pa.array(ids, pa.string()), pa.array(sources, pa.string())

    def of_each(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.concat_arrays([pa.array(values, kind), empty.cast(kind)]).take(take)

    seconds = {
        f"{name}_s": of_each((begin + flat.field(name).to_numpy()) / RATE_HZ, pa.float64())
        for name in ("onset", "peak", "offset")
    }
    leads = [LEADS[lead] if lead >= 0 else None for lead in flat.field("lead").to_pylist()]
    owners = pa.array(np.concatenate([owner, without])[order])
    return pa.table(
        {
            "record_id": ids_array.take(owners),
            "source": sources_array.take(owners),
            "wave": of_each([WAVE_KINDS[kind] for kind in flat.field("kind").to_pylist()], pa.string()),
            "lead": of_each(leads, pa.string()),
            **seconds,
        }
    )


def table_bytes(table: pa.Table, form: str) -> bytes:
    """The table as a Parquet or CSV file."""
    if form == "parquet":
        return parquet_bytes(table, ROWS_PER_GROUP)
    sink = io.BytesIO()
    pacsv.write_csv(table, sink, pacsv.WriteOptions(quoting_style="needed"))
    return sink.getvalue()
