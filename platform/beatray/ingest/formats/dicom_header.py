"""The multiplex groups, channels, patient and measurements of a DICOM data set, as plain values.

Contract: works on a data set (or item) that pydicom parsed, by keyword only; may raise anything on odd values, which
`formats.dicom` turns into a RecordError. Names of leads come from the channel source code, else from its meaning, else
from the channel label. Raises `RecordError` itself for counts out of bounds.
Source: DICOM PS3.3 C.10.9.1 (multiplex group, channel definition), C.10.10 (annotation), PS3.16 CID 3001, 3226 to 3229;
codes of the former SCPECG coding scheme as in ENV 1064.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beatray.ingest.formats.channels import About
from beatray.ingest.formats.leads import LEAD_OF_CODE, lead_of_name
from beatray.ingest.formats.numbers import MAX_COUNT, maybe
from beatray.ingest.formats.people import age_between, age_of, moment_of, sex_of
from beatray.record import LEADS, Reason, RecordError

MAX_CHANNELS = 64
DERIVED_MARKS = ("median", "representative", "average")

_LEAD_CODE = re.compile(r"(?:5\.6\.3-9-|2:)(\d{1,3})", re.ASCII)
_MEASURED = {
    **dict.fromkeys(("5.10.2.5-1", "2:16016", "2:16770", "8867-4", "MDC_ECG_HEART_RATE"), "rate_bpm"),
    **dict.fromkeys(("5.13.5-5", "2:16184", "MDC_ECG_TIME_PD_P"), "p_ms"),
    **dict.fromkeys(("5.13.5-7", "2:15872", "MDC_ECG_TIME_PD_PR"), "pr_ms"),
    **dict.fromkeys(("5.13.5-9", "2:16156", "MDC_ECG_TIME_PD_QRS"), "qrs_ms"),
    **dict.fromkeys(("5.13.5-11", "2:16160", "MDC_ECG_TIME_PD_QT"), "qt_ms"),
    **dict.fromkeys(("5.10.2.5-5", "2:15876", "2:15880", "2:16164", "MDC_ECG_TIME_PD_QTc"), "qtc_ms"),
    **dict.fromkeys(("5.10.3-11", "2:16128", "MDC_ECG_ANGLE_P_FRONT"), "p_axis_deg"),
    **dict.fromkeys(("5.10.3-13", "2:16132", "MDC_ECG_ANGLE_QRS_FRONT"), "qrs_axis_deg"),
    **dict.fromkeys(("5.10.3-15", "2:16136", "MDC_ECG_ANGLE_T_FRONT"), "t_axis_deg"),
}
_SCHEMES = ("SCPECG", "MDC", "LN", "SCP-ECG")


@dataclass(frozen=True, slots=True)
class ChannelDefinition:
    """One channel by its definition. `baseline` is in `unit`."""

    name: str
    sensitivity: float
    correction: float
    unit: str
    baseline: float
    skew_samples: float


@dataclass(frozen=True, slots=True)
class Group:
    """One multiplex group: channels recorded together, sample by sample."""

    channels: tuple[ChannelDefinition, ...]
    n_samples: int
    rate_hz: float
    bits: int
    interpretation: str
    padding: bytes
    data: bytes
    is_rhythm: bool


def group_of(item: Any) -> Group:
    """A multiplex group from its item of the Waveform Sequence. Raises RecordError and whatever odd values raise."""
    definitions = item.get("ChannelDefinitionSequence") or []
    n_channels, n_samples = int(item.NumberOfWaveformChannels), int(item.NumberOfWaveformSamples)
    if not 0 < n_channels <= MAX_CHANNELS or not 0 < n_samples <= MAX_COUNT:
        raise RecordError(Reason.ABSURD_SIZE, f"a multiplex group of {n_channels} channels of {n_samples} samples")
    if len(definitions) != n_channels:
        raise RecordError(Reason.HEADER, f"{n_channels} channels, {len(definitions)} channel definitions")
    rate_hz = float(item.SamplingFrequency)  # checked when the group is chosen: others may be slow on purpose
    label = str(item.get("MultiplexGroupLabel") or "").lower()
    derived = str(item.get("WaveformOriginality") or "") == "DERIVED" or any(word in label for word in DERIVED_MARKS)
    return Group(
        channels=tuple(_channel(definition, rate_hz) for definition in definitions),
        n_samples=n_samples,
        rate_hz=rate_hz,
        bits=int(item.WaveformBitsAllocated),
        interpretation=str(item.WaveformSampleInterpretation),
        padding=_raw(item.get("WaveformPaddingValue")),
        data=_raw(item.get("WaveformData")),
        is_rhythm=not derived,
    )


def about_patient(dataset: Any) -> About:
    """Age, sex, measurements and time; the id is the caller's."""
    text = str(dataset.get("PatientAge") or "")
    age = age_of(maybe(text[:-1]), text[-1:]) if text[-1:] in tuple("DWMY") else None
    if age is None:
        taken = dataset.get("AcquisitionDateTime") or dataset.get("AcquisitionDate") or dataset.get("StudyDate")
        age = age_between(str(dataset.get("PatientBirthDate") or ""), str(taken or ""))
    sex = sex_of(str(dataset.get("PatientSex") or ""))
    return About(None, age, sex, _measured(dataset), _acquired(dataset))


