"""The sentence above the table of README says what the demo was run with."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import demo_table
import pytest

ROW = {
    "task": "classify",
    "protocol": "linear_probe",
    "metric": "auroc",
    "condition": "clean",
    "title": "PTB-XL superclasses",
    "train_records": 108,
    "fraction": 1.0,
    "pretrained": [0.815, 0.012],
    "random": [0.8, 0.014],
    "difference": {"value": 0.015, "low": -0.044, "high": 0.074},
}
CELLS = "| PTB-XL superclasses | linear probe | 108 | AUROC |"


def test_the_text_of_readme_is_that_of_three_seeds_on_two_cores() -> None:
    text = demo_table.README.read_text(encoding="utf-8")
    block = text.partition(demo_table.BEGIN)[2].partition(demo_table.END)[0]
    took, cpu, day = re.findall(r"took (\d+) s on two cores of an (.+) on ([\d-]+)\.", block)[0]
    made = demo_table.rendered({"rows": [ROW]}, float(took), cpu, 2, day, 3)
    assert made.partition("\n\n")[0] == block.partition("\n\n")[0]
    assert made.splitlines()[-1] == f"{CELLS} 0.815 ± .012 | 0.800 ± .014 | +0.015 (-.044 to +.074) |"


@pytest.mark.parametrize(
    ("seeds", "said"), [([0, 1], "Means ± SD over 2 seeds of everything"), ([4], "Of one seed of")]
)
def test_seeds_are_those_of_the_results_and_cores_those_of_the_machine(
    seeds: list[int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_table, "README", tmp_path / "README.md")
    demo_table.README.write_text(f"before\n{demo_table.BEGIN}old\n{demo_table.END}after\n")
    row = ROW if len(seeds) > 1 else ROW | {"pretrained": [0.815, float("nan")], "random": [0.8, float("nan")]}
    (tmp_path / "table.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "results.json").write_text(json.dumps({"settings": {"seeds": seeds}}))
    usable = len(os.sched_getaffinity(0))
    assert demo_table.main([str(tmp_path), "--took", "12"]) == 0
    text = demo_table.README.read_text(encoding="utf-8")
    words = {1: "on one core of", 2: "on two cores of"}.get(usable, f"on {usable} cores of")
    assert said in text and words in text and "nan" not in text
    assert demo_table.main([str(tmp_path), "--took", "12", "--check"]) == 0
