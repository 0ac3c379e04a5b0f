"""How the site is made of this folder: Sphinx with MyST. `make docs` writes it to docs/_build/html, without the net.

Pages of commands, settings and methods are made anew from the code by `generated.py` before each build.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from generated import write_pages  # noqa: E402

project = "beatray"
author = "the beatray developers"
release = metadata.version("beatray")
copyright = "the beatray developers, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build", "**/__pycache__"]
nitpicky = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"beatray {release}"
html_copy_source = False
html_static_path: list[str] = []

write_pages(HERE / "generated")
