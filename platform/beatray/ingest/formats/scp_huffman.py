"""Huffman codes of SCP-ECG: the default table, tables of a file's own, and the samples of one lead.

A code is a prefix, first bit lowest in the stored number, and where it is longer than its prefix, a two's complement
number after it that is the value itself. Some codes stand for no value but switch to another table. A table must be
free of prefixes of each other; then one compiled pattern cuts a whole lead into codes.

Contract: `tables_of(body)` reads section 2; `decode(tables, data, n)` gives n values, int64. Raises `RecordError`:
FORMAT for tables that are none, TRUNCATED, TRAILING_BYTES (two bytes or more that belong to no code).
Source: EN 1064:2005 / ISO 11073-91064:2009, section 5.5 (tables) and annex C (default table).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beatray.record import Reason, RecordError

DEFAULT_TABLE = 19999
"""Number of tables that stands for the default one."""

MAX_TABLES = 16
MAX_CODES = 1024
MAX_PREFIX, MAX_SUFFIX = 24, 16
SPARE_BITS = 16
_CODE = struct.Struct("<BBBhI")


@dataclass(frozen=True, slots=True)
class HuffmanTable:
    """One Huffman table: what a prefix means, how many bits follow it, which table it switches to.

    `pattern` is any one of the codes; `cut` also takes a bit that begins none, so that it cuts any text to its end.
    """

    pattern: re.Pattern[str]
    cut: re.Pattern[str]
    values: dict[str, int]
    suffix: dict[str, int]
    switches: dict[str, int]


def default_table() -> HuffmanTable:
    """The default table: 0; then +-1 to +-8 as k ones, a zero and a sign; then 8 or 16 bits as they are."""
    codes: list[tuple[str, int, int, int | None]] = [("0", 0, 0, None)]
    for value in range(1, 9):
        codes += [("1" * value + "00", 0, value, None), ("1" * value + "01", 0, -value, None)]
    codes += [("1111111110", 8, 0, None), ("1111111111", 16, 0, None)]
    return _table(codes, "0|1{1,8}0[01]|1111111110[01]{8}|1111111111[01]{16}")


def tables_of(body: bytes) -> list[HuffmanTable]:
    """The tables of section 2. Raises RecordError(FORMAT, TRUNCATED)."""
    if len(body) < 2:
        raise RecordError(Reason.TRUNCATED, "section 2 ends before the number of tables")
    (n_tables,) = struct.unpack_from("<H", body)
    if n_tables == DEFAULT_TABLE:
        return [default_table()]
    if not 0 < n_tables <= MAX_TABLES:
        raise RecordError(Reason.FORMAT, f"{n_tables} Huffman tables, allowed 1 to {MAX_TABLES}")
    tables: list[HuffmanTable] = []
    position = 2
    for number in range(n_tables):
        if position + 2 > len(body):
            raise RecordError(Reason.TRUNCATED, f"section 2 ends before Huffman table {number + 1}")
        (n_codes,) = struct.unpack_from("<H", body, position)
        position += 2
        if not 0 < n_codes <= MAX_CODES or position + n_codes * _CODE.size > len(body):
            raise RecordError(Reason.TRUNCATED, f"Huffman table {number + 1} of {n_codes} codes does not fit")
        rows = [_CODE.unpack_from(body, position + k * _CODE.size) for k in range(n_codes)]
        position += n_codes * _CODE.size
        tables.append(_table([_row(row, n_tables) for row in rows]))
    return tables


def decode(tables: list[HuffmanTable], data: bytes, n_values: int) -> NDArray[np.int64]:
    """The `n_values` values coded in `data`."""
    values, rest = _cut(tables, data, n_values)
    if len(rest) >= SPARE_BITS:
        raise RecordError(Reason.TRAILING_BYTES, f"{len(rest)} bits are left after {n_values} samples")
    return np.array(values, np.int64)


def rest_after(tables: list[HuffmanTable], data: bytes, n_values: int) -> str:
    """The bits that follow the first `n_values` values. Raises RecordError(TRUNCATED) where there are fewer values."""
    return _cut(tables, data, n_values)[1]


def _cut(tables: list[HuffmanTable], data: bytes, n_values: int) -> tuple[list[int], str]:
    """The first `n_values` values coded in `data`, and the bits that follow them."""
    bits = format(int.from_bytes(data, "big"), f"0{8 * len(data)}b") if data else ""
    if n_values > len(bits):
        raise RecordError(Reason.TRUNCATED, f"{len(data)} bytes cannot hold {n_values} samples")
    values, used = _plain(tables[0], bits, n_values) if len(tables) == 1 else _switching(tables, bits, n_values)
    return values, bits[used:]


def _row(row: tuple[int, int, int, int, int], n_tables: int) -> tuple[str, int, int, int | None]:
    """(prefix, further bits, value, table switched to) of one code structure."""
    n_prefix, n_total, is_value, base, code = row
    if not 0 < n_prefix <= MAX_PREFIX or not n_prefix <= n_total <= n_prefix + MAX_SUFFIX or is_value not in (0, 1):
        raise RecordError(Reason.FORMAT, f"a Huffman code of {n_prefix} of {n_total} bits, mode {is_value}")
    prefix = "".join(str(code >> bit & 1) for bit in range(n_prefix))
    n_suffix = n_total - n_prefix
    if n_suffix and (base or not is_value):
        raise RecordError(Reason.FORMAT, "a Huffman code with both a base value and further bits: not supported")
    if not is_value and not 1 <= base <= n_tables:
        raise RecordError(Reason.FORMAT, f"a Huffman code switches to table {base} of {n_tables}")
    return prefix, n_suffix, base, None if is_value else base - 1


def _table(codes: list[tuple[str, int, int, int | None]], pattern: str = "") -> HuffmanTable:
    """The table of these codes; `pattern` is a faster expression for the same codes, where one is known."""
    prefixes = sorted(prefix for prefix, *_ in codes)
    for shorter, longer in pairwise(prefixes):  # sorted, so a clash stands side by side
        if longer.startswith(shorter):
            raise RecordError(Reason.FORMAT, "a Huffman code begins with another one")
    pattern = pattern or "|".join(prefix + (f"[01]{{{n}}}" if n else "") for prefix, n, *_ in codes)
    return HuffmanTable(
        re.compile(pattern),
        re.compile(pattern + "|[01]"),
        {prefix: value for prefix, n, value, switch in codes if switch is None and not n},
        {prefix: n for prefix, n, _, switch in codes if switch is None and n},
        {prefix: switch for prefix, _, _, switch in codes if switch is not None},
    )


def _plain(table: HuffmanTable, bits: str, n_values: int) -> tuple[list[int], int]:
    """Values of a lead that uses one table, and the bits they took."""
    codes = table.cut.findall(bits)[:n_values]
    if len(codes) < n_values:
        raise RecordError(Reason.TRUNCATED, f"the data end after {len(codes)} of {n_values} samples")
    known = {code: _value(table, code) for code in set(codes)}
    return list(map(known.__getitem__, codes)), sum(map(len, codes))


def _switching(tables: list[HuffmanTable], bits: str, n_values: int) -> tuple[list[int], int]:
    """As `_plain`, where codes may switch between tables; every lead begins with the first."""
    values: list[int] = []
    used = 0
    table = tables[0]
    while len(values) < n_values:
        match = table.pattern.match(bits, used)
        if match is None:
            raise RecordError(Reason.TRUNCATED, f"the data end, or hold no code, after {len(values)} samples")
        used = match.end()
        switch = table.switches.get(match.group())
        if switch is not None:
            table = tables[switch]
        else:
            values.append(_value(table, match.group()))
    return values, used


def _value(table: HuffmanTable, code: str) -> int:
    value = table.values.get(code)
    if value is not None:
        return value
    prefix = next((prefix for prefix in table.suffix if code.startswith(prefix)), None)
    if prefix is None:
        raise RecordError(Reason.TRUNCATED, "the data end, or hold no code, before the last sample")
    n_bits = table.suffix[prefix]
    number = int(code[-n_bits:], 2)
    return number - (1 << n_bits) if number >> (n_bits - 1) else number
