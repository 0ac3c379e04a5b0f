"""Tensors that a step changes before it is known whether the step counts: kept by one copy, put back where it does not.

Running statistics see a batch in the forward pass; the loss may turn out not to be finite afterwards. Copying each of
hundreds of small buffers costs an accelerator more than the step's own kernels of that size, so all of one type are
joined in one copy. `put_back` is decided by a tensor on the device, so that the host does not wait for its value.

Contract: `keep`, then any number of changes in place, then at most one `put_back`; tensors never change shape, type or
device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Rollback:
    """The tensors given, as they were at the newest `keep`."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        self._groups = list(by_type.values())
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy what they are now."""
        self._kept = [_joined(group) for group in self._groups]

    @torch.no_grad()
    def put_back(self, refused: Tensor) -> None:
        """Where `refused` () bool is true they are again what was kept, to the bit; else they stay what they are."""
        for group, kept in zip(self._groups, self._kept, strict=True):
            chosen = torch.where(refused, kept, _joined(group))
            pieces = chosen.split([tensor.numel() for tensor in group])
            values = [piece.view_as(tensor) for piece, tensor in zip(pieces, group, strict=True)]
            torch._foreach_copy_(group, values)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
