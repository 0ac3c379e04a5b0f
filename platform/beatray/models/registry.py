"""Encoders by name: every subclass of `Encoder` in a module of this folder, found by looking, or one of the user's.

`build_encoder("tiny")`, `build_encoder("xresnet1d50", out_stride=32)`, `build_encoder("my_package.module:MyNet")`.
The settings of an encoder are the fields of its `Settings`; an unknown or misspelt one is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from beatray import models
from beatray.models.encoder import Encoder
from beatray.plugins import class_called, classes_in
from beatray.schema import build


def encoder_classes() -> dict[str, type[Encoder]]:
    """Every name offered here: the network behind it."""
    return {name: kind for kind in classes_in(models, Encoder) for name in kind.names}


def encoder_class(name: str) -> type[Encoder]:
    """The network called `name`, or the user's `package.module:Class`. ValueError where there is none."""
    return class_called(name, encoder_classes(), Encoder, "encoder")


def encoder_settings(name: str, content: Mapping[str, Any], where: str = "encoder.") -> Any:
    """The checked settings of the encoder `name`; what its name fixes cannot be set.

    Raises SettingsError (a ValueError) that names the key for an unknown one or a value that does not fit.
    """
    kind = encoder_class(name)
    fixed = dict(kind.names.get(name, {}))
    twice = [key for key in content if key in fixed]
    if twice:
        raise ValueError(f"{where}{twice[0]} is fixed by the name {name}")
    return build(kind.Settings, {**content, **fixed}, where)


def encoder_defaults(name: str) -> dict[str, Any]:
    """Every setting of the encoder `name` that can be set, with its default, as plain data."""
    kind = encoder_class(name)
    fixed = kind.names.get(name, {})
    made = kind.Settings(**fixed)
    return {key: value for key, value in dataclasses.asdict(made).items() if key not in fixed}


def build_encoder(name: str, **settings: object) -> Encoder:
    """The encoder `name` with `settings` over its defaults, in training mode, initialised by torch's generator.

    Raises ValueError for an unknown name or setting, naming the nearest right one.
    """
    kind = encoder_class(name)
    made: Encoder = kind(encoder_settings(name, settings))  # type: ignore[call-arg]
    made.name = name
    return made
