"""The outputs of a model for rows of a corpus, read row group by row group.

Contract: `logits_of` gives (n, C) float64 of recordings, `masks_of` int8 (n, M, 5000) of the class with the largest
logit, in the order of the positions asked for. In evaluation mode and without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.corpus.reader import Corpus
from beatray.corpus.schema import signals_of
from beatray.finetune.targets import Index
from beatray.models.labelled_heads import LabelledModel
from beatray.models.segmentation import CLASSES
from beatray.preprocess import prepare
from beatray.record import RATE_HZ, WINDOW_SAMPLES

BATCH = 32


def logits_of(model: LabelledModel, corpus: Corpus, positions: Index, device: torch.device) -> NDArray[np.float64]:
    """Logits of recordings."""
    found: NDArray[np.float64] | None = None
    for batch, logits in _batches(model, corpus, positions, device):
        if found is None:
            found = np.empty((len(positions), logits.shape[1]))
        found[batch] = logits.double().cpu().numpy()
    return np.empty((0, 0)) if found is None else found


def masks_of(model: LabelledModel, corpus: Corpus, positions: Index, device: torch.device) -> NDArray[np.int8]:
    """The class of every sample, of each mask that the model draws."""
    found: NDArray[np.int8] | None = None
    for batch, logits in _batches(model, corpus, positions, device):
        masks = classes_of(logits)
        if found is None:
            found = np.empty((len(positions), *masks.shape[1:]), np.int8)
        found[batch] = masks
    return np.empty((0, 1, WINDOW_SAMPLES), np.int8) if found is None else found


def classes_of(logits: Tensor) -> NDArray[np.int8]:
    """(B, 4 M, T) to the class with the largest logit, (B, M, T)."""
    masks: NDArray[np.int8] = logits.unflatten(1, (-1, len(CLASSES))).argmax(2).to(torch.int8).cpu().numpy()
    return masks


def _batches(
    model: LabelledModel, corpus: Corpus, positions: Index, device: torch.device
) -> Iterator[tuple[Index, Tensor]]:
    located = corpus.index.iloc[positions][["shard", "group", "row"]].to_numpy(np.int64)
    model = model.to(device).eval()
    for shard, group in dict.fromkeys(map(tuple, located[:, :2].tolist())):
        here = np.flatnonzero((located[:, 0] == shard) & (located[:, 1] == group))
        table = corpus.row_group(shard, group, ["signal", "n_samples"]).take(located[here, 2].tolist()).combine_chunks()
        signal_uv, n_samples = signals_of(table["signal"]), table["n_samples"].to_numpy().astype(np.int64)
        for first in range(0, len(here), BATCH):
            part = slice(first, first + BATCH)
            valid = torch.from_numpy(n_samples[part]).to(device)
            x_mv = prepare(torch.from_numpy(np.array(signal_uv[part])).to(device), RATE_HZ, valid)
            with torch.inference_mode():
                yield here[part], model(x_mv, valid).float()