def _acquired(dataset: Any) -> datetime | None:
    """When the recording was taken; else when its content, or the study, was begun."""
    written = [str(dataset.get("AcquisitionDateTime") or "")]
    for what in ("Acquisition", "Content", "Study"):
        written.append(f"{dataset.get(f'{what}Date') or ''} {dataset.get(f'{what}Time') or ''}")
    return next((moment for text in written if (moment := moment_of(text))), None)


def _channel(definition: Any, rate_hz: float) -> ChannelDefinition:
    units = definition.get("ChannelSensitivityUnitsSequence") or []
    skew = definition.get("ChannelSampleSkew")
    if skew is None or skew == "":
        skew = float(definition.get("ChannelTimeSkew") or 0.0) * rate_hz
    return ChannelDefinition(
        name=_lead_name(definition),
        sensitivity=float(definition.get("ChannelSensitivity") or 0.0),
        correction=_or(definition.get("ChannelSensitivityCorrectionFactor"), 1.0),
        unit=str(units[0].CodeValue) if units else "",
        baseline=_or(definition.get("ChannelBaseline"), 0.0),
        skew_samples=float(skew),
    )


def _lead_name(definition: Any) -> str:
    """The canonical name of one of the twelve leads, or what the channel is called."""
    label = str(definition.get("ChannelLabel") or "")
    source = definition.get("ChannelSourceSequence") or []
    code = str(source[0].get("CodeValue") or "") if source else ""
    meaning = str(source[0].get("CodeMeaning") or "") if source else ""
    match = _LEAD_CODE.fullmatch(code)
    if match:
        lead = LEAD_OF_CODE.get(int(match[1]))
        return LEADS[lead] if lead is not None else "another lead"
    for text in (code, meaning.partition(",")[0], label):
        lead = lead_of_name(text)
        if lead is not None:
            return LEADS[lead]
    return "another lead"


def _measured(dataset: Any) -> dict[str, float | None]:
    """Values written for the recording as a whole, in ms, degrees and beats per minute."""
    measured: dict[str, float | None] = {}
    for annotation in dataset.get("WaveformAnnotationSequence") or []:
        concept = annotation.get("ConceptNameCodeSequence") or []
        if not concept or annotation.get("TemporalRangeType") or annotation.get("NumericValue") in (None, ""):
            continue
        name = _MEASURED.get(str(concept[0].get("CodeValue") or ""))
        if name is None or str(concept[0].get("CodingSchemeDesignator") or "") not in _SCHEMES:
            continue
        units = annotation.get("MeasurementUnitsCodeSequence") or []
        value = maybe(str(annotation.NumericValue))
        if value is not None:
            in_seconds = name.endswith("_ms") and bool(units) and str(units[0].get("CodeValue")) == "s"
            measured[name] = 1e3 * value if in_seconds else value
    return measured


def _or(value: Any, otherwise: float) -> float:
    return otherwise if value is None or value == "" else float(value)


def _raw(value: Any) -> bytes:
    """The bytes of an OB or OW element; a number where pydicom made one of two bytes."""
    if isinstance(value, int):
        return int(value).to_bytes(2, "little", signed=value < 0)
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""
