"""The report of a bench as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

COLUMNS = ("records/s", "/CPU s", "ms/step", "spread", "of peak", "data wait", "MiB", "x plain", "/CPU s")
"""Records a second, and for each second that some core worked; the last two are those two against the plain loop's."""

WIDTH, COLUMN = 27, 10


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A head, the table and what was left out, of what `run.Report.as_dict` gives."""
    yield from head_lines(report["head"])
    yield ""
    yield f"{'':<{WIDTH}}" + "".join(f"{name:>{COLUMN}}" for name in COLUMNS)
    for name, row in report["rows"].items():
        yield f"{name:<{WIDTH}}" + "".join(f"{value:>{COLUMN}}" for value in _values(row))
    yield ""
    for text in report["left_out"]:
        yield f"left out: {text}"


def head_lines(head: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, where and with which settings."""
    names = f"recipe {head['recipe']}" if head["recipe"] else f"{head['objective']} on {head['encoder']}"
    how = f"batch {head['batch_size']}, {head['precision']}, compile {head['compile']}, overlap {head['overlap']}"
    yield f"{names}, {how}, one rank"
    threads = f"{head['cores']} cores, {head['threads']} thread{'s' if head['threads'] > 1 else ''} a step"
    where = f"{head['gpu']}; {head['processor']}" if head["gpu"] else str(head["processor"])
    yield f"{where}, {threads}; torch {head['torch']}, {head['date']}"
    disk, memory = (f"{head[f'bytes_per_row_{where}'] / 1e3:.0f} kB" for where in ("on_disk", "decoded"))
    yield f"corpus of {head['corpus_rows']:,} recordings, {disk} each on disk, {memory} decoded"
    roof, flop = head["roof_flop_per_s"] / 1e12, head["flop_per_record"] / 1e9
    yield f"{flop:.3g} GFLOP a record forward and backward; peak: {roof:.3g} TFLOP/s in a matrix product measured here"
    workers = head["workers_of_the_plain_loop"]
    yield f"the loop is fed by {head['feed_of_the_loop']}; the plain loop by {workers} workers of a DataLoader"


def _values(row: Mapping[str, Any]) -> Iterator[str]:
    forms = (
        ("records_per_s", lambda x: f"{x:,.0f}" if x >= 100 else f"{x:.1f}"),
        ("records_per_cpu_s", lambda x: f"{x:,.0f}" if x >= 100 else f"{x:.1f}"),
        ("step_ms", lambda x: f"{x:,.1f}"),
        ("spread", lambda x: f"{100 * x:.0f} %"),
        ("share_of_peak", lambda x: f"{100 * x:.1f} %"),
        ("data_wait", lambda x: f"{100 * x:.1f} %"),
        ("memory_mib", lambda x: f"{x:,.0f}"),
        ("times_plain", lambda x: f"{x:.2f}"),
        ("times_plain_per_cpu_s", lambda x: f"{x:.2f}"),
    )
    for name, form in forms:
        yield form(row[name]) if row.get(name) is not None else "-"
