"""Encoders by name.

`build_encoder("tiny")`, `build_encoder("xresnet1d50", out_stride=32, norm="group")`. A name is an entry of `ENCODERS`;
the settings of an encoder are the fields of its dataclass, so that an unknown or misspelt one is refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from beatray.models.encoder import Encoder, Trunk
from beatray.models.tiny import TinyTrunk
from beatray.models.xresnet1d import XResNetTrunk


@dataclass(frozen=True, slots=True)
class TinySettings:
    """Settings of `tiny`. norm: global_batch | group; pooling: mean_std | mean_max."""

    norm: str = "global_batch"
    pooling: str = "mean_std"
    stem_kernel: int = 15
    kernel: int = 7
    channels: tuple[int, int, int] = (32, 32, 64)


@dataclass(frozen=True, slots=True)
class XResNetSettings:
    """Settings of the xresnet1d family. out_stride: 16 (313 positions for 10 s) | 32 (157)."""

    norm: str = "global_batch"
    pooling: str = "mean_max"
    out_stride: int = 16
    widths: tuple[int, int, int, int] = (64, 64, 64, 64)
    kernel: int = 5


def _tiny(settings: TinySettings) -> Trunk:
    return TinyTrunk(settings.norm, settings.channels, settings.stem_kernel, settings.kernel)


def _xresnet(depth: int) -> Callable[[XResNetSettings], Trunk]:
    def build(settings: XResNetSettings) -> Trunk:
        return XResNetTrunk(depth, settings.norm, settings.out_stride, settings.widths, settings.kernel)

    return build


ENCODERS: dict[str, tuple[type[Any], Callable[[Any], Trunk]]] = {
    "tiny": (TinySettings, _tiny),
    "xresnet1d18": (XResNetSettings, _xresnet(18)),
    "xresnet1d50": (XResNetSettings, _xresnet(50)),
    "xresnet1d101": (XResNetSettings, _xresnet(101)),
}
"""Name: its settings and the function that builds the trunk."""


def build_encoder(name: str, **settings: object) -> Encoder:
    """The encoder `name` with `settings` over its defaults, in training mode, initialised by torch's generator.

    Raises ValueError for an unknown name or setting, naming the nearest right one.
    """
    if name not in ENCODERS:
        raise ValueError(f"no encoder {name!r}{nearest(name, ENCODERS)}")
    settings_type, build = ENCODERS[name]
    chosen = settings_type(**checked_settings(settings_type, settings, f"encoder {name}"))
    return Encoder(name, build(chosen), chosen.pooling, asdict(chosen))


def checked_settings(settings_type: type[Any], settings: dict[str, Any], owner: str) -> dict[str, Any]:
    """`settings` with lists as tuples; ValueError names an unknown key and the nearest field of `settings_type`."""
    names = [field.name for field in fields(settings_type)]
    for key in settings:
        if key not in names:
            raise ValueError(f"{owner} has no setting {key!r}{nearest(key, names)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def nearest(word: str, known: Any) -> str:
    """'; did you mean ...?' with the most similar of `known`, or the list of all when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
