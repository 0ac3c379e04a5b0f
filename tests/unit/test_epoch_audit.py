"""The audit of an epoch: what it catches, and how it names it."""

from __future__ import annotations

import numpy as np

from beatray.augment.draws import record_key
from beatray.train.epoch_audit import EpochAudit, difference, key_sum, signed

KEYS = [record_key(f"ludb/{number}") for number in range(50)]


def filled(keys: list[int], dropped: int = 0) -> EpochAudit:
    """An audit fed in three global steps, as ranks' sums come in."""
    audit = EpochAudit()
    for start in range(0, len(keys), 20):
        part = keys[start : start + 20]
        halves = key_sum(part[:7]) + key_sum(part[7:])  # two ranks
        audit.add(len(part), halves, 0)
    audit.add(0, 0, dropped)
    return audit


def test_every_record_once_in_any_order_holds() -> None:
    whole = key_sum(KEYS)
    assert filled(KEYS).holds(50, whole)
    assert filled(KEYS[::-1]).holds(50, whole)
    assert whole == key_sum(np.array(KEYS))
    assert -(2**63) <= whole < 2**63 and signed(sum(KEYS)) == whole


def test_a_missing_a_doubled_and_a_swapped_record_are_caught() -> None:
    whole = key_sum(KEYS)
    assert not filled(KEYS[1:]).holds(50, whole)
    assert not filled([*KEYS, KEYS[3]]).holds(50, whole)
    assert not filled([*KEYS[1:], KEYS[3]]).holds(50, whole)  # the count alone would not show it


def test_dropped_rows_are_counted() -> None:
    assert filled(KEYS[:45], dropped=5).holds(50, key_sum(KEYS))
    assert not filled(KEYS[:44], dropped=5).holds(50, key_sum(KEYS))


def test_the_difference_is_given_by_name() -> None:
    names = {record_key(f"ludb/{number}"): f"ludb/{number}" for number in range(50)}
    differing = difference([*KEYS[1:], KEYS[3]], KEYS, names)
    assert differing == "missing: ludb/0; seen too often or not asked for: ludb/3"
    assert "and 30 more" in difference([], KEYS, names)
