"""Finding objectives and networks: by looking into a package, or by `package.module:Class` of the user's own."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


@lru_cache
def _modules_of(package: str) -> tuple[ModuleType, ...]:
    folder = importlib.import_module(package)
    names = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
    return tuple(importlib.import_module(f"{package}.{name}") for name in names)


def classes_in(package: ModuleType, base: type[T]) -> list[type[T]]:
    """Every subclass of `base` that a module of the package defines, in the order of modules and classes."""
    return [
        kind
        for module in _modules_of(package.__name__)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base and kind.__module__ == module.__name__
    ]


def load_class(path: str, base: type[T]) -> type[T]:
    """The class at `package.module:Class`; ValueError where it is not there or is no `base`."""
    module, _, name = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be imported: {error} (is the folder of {module} on PYTHONPATH, on every node?)"
        ) from error
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        raise ValueError(f"{path} is no subclass of {base.__module__}.{base.__qualname__}")
    if not dataclasses.is_dataclass(getattr(kind, "Settings", None)):
        raise ValueError(f"{path} has no Settings: give it a frozen dataclass of that name")
    return kind


def class_called(name: str, known: Mapping[str, type[T]], base: type[T], what: str) -> type[T]:
    """The one of `known` called `name`, or the user's `package.module:Class`; ValueError if there is none."""
    if ":" in name:
        return load_class(name, base)
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}{nearest(name, known)}")
    return known[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the most similar of `known`, or the list of all when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
