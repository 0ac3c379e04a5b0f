"""The site builds without a warning (each link inside it leads somewhere), and README's links do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(folder)]
    built = subprocess.run(sphinx, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_reached_and_asks_the_network_for_nothing(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    index = (site / "index.html").read_text()
    assert pages and all(f'href="{page}.html"' in index for page in pages - {"index"})
    for page in site.rglob("*.html"):
        assert not re.search(r'(src|<link[^>]*href)="https?:', page.read_text()), page.name


def test_commands_settings_and_methods_are_those_of_the_code(site: Path) -> None:
    from beatray.cli_parser import parser
    from beatray.models.registry import encoder_classes
    from beatray.objectives.registry import objective_classes, supervised_classes

    commands = (site / "generated" / "commands.html").read_text()
    assert all(f'id="beatray-{name}"' in commands for name in parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    settings = (site / "generated" / "settings.html").read_text()
    for key in (
        "train.learning_rate",
        "corpus.most_recordings",
        "evaluate.robustness.noise_levels",
        "sweep.core_minutes",
        "predict.recordings_per_task",
    ):
        assert key in settings
    for command, sphinx in (("embed", "embed.beat_pooling"), ("predict", "predict.workers")):
        section = settings[settings.index(f'id="{command}"') :]
        assert sphinx in section and re.search(r">out<|<code[^>]*>[^<]*<span[^>]*>out</span>", section)
    methods = (site / "generated" / "methods.html").read_text()
    for name in (*objective_classes(), *supervised_classes(), *encoder_classes()):
        assert f"<h3>{name}" in methods


def test_links_of_the_pages_at_the_root_lead_somewhere() -> None:
    for page in ROOT.glob("*.md"):
        text = page.read_text()
        headings = {_anchor(line) for line in text.splitlines() if line.startswith("#")}
        for target, anchor in LINK.findall(text):
            if target and not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
            elif anchor and not target:
                assert anchor[1:] in headings, f"{page.name}: {anchor}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")
