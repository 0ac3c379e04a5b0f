"""Why training stops, in words a user can act on. Apart from torch, so that the command line can know them."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training stopped for a reason that running on would not mend; the message names the remedy."""


class CheckpointError(ValueError):
    """A checkpoint or exported encoder that is not there, damaged, made for something else or cannot be written."""


class SupersededError(TrainingError):
    """Another start of the same run has taken over; this one must not write any more."""


class PeerError(RuntimeError):
    """Another rank could not go on; the message says why."""
