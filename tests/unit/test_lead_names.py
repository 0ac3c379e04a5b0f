"""Lead names: every spelling that stands for one of the twelve, and none that stands for another lead."""

from __future__ import annotations

import pytest

from beatray.ingest.formats.channel_names import is_known
from beatray.ingest.formats.leads import LEAD_OF_CODE, check_enough, columns_of_leads, lead_of_name
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


KNOWN = (
    *("MLI", "MLII", "ML III", "MCL1", "MCL6", "V1R", "V4R", "v7", "V9", "X", "Y", "Z", "vx", "vz", "ES", "AS", "AI"),
    *("Resp", "RESP", "SpO2", "ABP", "Fp1", "Fz", "T8", "EEG Fp1-F7", "F3-A2", "V1-V2", "-aVR", "C3", "D2", "CM5"),
    *("ECG", "ECG1", "ECG 2", "EKG", "aVR", "Lead V7", "EDF Annotations"),
)
PEOPLE = (
    *("Anna", "Lee-Ann", "Kim67", "Wong", "12-34", "Ai", "Es", "Li", "Li-Na", "Art", "Oz", "Al", "Bo", "Ng"),
    *("ECG Kim", "Lead Anna", "ECG Lee-Ann", "V1 Anna", "V1-Wong", "Anna-V1", "Jo-V1", "A+B", "Max", "Vi", "Mr"),
    *("x", "1", "1234567", "V99", "T12", "", "-", "\u0531", "V\u0661"),
)


@pytest.mark.parametrize("name", KNOWN)
def test_known_channels_may_be_shown(name: str) -> None:
    assert is_known(name) and is_known(f" {name} ")


@pytest.mark.parametrize("name", PEOPLE)
def test_what_may_be_a_person_is_counted_and_not_shown(name: str) -> None:
    assert not is_known(name)
    names = [name, "II", "MLII", "zz"]
    with pytest.raises(RecordError) as caught:
        check_enough(columns_of_leads(names), names)
    assert "beside 3 other channels (MLII, ...);" in caught.value.detail
