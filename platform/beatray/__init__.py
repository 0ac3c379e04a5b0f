"""beatray: self-supervised pretraining on clinical 12-lead ECGs, from recordings to an evaluated encoder.

Importing the package is cheap; torch, ray and mlflow are imported where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from beatray.infer.files import Embeddings
    from beatray.infer.model import EcgModel
    from beatray.infer.transform import EcgEncoder

__all__ = ["EcgEncoder", "load_encoder", "load_model", "read_embeddings"]


def load_encoder(path: str) -> nn.Module:
    """The exported encoder at `path` (a run folder or its encoder/ folder), in eval mode.

    Input (B, 12, T) millivolts at 500 Hz as `beatray.preprocess.prepare` makes them. `.description["recipe"]` is
    the corpus recipe it was trained on. Raises errors.CheckpointError when the folder is damaged.
    """
    from beatray.models.encoder_folder import load_encoder as load

    return load(path)


def load_model(path: str | Sequence[str], rate_hz: float = 500.0, device: str = "cpu") -> EcgModel:
    """The model that `beatray finetune` left at `path` (a run folder or its model/ folder); of several, an ensemble.

    `.predict(x_mv, rate_hz=500)` takes millivolts, (12, T), (B, 12, T) or a list, and gives probabilities and
    decisions, numbers, or waves. Raises errors.CheckpointError when the folder is damaged.
    """
    from beatray.infer.model import EcgModel

    return EcgModel(path, rate_hz, device).fit()


def read_embeddings(path: str, level: str | None = None) -> Embeddings:
    """The vectors that `beatray embed` wrote to `path`, as numpy arrays; level recording (default) or beat.

    Raises beatray.infer.files.EmbeddingsError when they are unfinished or damaged.
    """
    from beatray.infer.files import read

    return read(path, level)


def __getattr__(name: str) -> Any:
    if name == "EcgEncoder":  # a class of scikit-learn's kind: its import takes a second and more
        from beatray.infer.transform import EcgEncoder

        return EcgEncoder
    raise AttributeError(f"module 'beatray' has no attribute {name!r}")
