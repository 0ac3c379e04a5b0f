"""`beatray demo objective=NAME` with each method there is, on 24 recordings of each source, ends with a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatray.commands import demo
from counts import count
from every_method import METHODS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(count(0, 1) == 0, reason="a minute each: runs with BEATRAY_CHAOS=1"),
]


@pytest.mark.parametrize("method", METHODS)
def test_the_demo_ends_with_a_table(method: str, local_ray: None, tmp_path: Path) -> None:
    overrides = [f"objective={method}", "records=24", "train.epochs=4", "train.warmup_epochs=1", "evaluate.seeds=[0]"]
    settings = demo.settings_from(
        [*overrides, "evaluate.permutations=1", "evaluate.bootstraps=50"], str(tmp_path / "demo")
    )
    assert settings.objective["name"] == method
    assert demo.run(settings) == 0
    table = (tmp_path / "demo" / "table.txt").read_text()
    assert "waves" in table and "diagnoses" in table
    report = (tmp_path / "demo" / "report.html").read_text()
    assert "How it learned" in report and "Scores of the encoder" in report
