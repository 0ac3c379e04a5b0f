"""The shared wave mask on hand-made and on real marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beatray.evaluate.labels import wave_mask
from beatray.evaluate.metrics import IGNORE
from beatray.record import WAVE_DTYPE, WAVE_KINDS
from evaluation_rows import read_rows

SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"


def marks(*waves: tuple[int, int, int, int, int]) -> np.ndarray:
    """A wave table from (lead, kind, onset, peak, offset)."""
    return np.array(list(waves), WAVE_DTYPE)


def in_leads(count: int, kind: int, onset: int, peak: int, offset: int) -> list[tuple[int, int, int, int, int]]:
    """The same wave in the first `count` leads."""
    return [(lead, kind, onset, peak, offset) for lead in range(count)]


BRACKET = [*in_leads(3, 1, 100, 110, 120), *in_leads(3, 1, 4900, 4910, 4920)]  # first and last marks of a record


def test_a_wave_needs_three_leads() -> None:
    mask = wave_mask(marks(*BRACKET, *in_leads(2, 0, 1000, 1010, 1020), *in_leads(3, 0, 2000, 2010, 2020)))
    assert (mask[1000:1021] == 0).all()
    assert (mask[2000:2021] == 1).all() and mask[1999] == 0 and mask[2021] == 0


def test_conflicts_go_to_qrs_then_t() -> None:
    mask = wave_mask(
        marks(
            *BRACKET,
            *in_leads(4, 0, 1000, 1010, 1050),
            *in_leads(4, 1, 1040, 1050, 1100),
            *in_leads(4, 2, 1090, 1100, 1150),
            *in_leads(4, 0, 1140, 1150, 1200),
        )
    )
    assert mask[[1045, 1095, 1145, 1195]].tolist() == [2, 2, 3, 1]


def test_missing_onset_starts_at_the_peak_and_missing_offset_drops_the_wave() -> None:
    mask = wave_mask(marks(*BRACKET, *in_leads(3, 2, -1, 1000, 1050), *in_leads(3, 2, 2000, 2010, -1)))
    assert mask[999] == 0 and (mask[1000:1051] == 3).all()
    assert (mask[1990:2100] == 0).all()


def test_the_scored_region_is_the_middle_cut_to_the_marks() -> None:
    whole = wave_mask(marks(*BRACKET))
    assert (np.flatnonzero(whole != IGNORE)[[0, -1]] == [500, 4499]).all()
    late = wave_mask(marks(*in_leads(3, 1, 800, 820, 840), *in_leads(3, 1, 3900, 3910, 3920)))
    assert (np.flatnonzero(late != IGNORE)[[0, -1]] == [800, 3920]).all()
    assert (wave_mask(marks()) == IGNORE).all()


def test_masks_of_real_records_equal_a_count_of_leads_sample_by_sample() -> None:
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 4))
    for waves in rows.waves:
        mask = wave_mask(waves)
        first = min(int(w["onset"] if w["onset"] >= 0 else w["peak"]) for w in waves if w["offset"] >= 0)
        last = max(int(w["offset"]) for w in waves)
        scored = np.flatnonzero(mask != IGNORE)
        assert scored[0] == max(500, first) and scored[-1] == min(4499, last)
        for sample in scored[::97]:
            leads = {kind: set() for kind in WAVE_KINDS}
            for wave in waves:
                onset = wave["onset"] if wave["onset"] >= 0 else wave["peak"]
                if wave["offset"] >= 0 and onset <= sample <= wave["offset"]:
                    leads[WAVE_KINDS[wave["kind"]]].add(int(wave["lead"]))
            wins = [kind for kind in ("QRS", "T", "P") if len(leads[kind]) >= 3]
            assert mask[sample] == (WAVE_KINDS.index(wins[0]) + 1 if wins else 0)
        shares = [(mask == k).sum() / scored.size for k in range(4)]
        assert shares[0] > 0.3 and 0.05 < shares[2] < 0.35 and shares[3] > 0.1
