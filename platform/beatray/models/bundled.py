"""Pretrained weights that come with the package, called by name: `beatray-small`, an encoder; `beatray-waves`, a model.

Each lies in `beatray/weights/NAME`: an exported encoder or a model folder, its card (README.md) and `about.json`, what
`beatray models` prints. Contract: a name stands for the location beatray://NAME, which every node finds in its own copy
of the package. A local folder of the same name is given as ./NAME.
"""

from __future__ import annotations

import json
from typing import Any

from beatray.storage.store import PACKAGE_SCHEME, PACKAGED, Store

ABOUT, CARD = "about.json", "README.md"


def names() -> tuple[str, ...]:
    """The weights there are."""
    return tuple(sorted(file.parent.name for file in PACKAGED.glob(f"*/{ABOUT}")))


def location_of(text: str) -> str:
    """The location of weights: that in the package for one of their names, else the text itself."""
    return f"{PACKAGE_SCHEME}://{text}" if text in names() else text


def about(name: str) -> dict[str, Any]:
    """What is known of bundled weights: `about.json`."""
    return dict(json.loads(Store(location_of(name)).read(ABOUT)))


def card(name: str) -> str:
    """The card of bundled weights, as markdown."""
    return Store(location_of(name)).read(CARD).decode()


def size_bytes(name: str) -> int:
    """Of all files of these weights."""
    return sum(file.stat().st_size for file in (PACKAGED / name).rglob("*") if file.is_file())


def names_text() -> str:
    """The names, as a refusal lists them; nothing where there are none."""
    return f", or one of {', '.join(names())}" if names() else ""
