"""What a pass does beside its numbers: the memory that lives in it, and where a host would wait for a device."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are made while it is on: alive now, the most at once, and of the largest.

    Kernels' own scratch memory is not among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (key := made.untyped_storage()._cdata) not in self._known:
                storage = made.untyped_storage()
                self._known.add(key)
                self.live += storage.nbytes()
                self.peak, self.largest = max(self.peak, self.live), max(self.largest, storage.nbytes())
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Waited(Exception):
    """The host would have waited."""


HOST_DATA = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)


class _NoHostData(TorchFunctionMode):
    """Raises where numbers of the host become a tensor of the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in HOST_DATA and out.device.type == "meta" and not isinstance(args[-1], Tensor):
            raise Waited(f"{func.__name__}({args[-1]})")
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if args[0].device.type == "meta" and any(isinstance(part, list) for part in index):
                raise Waited(f"a list as an index: {index}")
        return out


class _NoCopies(TorchDispatchMode):
    """Raises where a tensor is copied between the host and the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            if source.device.type != out.device.type:
                raise Waited(f"a copy from {source.device} to {out.device}")
        return out


@contextlib.contextmanager
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raises `Waited` where work on tensors of the device "meta" would make a host wait for a GPU.

    Tensors of that device have shapes and no numbers: what fetches a number (int, bool, item, tolist, bincount), or has
    a shape that follows from numbers (nonzero, a boolean index), cannot be done with them. As on a GPU, and unlike on a
    CPU, code for `device.type == "cpu"` is not taken. Autocast does not know the device; it changes types, not waits.
    """
    with monkeypatch.context() as patch, _NoHostData(), _NoCopies():
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            raise Waited(str(error)) from error
