"""Lead names: every spelling that stands for one of the twelve, and none that stands for another lead."""

from __future__ import annotations

import pytest

from beatray.ingest.formats.leads import LEAD_OF_CODE, columns_of_leads, lead_of_name
from beatray.record import LEADS, Reason, RecordError

SPELLINGS = (
    "{}",
    " {} ",
    "Lead {}",
    "LEAD_{}",
    "lead:{}",
    "MDC_ECG_LEAD_{}",
    "ECG {}",
    "EKG {}",
    "ECG Lead {}",
    "ECG_{}",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    for position, lead in enumerate(LEADS):
        for name in (lead, lead.upper(), lead.lower()):
            assert lead_of_name(spelling.format(name)) == position


@pytest.mark.parametrize(
    "name",
    [
        *("", "MLII", "-aVR", "V4R", "V7", "V", "IV", "aV", "X", "ECG", "Lead", "II+", "CM5", "I-cal", "1", "V1-V2"),
        *("ECGII", "Lead Lead I", "MDC_ECG_LEAD_", "MDC_ECG_LEAD_V7", "MDC_ECG_LEAD_I_CAL", "I II", "Resp", "aVRx"),
        *("\u2160", "vI", "V01", "V 1", "III,"),
    ],
)
def test_other_leads_are_none_of_the_twelve(name: str) -> None:
    assert lead_of_name(name) is None


def test_two_spellings_of_one_lead_are_a_duplicate() -> None:
    assert columns_of_leads(["I", "Lead II", "Resp"])[:2] == [1, 2]
    with pytest.raises(RecordError) as caught:
        columns_of_leads(["I", "II", "MDC_ECG_LEAD_I"])
    assert caught.value.reason is Reason.DUPLICATE_LEADS


def test_codes_of_scp_and_dicom() -> None:
    named = {code: LEADS[position] for code, position in LEAD_OF_CODE.items()}
    assert named == {
        1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6",
        61: "III", 62: "aVR", 63: "aVL", 64: "aVF",
    }  # fmt: skip
