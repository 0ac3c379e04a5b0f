"""From overrides to the settings of pretraining, the method and the network checked by their own dataclasses.

Everything that can be wrong with the overrides alone is found here, before a corpus is opened: an unknown or misspelt
key of any group, a value of the wrong type or out of bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from beatray.config import GROUPS, Named, compose
from beatray.errors import CheckpointError, SettingsError
from beatray.models import bundled
from beatray.models import registry as networks
from beatray.models.encoder_folder import describe_encoder, is_encoder
from beatray.objectives import registry as methods
from beatray.schema import build, today
from beatray.settings import PretrainSettings


class _Methods:
    def kind(self, name: str) -> type[Any]:
        return methods.objective_class(name).Settings

    def complete(self, name: str, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        return asdict(methods.objective_settings(name, content, where))


class _Networks:
    def kind(self, name: str) -> type[Any]:
        return networks.encoder_class(name).Settings

    def complete(self, name: str, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        fixed = networks.encoder_class(name).names.get(name, {})
        made = asdict(networks.encoder_settings(name, content, where))
        return {key: value for key, value in made.items() if key not in fixed}


NAMED: dict[str, Named] = {"objective": _Methods(), "encoder": _Networks()}


WEIGHTS = {"encoder.weights": "encoder_weights"}
"""The override for the encoder that training starts from: `encoder.*` are the settings of a network."""


def pretrain_content(top: str, overrides: Sequence[str], **more: Any) -> dict[str, Any]:
    """`config.compose` of a command that trains: objective and encoder complete.

    With the weights of an encoder the network is that of its folder. SettingsError for another one beside it.
    """
    extra = {**WEIGHTS, **more.pop("extra", {})}
    content = compose(top, overrides, named=NAMED, extra=extra, **more)
    weights = content.get("encoder_weights")
    if weights is None:
        return content
    described = described_encoder(str(weights))
    try:
        settings = NAMED["encoder"].complete(described["name"], described["settings"], "encoder.")
    except ValueError as error:  # a user's own network that is not here, or settings of another version
        raise SettingsError(f"the encoder {weights} cannot be built here: {error}") from error
    network = {"name": described["name"], **settings}
    of_network = [w for w in overrides if w.partition("=")[0] not in extra and _is_of_network(w)]
    for override in of_network if network != content["encoder"] else ():
        raise SettingsError(
            f"'{override}': the network is that of the encoder {weights} ({network['name']}), to the last setting; "
            "leave it out, or train from random weights"
        )
    content["encoder"] = network
    return content


def described_encoder(path: str) -> dict[str, Any]:
    """encoder.json of an exported encoder; SettingsError where there is none."""
    if not is_encoder(path):
        raise SettingsError(
            f"there is no exported encoder at {path} (a run folder that has ended, or its encoder/ folder"
            f"{bundled.names_text()})"
        )
    try:
        return describe_encoder(path)
    except CheckpointError as error:
        raise SettingsError(str(error)) from error


def _is_of_network(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    return key == "encoder" or key.startswith("encoder.")


def changes_today(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of pretraining by dotted key, as a sweep or its user has them, under the names of today."""
    return today(changes, _schemas())


@lru_cache
def _schemas() -> tuple[tuple[str, type[Any]], ...]:
    """Groups and dataclasses, of all methods and networks there are: changes do not name theirs."""
    offered = {**methods.objective_classes(), **methods.supervised_classes()}
    kinds = [("objective", kind.Settings) for kind in offered.values()]
    kinds += [("encoder", kind.Settings) for kind in dict.fromkeys(networks.encoder_classes().values())]
    return (*GROUPS.items(), *kinds)


def pretrain_settings(overrides: Sequence[str]) -> PretrainSettings:
    """The settings that the overrides of `beatray pretrain` mean; SettingsError names the key that does not fit."""
    return build(PretrainSettings, pretrain_content("pretrain", overrides))
