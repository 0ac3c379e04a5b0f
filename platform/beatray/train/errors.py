"""Why training stops, in words a user can act on. Apart from torch, so that the command line can know them."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training stopped for a reason that running on would not mend; the message names the remedy."""
