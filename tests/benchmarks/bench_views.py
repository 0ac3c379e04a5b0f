"""3KG views, batched by one matrix per record, against record by record in numpy: one process, interleaved, medians.

Run: PYTHONPATH=platform python tests/benchmarks/bench_views.py

The rival is 3KG as usually written: for each record and view the vectorcardiogram, turned and scaled, back to leads,
limb leads, one zeroed block per lead, in float64. Both make two views of 5-s crops of the same records; neither is
charged for drawing parameters in the first two lines. The last line is the whole recipe, draws and high-pass included.
Times are CPU times of one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.augment.draws import Draws
from beatray.augment.masks import draw_mask, time_mask
from beatray.augment.three_kg import draw_heart, heart_matrices, three_kg
from beatray.augment.two_views import ViewSettings, make_two_views
from beatray.augment.vcg import DOWER, INVERSE_DOWER
from beatray.preprocess import prepare
from beatray.record import INDEPENDENT_LEADS

RECORDS, SAMPLES, REPEATS = 32, 2500, 15


def three_kg_record(
    x: NDArray[np.float64], heart: NDArray[np.float64], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One view of one record: (12, T) -> (12, T)."""
    eight = DOWER @ (heart @ (INVERSE_DOWER @ x[list(INDEPENDENT_LEADS)]))
    one, two = eight[0], eight[1]
    out = np.vstack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, eight[2:]])
    length = x.shape[1] // 2
    for lead, start in enumerate(starts):
        out[lead, start : start + length] = 0.0
        out[lead, : max(start + length - x.shape[1], 0)] = 0.0
    return out


def measure(rivals: dict[str, Callable[[], object]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(REPEATS):
        for name, work in rivals.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    slowest = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"  {name:<58} {RECORDS / median:9,.0f} records/s   {slowest / median:5.1f}x")


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    keys = np.arange(RECORDS)
    of_records = Draws(keys, 0, 0)
    x_mv = torch.as_tensor(rng.normal(size=(RECORDS, 12, SAMPLES)), dtype=torch.float32)
    x_double = x_mv.double().numpy()
    draws = {view: draw_heart(of_records, view) for view in (1, 2)}
    hearts = {view: heart_matrices(draws[view], 45.0, 1.5) for view in (1, 2)}
    masks = {view: draw_mask(of_records, view) for view in (1, 2)}
    starts = {view: (masks[view] * SAMPLES).astype(np.int64) for view in (1, 2)}
    batch = {
        "signal_uv": torch.as_tensor(rng.normal(size=(RECORDS, 12, 5000)) * 300).to(torch.int16),
        "n_samples": torch.full((RECORDS,), 5000),
        "record_key": torch.as_tensor(keys),
    }

    def record_by_record() -> None:
        for view in (1, 2):
            for row in range(RECORDS):
                three_kg_record(x_double[row], hearts[view][row], starts[view][row])

    def batched() -> None:
        for view in (1, 2):
            time_mask(three_kg(x_mv, draws[view], mode="project"), masks[view], in_place=True)

    for view in (1, 2):
        separate = time_mask(three_kg(x_mv, draws[view], mode="project"), masks[view])
        theirs = three_kg_record(x_double[0], hearts[view][0], starts[view][0])
        np.testing.assert_allclose(separate[0], theirs, atol=1e-5)

    print(f"two 3KG views, {RECORDS} records of {SAMPLES} samples, one thread, median of {REPEATS}")
    measure(
        {
            "numpy, record by record, float64": record_by_record,
            "batched, one matrix per record, float32": batched,
            "  drawing the parameters of both views": lambda: [
                (draw_heart(of_records, view), draw_mask(of_records, view)) for view in (1, 2)
            ],
            "  high-pass of the whole 10 s from int16": lambda: prepare(batch["signal_uv"]),
            "whole recipe from int16, 10 s to two views of 5 s": lambda: make_two_views(
                batch, ViewSettings(), of_records
            ),
        }
    )


if __name__ == "__main__":
    main()
