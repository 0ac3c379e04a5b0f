"""The worked examples of docs (adding-an-objective.md, adding-an-encoder.md), as they stand, train and are used."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import beatray
from beatray.models.encoder import LeadEncoder
from beatray.models.registry import build_encoder
from beatray.objectives.objective import needs_leads
from pretraining import losses, train_here

pytestmark = pytest.mark.ray

DOCS = Path(__file__).resolve().parents[2] / "docs"


def example(page: str) -> tuple[str, str]:
    """Module name and code of the page's example."""
    text = (DOCS / page).read_text()
    assert len(text.splitlines()) < 100
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 80
    return re.match(r'"""(\w+)\.py', code)[1], code  # type: ignore[index]


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's on the path, with both examples."""
    folder = tmp_path / "own"
    folder.mkdir()
    for page in ("adding-an-objective.md", "adding-an-encoder.md"):
        name, code = example(page)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_method_of_the_users_own(own_modules: Path, sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("objective.name=time_arrow:TimeArrow", "objective.crop_seconds=2", "objective.reversed_part=0.4")
    assert train_here(sample_corpus, tmp_path, "arrow", *overrides)
    assert len(losses(tmp_path, "arrow")) > 5 and np.isfinite(losses(tmp_path, "arrow")).all()
    with pytest.raises(ValueError, match=r"objective\.reversed_part must be below 1, not 1\.5"):
        train_here(sample_corpus, tmp_path, "no", overrides[0], "objective.reversed_part=1.5")


def test_a_network_of_the_users_own(own_modules: Path, sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("encoder.name=small_net:SmallNet", "encoder.width=4", "objective.augment.crop_seconds=2")
    assert train_here(sample_corpus, tmp_path, "small", *overrides)
    encoder = beatray.load_encoder(str(tmp_path / "small"))
    assert [(stage.channels, stage.stride, stage.offset) for stage in encoder.stages] == [(4, 8, 3.5), (8, 16, 3.5)]
    maps = encoder.forward_stages(torch.zeros(0, 12, 5000))
    assert [fmap.shape for fmap in maps] == [(0, 4, 625), (0, 8, 313)]


def test_a_network_that_reads_each_lead_alone_is_asked_for_by_name() -> None:
    class PerLead(type(build_encoder("tiny"))):  # type: ignore[misc]
        leads, lead_groups, lead_dim = (0, 1), ((0, 1),), 3

        def forward_leads(self, x_mv: torch.Tensor, n_samples: torch.Tensor | None = None) -> torch.Tensor:
            return x_mv[:, :2].mean(-1, keepdim=True).expand(-1, -1, self.lead_dim)

    network = PerLead(build_encoder("tiny").settings)
    assert isinstance(needs_leads(network, "Lead contrast"), LeadEncoder)
    with pytest.raises(ValueError, match="Lead contrast needs a network that reads each lead alone"):
        needs_leads(build_encoder("tiny"), "Lead contrast")
