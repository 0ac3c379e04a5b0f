"""Where a model looks: integrated gradients of one output over time and lead, by captum (an extra).

The share of sample t of lead l in the logit F of an output is x_lt times the mean gradient of F along the straight line
from a flat ECG (0 mV) to x (Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, equation
1). Shares add up to F(x) - F(0): what is marked is what moved this output, no cause of a disease. Of an ensemble it is
the mean over its members.

Contract: `attribution` gives float64 (12, n_samples) for one window; positive speaks for the output. SettingsError
where captum is not installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.errors import SettingsError
from beatray.infer.model import EcgModel
from beatray.preprocess import prepare
from beatray.record import RATE_HZ

STEPS = 64
AT_ONCE = 16


def need_captum() -> None:
    """Raise SettingsError with the remedy where captum is not there."""
    if find_spec("captum") is None:
        raise SettingsError(
            "where a model looks is computed by captum, which is not installed: pip install 'beatray[explain]', or "
            "leave --show out"
        )


def attribution(model: EcgModel, signal_uv: NDArray[np.int16], n_samples: int, output: int) -> NDArray[np.float64]:
    """Shares of the first n_samples of one window (12, 5000) in the logit of `output`."""
    need_captum()
    from captum.attr import IntegratedGradients

    found: Any = 0.0
    for member in model.load():
        device = next(member.network.parameters()).device
        valid = torch.tensor([n_samples], device=device)
        x_mv = prepare(torch.from_numpy(np.array(signal_uv[None])).to(device), float(RATE_HZ), valid)

        def logit(x_mv: Tensor, network: Any = member.network) -> Tensor:
            lengths = torch.full((len(x_mv),), n_samples, device=x_mv.device)
            answer: Tensor = network(x_mv, lengths)[:, output]
            return answer

        shares = IntegratedGradients(logit).attribute(x_mv, n_steps=STEPS, internal_batch_size=AT_ONCE)
        found = found + shares[0, :, :n_samples].double().cpu().numpy()
    return np.asarray(found / len(model.load()), np.float64)
