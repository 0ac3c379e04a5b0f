"""Random numbers that depend on what is drawn for, not on who draws or when.

A view of a record must be the same whether one worker or eight prepare the epoch, in whatever batch the record lies and
however often a run was resumed. A generator with a state cannot promise that; a hash of a counter can. The number
`i` of a record is `hash(seed, epoch, record key, stream, i)`, so that no draw ever moves another.

The hash chains the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; the constants are Stafford's variant 13) over the five words: each step adds the golden gamma
to the exclusive or of the state and the next word, and mixes. For equal earlier words, two different words never meet
in the same state, because every step is a bijection.

`Draws` is what views are made with: the records of a batch, the seed and the epoch, and numbers by what they are for.

Contract: keys are int64 (two's complement of the 64-bit key); the stream of a purpose is a function of its name
(`stream_of`), moved by `view_stream` for each view; results are float64 in [0, 1) with 53 random bits. Pure numpy:
parameters are drawn on the host and only then sent to a device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_VIEW_STEP = 1 << 16

VALIDATION_EPOCH = 2**31 - 1
"""The epoch of what is drawn to validate: far beyond any that trains."""


class Stream(IntEnum):
    """Purposes whose streams were numbered by hand. Part of the contract: changing one changes every run."""

    CROP = 1
    AXIS_ORDER = 2
    ANGLE = 3
    SCALE = 4
    SCALE_INVERT = 5
    MASK = 6
    BEATS = 7
    RESIZED_CROP = 8
    TIME_OUT = 9


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers for the records of one batch: keys (B,) int64, the seed of the run and the epoch."""

    keys: NDArray[np.int64]
    seed: int
    epoch: int

    @property
    def validates(self) -> bool:
        """Whether what is made with these draws is validated on, not learned from."""
        return self.epoch == VALIDATION_EPOCH

    @classmethod
    def of(cls, batch: dict[str, Tensor], seed: int, epoch: int) -> Draws:
        """For the records of a batch, by its `record_key`."""
        return cls(batch["record_key"].cpu().numpy().astype(np.int64, copy=False), seed, epoch)

    def uniform(self, purpose: str, n: int, view: int = 0) -> NDArray[np.float64]:
        """`n` numbers in [0, 1) for each record: (B, n). Purposes are names; views of a record draw independently."""
        return uniform(self.keys, self.seed, self.epoch, view_stream(stream_of(purpose), view), n)

    def shared(self, purpose: str, n: int) -> NDArray[np.float64]:
        """`n` numbers in [0, 1) that all records of an epoch share, whatever batch or rank they are in: (n,)."""
        drawn: NDArray[np.float64] = uniform(np.zeros(1, np.int64), self.seed, self.epoch, stream_of(purpose), n)[0]
        return drawn


def stream_of(purpose: str) -> int:
    """The stream of a purpose: its number in `Stream`, or a hash of the name far above all numbers and views."""
    known = Stream.__members__.get(purpose.upper())
    if known is not None:
        return int(known)
    return 1 << 62 | int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=5).digest(), "little") << 20


def view_stream(stream: int, view: int) -> int:
    """The stream of one view (1, 2, ...): views of a record draw independently of each other."""
    return int(stream) + _VIEW_STEP * view


def record_key(record_id: str) -> int:
    """Stable 64-bit key of a record id, as a signed integer so that it fits an int64 tensor (BLAKE2b, 8 bytes)."""
    digest = hashlib.blake2b(record_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniform(keys: NDArray[np.int64], seed: int, epoch: int, stream: int, n: int) -> NDArray[np.float64]:
    """`n` numbers in [0, 1) for each key: (B,) int64 -> (B, n) float64.

    Row b is a function of (seed, epoch, keys[b], stream) alone, and a longer draw begins with the shorter one.
    """
    state = _absorb(_absorb(np.zeros(1, np.uint64), seed), epoch)
    state = _mix((state ^ np.asarray(keys, np.int64).view(np.uint64)) + _GOLDEN_GAMMA)
    state = _absorb(state, stream)
    bits = _mix((state[:, None] ^ np.arange(n, dtype=np.uint64)[None, :]) + _GOLDEN_GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _absorb(state: NDArray[np.uint64], word: int) -> NDArray[np.uint64]:
    return _mix((state ^ np.uint64(word & 0xFFFFFFFFFFFFFFFF)) + _GOLDEN_GAMMA)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
