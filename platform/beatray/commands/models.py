"""`beatray models [NAME]`: the pretrained weights that come with beatray, or the card of one."""

from __future__ import annotations

from typing import Any

from beatray.commands.console import say
from beatray.errors import SettingsError
from beatray.models import bundled
from beatray.plugins import nearest


def run(name: str | None) -> int:
    """Print the list or the card; SettingsError for a name that is none."""
    if name is not None:
        if name not in bundled.names():
            raise SettingsError(f"there are no weights called {name!r}{nearest(name, bundled.names())}")
        say(bundled.card(name))
        return 0
    for number, each in enumerate(bundled.names()):
        if number:
            say("")
        for line in listed(each, bundled.about(each)):
            say(line)
    say("\nNot medical devices. The card of one: beatray models NAME")
    return 0


def listed(name: str, about: dict[str, Any]) -> list[str]:
    """The entry of one in the list: what it is, its size, what it was trained on, its scores, how to use it."""
    data = ", ".join(f"{each['title']} ({each['recordings']:,}, {each['licence']})" for each in about["data"])
    return [
        f"{name}: {about['title']}",
        f"  size     {bundled.size_bytes(name) / 1e6:.2f} MB, {about['parameters']:,} parameters",
        f"  data     {data}",
        *(f"  score    {score}" for score in about["scores"]),
        f"  use      {about['use']}",
    ]
