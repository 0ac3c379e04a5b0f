"""From words and YAML to settings: groups composed by Hydra, built as frozen dataclasses before anything starts.

The words on the command line are the dotted keys of `configs/` (`train.workers=8`) or the choice of a group
(`objective=simclr`). Contract: an unknown key or a value of the wrong type is a `SettingsError` that names the key and
the nearest right one; what comes back is immutable and complete.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from beatray.errors import SettingsError

T = TypeVar("T")

PATH_WORDS = {"corpus": "corpus.path"}
"""Short words for the dotted keys that hold a place."""

PATH_KEYS = {
    "corpus.path",
    "out",
    "run",
    "encoder_path",
    "tracking.uri",
    "salt_file",
    "evaluate.robustness.noise_folder",
}


def config_folder() -> Path:
    """The YAML groups: inside an installed package, or beside the source tree."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent.parent / "configs"):
        if folder.is_dir():
            return folder
    raise SettingsError("the configs/ folder is missing from this installation of beatray")


def compose(
    top: str, words: list[str], *, extra: dict[str, str] | None = None, other_words: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The content of `configs/<top>.yaml` under the words of the command line, as plain dicts.

    `extra` maps further short words to dotted keys; `other_words` are known to the command alone and only help to name
    the nearest right one. Raises SettingsError for a word that fits nothing.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder = config_folder()
    overrides = [_override(word, {**PATH_WORDS, **(extra or {})}) for word in words]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder.absolute()), version_base=None):
        chosen = [word for word in overrides if _is_choice(word, folder)]
        try:
            base = OmegaConf.to_container(hydra_compose(top, overrides=chosen), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise SettingsError(_choice_error(chosen, folder, str(error))) from error
        known = _dotted(base)
        for word in overrides:
            key = word.partition("=")[0].lstrip("+~")
            if word not in chosen and not _fits(key, known):
                raise SettingsError(f"there is no setting '{key}'{_nearest(key, [*known, *(other_words)])}")
        try:
            content: Any = OmegaConf.to_container(hydra_compose(top, overrides=overrides), resolve=True)
            return {str(key): value for key, value in content.items()}
        except (HydraException, OmegaConfBaseException) as error:
            raise SettingsError(str(error)) from error


def _override(word: str, short: dict[str, str]) -> str:
    key, sign, value = word.partition("=")
    if not sign or not key:
        raise SettingsError(f"'{word}' is not of the form key=value")
    key = short.get(key, key)
    if key in PATH_KEYS and value not in ("null", "auto"):
        value = "'" + value.strip("'").replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{key}={value}"


def _is_choice(word: str, folder: Path) -> bool:
    key = word.partition("=")[0]
    return "." not in key and (folder / key).is_dir()


def _choice_error(chosen: list[str], folder: Path, message: str) -> str:
    for word in chosen:
        key, _, value = word.partition("=")
        offered = sorted(path.stem for path in (folder / key).glob("*.yaml"))
        if value not in offered:
            return f"there is no {key} '{value}'{_nearest(value, offered)} (offered: {', '.join(offered)})"
    return message


def _dotted(content: Any, prefix: str = "") -> list[str]:
    if not isinstance(content, dict) or not content:
        return [prefix] if prefix else []
    return [key for name, value in content.items() for key in _dotted(value, f"{prefix}.{name}" if prefix else name)]


def _fits(key: str, known: list[str]) -> bool:
    return any(key == name or name.startswith(key + ".") for name in known)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1, 0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [name for name in known if name.rpartition(".")[2]], 1, 0.5
    )
    return f"; did you mean '{close[0]}'?" if close else ""


def build(kind: type[T], content: dict[str, Any], where: str = "") -> T:
    """`content` as the frozen dataclass `kind`, every value checked; SettingsError names the key."""
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in content:
        if name not in names:
            raise SettingsError(f"there is no setting '{where}{name}'{_nearest(str(name), names)}")
    values = {name: _convert(hints[name], value, f"{where}{name}") for name, value in content.items()}
    try:
        return kind(**values)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"{where.rstrip('.')}: {error}" if where else str(error)) from error


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        for option in options:
            try:
                return _convert(option, value, key)
            except SettingsError:
                if len(options) == 1:
                    raise
        wanted = " or ".join("list" if typing.get_origin(option) is tuple else option.__name__ for option in options)
        raise SettingsError(f"{key}={value!r} is not of type {wanted}")
    if origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise SettingsError(f"{key}={value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast("type[Any]", hint), value, f"{key}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            return tuple(_convert(kinds[0], item, key) for item in value)
        if len(kinds) != len(value):
            raise SettingsError(f"{key}={list(value)!r} must have {len(kinds)} values, not {len(value)}")
        return tuple(_convert(kind, item, key) for kind, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a run named 7 is still a name
    if hint in (int, bool, str) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise SettingsError(f"{key}={value!r} is not of type {wanted}")


def as_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON-ready dicts."""
    return dataclasses.asdict(settings)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        result |= flat(value, key) if isinstance(value, dict) and value else {key: value}
    return result
