"""Random numbers that depend on what is drawn for, not on who draws or when.

A view of a record must be the same whether one worker or eight prepare the epoch, in whatever batch the record lies and
however often a run was resumed. A generator with a state cannot promise that; a hash of a counter can. The number
`i` of a record is `hash(seed, epoch, record key, stream, i)`, so that no draw ever moves another.

The hash chains the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; the constants are Stafford's variant 13) over the five words: each step adds the golden gamma
to the exclusive or of the state and the next word, and mixes. For equal earlier words, two different words never meet
in the same state, because every step is a bijection.

Contract: keys are int64 (two's complement of the 64-bit key), `stream` names the purpose (`Stream`, moved by
`view_stream` for each view), results are float64 in [0, 1) with 53 random bits. Pure numpy: parameters are drawn on
the host and only then sent to a device.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_VIEW_STEP = 1 << 16


class Stream(IntEnum):
    """What a number is drawn for. Values are part of the contract: changing one changes every run."""

    CROP = 1
    AXIS_ORDER = 2
    ANGLE = 3
    SCALE = 4
    SCALE_INVERT = 5
    MASK = 6
    BEATS = 7
    RESIZED_CROP = 8
    TIME_OUT = 9


def view_stream(stream: Stream, view: int) -> int:
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
