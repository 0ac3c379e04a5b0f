"""XLI, the compression of Philips PageWriter and HeartStart recordings: LZW over the bytes of second differences.

One block per channel: four bytes length of the coded data, two bytes that are 1 in every file seen, two bytes that
start the differences, then LZW codes of ten bits, first bit highest. The dictionary starts with the 256 bytes and stops
growing when full; code 1023 ends the block. Decoded, the upper bytes of all 16-bit differences come first, then the
lower bytes. The first two values are samples; of the rest, value i, less 64, is subtracted from the straight line
through the two samples before the next one. Sums wrap at 16 bits, as in the device.

Limb leads III, aVR, aVL and aVF are stored as what is left of them after Einthoven's and Goldberger's relations, with
halves rounded down (a choice: the device's own rounding is not published and can differ by one count, 5 uV).

Contract: `decode_xli(data, n_channels, n_samples)` gives int64 (n_channels, n_samples) or raises `RecordError`
(FORMAT, TRUNCATED, TRAILING_BYTES); `add_limb_leads` works in place. Source: the description of the scheme in the wiki
of sierra-ecg-tools (C. Watford, 2011-2014), checked on the files of three devices.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from beatray.record import Reason, RecordError

CODE_BITS = 10
END_CODE = (1 << CODE_BITS) - 1
BLOCK_HEADER = struct.Struct("<Ihh")
MAX_BLOCKS = 16
_BYTES = [bytes((value,)) for value in range(256)]


def decode_xli(data: bytes, n_channels: int, n_samples: int) -> NDArray[np.int64]:
    """The first `n_channels` blocks as samples; blocks after them must be whole but are not decoded."""
    samples: list[NDArray[np.int64]] = []  # grows with what was really there, not with what was announced
    position = 0
    for block in range(MAX_BLOCKS):
        if position == len(data):
            if block < n_channels:
                raise RecordError(Reason.TRUNCATED, f"{block} of {n_channels} channels in the compressed data")
            break
        if len(data) - position < BLOCK_HEADER.size:
            raise RecordError(Reason.TRUNCATED, f"block {block}: the compressed data end in its header")
        size, one, start = BLOCK_HEADER.unpack_from(data, position)
        position += BLOCK_HEADER.size
        if one != 1:
            raise RecordError(Reason.FORMAT, f"block {block}: not the XLI compression that is known (mark {one})")
        if size > len(data) - position:
            raise RecordError(Reason.TRUNCATED, f"block {block}: {size} bytes announced, {len(data) - position} left")
        if block < n_channels:
            packed = _unpack_lzw(data[position : position + size], 2 * n_samples, block)
            samples.append(_sum_up(packed, start))
        position += size
    if position != len(data):
        raise RecordError(Reason.TRAILING_BYTES, f"{len(data) - position} bytes after block {MAX_BLOCKS}")
    return np.stack(samples)


def add_limb_leads(counts: NDArray[np.int64]) -> None:
    """Turn what is stored of III, aVR, aVL and aVF (rows 2 to 5) into the leads, in place."""
    one, two, three, right, left, foot = counts[:6]
    three[:] = two - one - three
    right[:] = -right - ((one + two) >> 1)
    left[:] = ((one - three) >> 1) - left
    foot[:] = ((two + three) >> 1) - foot


def _unpack_lzw(data: bytes, n_bytes: int, block: int) -> bytes:
    """Exactly `n_bytes` bytes from LZW codes. Never holds more than that and one entry of the dictionary."""
    table = _BYTES.copy()
    out = bytearray()
    previous = b""
    held, n_held = 0, 0
    for byte in data:
        held = held << 8 | byte
        n_held += 8
        if n_held < CODE_BITS:
            continue
        n_held -= CODE_BITS
        code = held >> n_held
        held &= (1 << n_held) - 1
        if code == END_CODE:
            break
        if code < len(table):
            entry = table[code]
        elif code == len(table) and previous:
            entry = previous + previous[:1]
        else:
            raise RecordError(Reason.FORMAT, f"block {block}: code {code} before it is defined")
        out += entry
        if len(out) > n_bytes:
            raise RecordError(Reason.TRAILING_BYTES, f"block {block}: more than {n_bytes // 2} samples")
        if previous and len(table) < END_CODE:
            table.append(previous + entry[:1])
        previous = entry
    if len(out) != n_bytes:
        raise RecordError(Reason.TRUNCATED, f"block {block}: {len(out) // 2} of {n_bytes // 2} samples")
    return bytes(out)


def _sum_up(packed: bytes, start: int) -> NDArray[np.int64]:
    """Samples from their second differences, upper bytes first."""
    half = len(packed) // 2
    upper = np.frombuffer(packed, np.uint8, half).astype(np.int64)
    stored = ((upper << 8) | np.frombuffer(packed, np.uint8, half, half)).astype(np.int16).astype(np.int64)
    if half < 3:
        return stored
    bends = np.concatenate([[-start], 64 - stored[2:-1]])
    slopes = np.cumsum(np.concatenate([[stored[1] - stored[0]], bends]))
    return np.concatenate([[stored[0]], stored[0] + np.cumsum(slopes)]).astype(np.int16).astype(np.int64)
