"""Why work cannot go on, in messages a user can act on. Free of heavy imports, so that the command line can know them.

Errors of one recording are `record.RecordError`; those of a room alone stand in that room.
"""

from __future__ import annotations


class SettingsError(ValueError):
    """A setting on the command line, or in a YAML file, that does not fit."""


class CorpusError(ValueError):
    """A corpus that cannot be used as asked; the message names the file and the remedy."""


class TrainingError(RuntimeError):
    """Training stopped for a reason that running on would not fix; the message names the remedy."""


class CheckpointError(ValueError):
    """A checkpoint or exported encoder that is not there, damaged, made for something else or cannot be written."""


class SupersededError(TrainingError):
    """Another start of the same run has taken over; this one must not write any more."""


class PeerError(RuntimeError):
    """Another rank could not go on; the message gives the cause."""


class LabelError(CorpusError):
    """A table of labels that cannot be understood, or does not fit its corpus; the message names the remedy."""
