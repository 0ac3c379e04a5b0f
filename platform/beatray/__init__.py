"""beatray: self-supervised pretraining on clinical 12-lead ECGs, from recordings to a proven encoder.

Importing the package is cheap; torch, ray and mlflow are imported where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_encoder"]


def load_encoder(path: str) -> nn.Module:
    """The exported encoder at `path` (a run folder or its encoder/ folder), in eval mode.

    Input (B, 12, T) millivolts at 500 Hz as `beatray.views.prepare.prepare` makes them. `.description["recipe"]` is
    the corpus recipe it was trained on. Raises train.checkpoint.CheckpointError when the folder is damaged.
    """
    from beatray.train.checkpoint import load_encoder as load

    return load(path)
