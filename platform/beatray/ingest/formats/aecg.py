"""HL7 version 3 annotated ECG (aECG): the rhythm series, not the derived beat.

A series holds sets of sequences: one of times, the others of leads, each a list of whole numbers with a scale and an
origin. Contract: `read(tree, path)` gives one Record for each set of a rhythm series with enough leads; a set that
cannot be used costs no other.
Times must be an even grid with a written increment (GLIST_TS or GLIST_PQ), signals SLIST_PQ. Measurements are the
annotations of that series, or of the beat derived from it: the median where a value is written for every beat. Raises
`RecordError`: HEADER, FORMAT, ABSURD_SIZE, BAD_RATE, BAD_UNITS, BAD_GAIN, TRUNCATED and as `formats.channels`.
Source: HL7 aECG release 1 (ANSI/HL7 V3 ECG, R1-2004) as in Brown & Badilini, "HL7 aECG Implementation Guide", 2005,
and its example file.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from itertools import starmap
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from beatray.ingest.formats.channels import About, Channel, check_gain, lead_shown, mv_per_unit, to_record
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.leads import columns_of_leads, is_enough, lead_of_name
from beatray.ingest.formats.numbers import decimal, exact, maybe, shown, whole_numbers
from beatray.ingest.formats.people import age_between, age_of, id_of, moment_of, sex_of
from beatray.ingest.formats.safe_xml import MAX_XML_BYTES, every, named, needed, parse_xml, root_of, text_at, value_at
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

ROOT = "AnnotatedECG"
MAX_SEQUENCES = 64
AGE_CODE = "21612-7"
"""LOINC: reported age."""

SECONDS_PER_UNIT = {"s": 1, "ms": 1_000, "us": 1_000_000}
"""How many of a unit make a second."""

_MEASURED = {
    "MDC_ECG_HEART_RATE": "rate_bpm",
    "MDC_ECG_TIME_PD_P": "p_ms",
    "MDC_ECG_TIME_PD_PR": "pr_ms",
    "MDC_ECG_TIME_PD_QRS": "qrs_ms",
    "MDC_ECG_TIME_PD_QT": "qt_ms",
    "MDC_ECG_TIME_PD_QTc": "qtc_ms",
    "MDC_ECG_TIME_PD_QTcB": "qtc_ms",
    "MDC_ECG_ANGLE_P_FRONT": "p_axis_deg",
    "MDC_ECG_ANGLE_QRS_FRONT": "qrs_axis_deg",
    "MDC_ECG_ANGLE_T_FRONT": "t_axis_deg",
}


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of this format."""
    return root_of(head) == ROOT


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The recordings of a file, one for each rhythm set that has enough leads. Raises RecordError, for a set that
    cannot be used when its turn comes: the others are read."""
    root = parse_xml(tree.read(path, MAX_XML_BYTES), ROOT)
    return starmap(partial(_record, path, root), _rhythms(root))


def _record(path: str, root: Element, series: Element, sequences: list[Element]) -> Record:
    if len(sequences) > MAX_SEQUENCES:
        raise RecordError(Reason.ABSURD_SIZE, f"{len(sequences)} sequences in a set, at most {MAX_SEQUENCES}")
    rate_hz = _rate(sequences)
    leads = [sequence for sequence in sequences if lead_of_name(_code(sequence)) is not None]
    channels = [_channel(sequence) for sequence in leads]
    scales = (f"{value_at(s, 'value/scale', 'value')} {value_at(s, 'value/scale', 'unit')}" for s in leads)
    passed("signal", f"{len(channels)} leads as lists of whole numbers")
    passed("gain", ", ".join(dict.fromkeys(scales)) + " per count")
    return to_record(path, channels, rate_hz, _about(root, series, _began(root, series, sequences)))


def _code(element: Element) -> str:
    return value_at(element, "code", "code")


def _kind(value: Element) -> str:
    """The xsi:type of a value, whatever the name space is called."""
    return next((text for key, text in value.attrib.items() if key.rpartition("}")[2] == "type"), "")


def _rhythms(root: Element) -> list[tuple[Element, list[Element]]]:
    """Each rhythm series with each set of it that is a recording, as the sequences of that set."""
    sets = 0
    found: list[tuple[Element, list[Element]]] = []
    for number, series in enumerate(s for component in named(root, "component") for s in named(component, "series")):
        if _code(series) != "RHYTHM":
            continue
        for group in (g for component in named(series, "component") for g in named(component, "sequenceSet")):
            sequences = [s for component in named(group, "component") for s in named(component, "sequence")]
            sets += 1
            if _is_meant(sequences):
                found.append((series, sequences))
                passed("series", f"rhythm, number {number + 1} of the file; derived beats are not read")
    if found:
        return found
    if not sets:
        raise RecordError(Reason.HEADER, "there is no series of code RHYTHM with a sequenceSet")
    raise RecordError(Reason.LEADS_MISSING, f"none of {sets} sets of the rhythm series has I, II and a chest lead")


def _is_meant(sequences: list[Element]) -> bool:
    """Whether a set is a recording: it has enough leads, or so many that its reading reports why not."""
    try:
        return len(sequences) > MAX_SEQUENCES or is_enough(columns_of_leads([_code(each) for each in sequences]))
    except RecordError:
        return True


def _rate(sequences: list[Element]) -> float:
    """Samples per second from the one sequence of times."""
    times = [sequence for sequence in sequences if _code(sequence) in ("TIME_ABSOLUTE", "TIME_RELATIVE")]
    if len(times) != 1:
        raise RecordError(Reason.BAD_RATE, f"{len(times)} sequences of times in the set, one expected")
    value = needed(times[0], "value")
    if _kind(value) not in ("GLIST_TS", "GLIST_PQ"):
        raise RecordError(Reason.FORMAT, f"times as {shown(_kind(value))}, not as a grid (GLIST_TS, GLIST_PQ)")
    increment = needed(value, "increment")
    per_second = SECONDS_PER_UNIT.get(increment.get("unit", ""))
    if per_second is None:
        raise RecordError(Reason.BAD_RATE, f"the increment's unit is {shown(increment.get('unit'))}, not s, ms or us")
    return float(per_second / exact(increment.get("value"), Reason.BAD_RATE, "increment"))


def _channel(sequence: Element) -> Channel:
    name = _code(sequence)
    what = lead_shown(name)
    value = needed(sequence, "value")
    if _kind(value) != "SLIST_PQ":
        raise RecordError(Reason.FORMAT, f"{what} as {shown(_kind(value))}, not SLIST_PQ")
    scale, scale_mv = _quantity(value, "scale", Reason.BAD_GAIN, what)
    origin, origin_mv = _quantity(value, "origin", Reason.HEADER, what)
    gain = check_gain(scale * scale_mv, what)
    counts = whole_numbers(text_at(value, "digits"), " ", what)
    return Channel(name, counts.astype(np.float64) * gain + origin * origin_mv)


def _quantity(value: Element, which: str, reason: Reason, lead: str) -> tuple[float, float]:
    """A number and what its unit is in millivolts."""
    element = needed(value, which)
    number = decimal(element.get("value"), reason, f"{which} of {lead}")
    return number, mv_per_unit(element.get("unit", ""), f"{which} of {lead}")


def _began(root: Element, series: Element, sequences: list[Element]) -> datetime | None:
    """When a set of sequences begins: by its own times, else by its series', else by the document's."""
    absolute = [sequence for sequence in sequences if _code(sequence) == "TIME_ABSOLUTE"]
    written = [value_at(sequence, "value/head", "value") for sequence in absolute]
    for element in (series, root):
        written += [value_at(element, f"effectiveTime/{name}", "value") for name in ("low", "center")]
    return next((moment for text in written if (moment := moment_of(text))), None)


def _about(root: Element, series: Element, began: datetime | None) -> About:
    person = next(every(root, "trialSubject"), None)
    born = value_at(person, "subjectDemographicPerson/birthTime", "value")
    reported = [
        age_of(maybe(value_at(element, "value", "value")), value_at(element, "value", "unit").replace("a", "y"))
        for element in every(root, "relatedObservation")
        if _code(element) == AGE_CODE
    ]
    taken = (value_at(root, f"effectiveTime/{name}", "value") for name in ("center", "low"))
    age = next((age for age in reported if age is not None), None)
    if age is None:
        age = age_between(born, next((time for time in taken if time), ""))
    return About(
        id_of(value_at(person, "id", "extension")),
        age,
        sex_of(value_at(person, "subjectDemographicPerson/administrativeGenderCode", "code")),
        _measured(series),
        began,
    )


def _measured(series: Element) -> dict[str, float | None]:
    """Medians of the annotations that are durations in ms, angles in degrees or rates per minute."""
    found: dict[str, list[float]] = {}
    for annotation in every(series, "annotation"):
        name = _MEASURED.get(_code(annotation))
        value = maybe(value_at(annotation, "value", "value"))
        if name is None or value is None:
            continue
        seconds = name.endswith("_ms") and value_at(annotation, "value", "unit") == "s"
        found.setdefault(name, []).append(1e3 * value if seconds else value)
    return {name: median(values) for name, values in found.items()}
