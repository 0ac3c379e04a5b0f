"""The settings of a recipe on a machine that has PyYAML and no Hydra: an accelerator and little else.

Contract: what `beatray.train.composed.pretrain_settings` gives for `recipe=NAME` and dotted overrides of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from beatray.config import config_folder
from beatray.schema import build
from beatray.settings import PretrainSettings
from beatray.train.composed import NAMED

Content = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Reads 1.0e6 as a number, as Hydra does; YAML 1.1 wants a sign in the exponent."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def recipe_settings(recipe: str, overrides: Mapping[str, Any] | None = None, **groups: str) -> PretrainSettings:
    """`recipe` with other files of groups (`encoder="tiny"`, instead of the recipe's), then overrides."""
    top, of_recipe = _read("pretrain"), _read(f"recipe/{recipe}")
    chosen = {group: name for item in top["defaults"] if isinstance(item, dict) for group, name in item.items()}
    for item in of_recipe["defaults"]:
        chosen |= {key.removeprefix("override /"): name for key, name in item.items()}
    content = {key: value for key, value in top.items() if key != "defaults"}
    content |= {group: _read(f"{group}/{name}") for group, name in {**chosen, **groups}.items() if group != "recipe"}
    _merge(content, {key: value for key, value in of_recipe.items() if key not in groups})
    for key, value in (overrides or {}).items():
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(content, value)
    for group, schema in NAMED.items():
        name = str(content[group].pop("name"))
        content[group] = {"name": name, **schema.complete(name, content[group], f"{group}.")}
    for each in (content, *(value for value in content.values() if isinstance(value, dict))):
        each.pop("defaults", None)
    return build(PretrainSettings, content)


def _read(name: str) -> Content:
    text = (config_folder() / f"{name}.yaml").read_text()
    content: Content = yaml.load(text, _Loader) or {}
    return content


def _merge(into: Content, other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
