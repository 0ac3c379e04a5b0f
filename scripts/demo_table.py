"""Write what `beatray demo` found into README.md: the table between the two marks, and the sentence above it.

    python scripts/demo_table.py DEMO_FOLDER --took SECONDS [--check]

DEMO_FOLDER is what the demo made, SECONDS what its last line says. The processor, its cores and the date are those of
this machine and of the demo's results. `--check` writes nothing and fails where README has another table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beatray.bench.run import cores
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES
from beatray.train.timing import processor

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- scripts/demo_table.py -->\n", "<!-- end -->\n"
MAIN = {"segment": "f1", "classify": "auroc"}
HEADER = ("task", "protocol", "labelled records", "score", "pretrained", "random", "difference, 95 % interval")


def rendered(table: Mapping[str, Any], took_s: float, cpu: str, count: int, day: str, seeds: int) -> str:
    """The block of README: the demo took so long on `count` cores of that processor, and was evaluated by `seeds`."""
    on = {1: "one core", 2: "two cores"}.get(count, f"{count} cores")
    over = f"Means ± SD over {seeds} seeds" if seeds > 1 else "Of one seed"
    head = (
        f"`beatray demo` took {took_s:.0f} s on {on} of an {cpu} on {day}. {over} of everything\nafter pretraining:\n"
    )
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    before = ("", "")
    for row in table["rows"]:
        if row["metric"] != MAIN[row["task"]] or row["condition"] != "clean":
            continue
        protocol = PROTOCOL_NAMES[row["task"], row["protocol"]]
        labels = str(row["train_records"]) + (f" ({row['fraction']:.0%})" if row["task"] == "segment" else "")
        gap = row["difference"]
        cells = [
            row["title"] if row["task"] != before[0] else "",
            protocol if (row["task"], protocol) != before else "",
            labels.replace("%", " %"),
            METRIC_NAMES[row["metric"]],
            *(f"{row[name][0]:.3f}" + f" ± {_short(row[name][1])}" * (seeds > 1) for name in ("pretrained", "random")),
            f"{gap['value']:+.3f} ({_short(gap['low'], '+')} to {_short(gap['high'], '+')})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        before = (row["task"], protocol)
    return f"{head}\n" + "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def _short(value: float, sign: str = "") -> str:
    """Three digits without the zero before the point."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--took", type=float, required=True)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    file = args.folder / "table.json"
    day = datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
    cpu = processor().replace("(R)", "").replace(" Processor", "")
    seeds = len(json.loads((args.folder / "results.json").read_text())["settings"]["seeds"])
    block = rendered(json.loads(file.read_text()), args.took, cpu, cores(), day, seeds)
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if args.check:
        table = block.partition("\n\n")[2]
        if old.partition("\n\n")[2] != table:
            print(f"README.md has another table than {args.folder}:\n{table}")
            return 1
        return 0
    README.write_text(before + BEGIN + block + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
