"""Statistics that are merged say the same as statistics of everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from beatray.commands.corpus import lead_counts
from beatray.corpus.tally import describe, merge, merge_all, tally_recordings
from beatray.record import LEADS, Record


def test_merged_moments_are_those_of_all_values() -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(3.0, [1.0, 100.0, 1e-3], (1000, 3)).astype(np.float32)
    values[chance.random(values.shape) < 0.2] = np.nan
    values[:400, 1] = np.nan  # a part in which nothing is known of a feature
    names = ("a", "b", "c")
    parts = [describe(values[start : start + 200], names) for start in range(0, 1000, 200)]
    merged = merge_all({"features": part} for part in parts)["features"]
    whole = describe(values, names)
    assert merged["known"] == whole["known"] and merged["missing"] == whole["missing"]
    assert merged["min"] == whole["min"] and merged["max"] == whole["max"]
    assert merged["mean"] == pytest.approx(whole["mean"], rel=1e-12)
    assert merged["sd"] == pytest.approx(whole["sd"], rel=1e-9)


def test_a_label_may_have_any_name() -> None:
    one, other = ({"labels": {"names": count, "AF": 1}} for count in (2, 3))
    assert merge(one, other) == {"labels": {"names": 5, "AF": 2}}


def test_a_feature_nobody_knows_stays_unknown() -> None:
    nothing = describe(np.full((5, 1), np.nan, np.float32), ("a",))
    merged = merge({"f": nothing}, {"f": nothing})["f"]
    assert (merged["known"], merged["missing"], merged["mean"], merged["sd"]) == ([0], [10], [0.0], [0.0])


def test_counts_add_up() -> None:
    signal = np.zeros((12, 10))
    one = tally_recordings("a", [Record("a/1", "a", signal, 500.0, labels=("N", "N", "AF"))])
    two = tally_recordings("b", [Record("b/1", "b", signal, 257.0), Record("b/2", "b", signal, 500.0, labels=("N",))])
    assert merge_all([one, two, one])["sources"] == {
        "a": {"recordings": 2, "rates_hz": {"500": 2}, "labels": {"AF": 2, "N": 2}},
        "b": {"recordings": 2, "rates_hz": {"257": 1, "500": 1}, "labels": {"N": 1}},
    }


def test_how_many_rows_each_lead_is_fit_in() -> None:
    whole = dict.fromkeys(LEADS, 401)
    assert lead_counts(whole, 401) == "12 in all rows"
    assert lead_counts(whole, 402) == "12 in 401 of 402 rows"
    some = whole | dict.fromkeys(LEADS[6:], 395)
    assert lead_counts(some, 401) == "I, II, III, aVR, aVL, aVF in all; V1, V2, V3, V4, V5, V6 in 395 of 401 rows"
    nine = whole | dict.fromkeys(("V2", "V4", "V6"), 0)
    assert lead_counts(nine, 401).endswith("V1, V3, V5 in all; V2, V4, V6 in none of 401 rows")
    many = {lead: 400 - number for number, lead in enumerate(LEADS)}
    assert lead_counts(many, 401) == "each in 389 (V6) to 400 (I) of 401 rows"
