"""MIMIC-IV-ECG: 800,035 recordings of 10 s of 161,352 patients, with the measurements of the cart that made them.

Leads are taken by name, as everywhere: this set stores aVF before aVL.

Contract: `find(tree)` lists every row of `record_list.csv` in the order of `study_id`; the record id is
`mimic/<study_id>`, the patient `mimic/<subject_id>`, the time `ecg_time`, which the authors moved. `read` gives one
Record without labels, age or sex (they are in other modules of MIMIC-IV); header comments, which repeat the subject,
and report lines are not read. Intervals and axes of `machine_measurements.csv`, where it is there, go to `measured`;
its codes for "could not be measured" (29999, 32767, -32768, 65535) and values that no heart has are left out. Raises
RecordError.
Source: Gow et al., MIMIC-IV-ECG 1.0, PhysioNet (2023), doi:10.13026/4nqg-sb35.
"""

from __future__ import annotations

from collections.abc import Iterator

from beatray.ingest.formats.numbers import maybe_whole
from beatray.ingest.formats.people import id_problem, moment_of
from beatray.ingest.formats.wfdb_record import read_twelve_leads, split_path
from beatray.ingest.sources.item import Item, check_not_refused, find_table, read_columns
from beatray.ingest.spelling import as_spelt
from beatray.ingest.tree import Tree
from beatray.record import Record

NAME = "mimic"
LICENCE = "PhysioNet Credentialed Health Data 1.5.0"
INDEX = "record_list.csv"
MEASUREMENTS = "machine_measurements.csv"
_COLUMNS = ("study_id", "subject_id", "path")
_TIME = "ecg_time"
_MEASURED = ("rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis")
_TIMES_MS = (0.0, 5000.0)
_LIMITS = {
    "rate_bpm": (10.0, 400.0),
    "p_ms": (10.0, 400.0),
    "pr_ms": (20.0, 1000.0),
    "qrs_ms": (20.0, 400.0),
    "qt_ms": (100.0, 1000.0),
}


def find(tree: Tree) -> list[Item]:
    """Every recording of the list; rows that cannot be used carry the reason in `meta["refused"]`."""
    index = find_table(tree, INDEX)
    folder = split_path(index)[0]
    measured = _measurements(tree, folder)
    items: dict[int, Item] = {}
    unusable: list[Item] = []
    rows = read_columns(tree, index, _COLUMNS, (_TIME,))
    for line, (study, subject, path, acquired) in enumerate(rows, start=1):
        number, patient = maybe_whole(study), maybe_whole(subject)
        problem = ""
        if number is None or patient is None:
            why = id_problem(study) or id_problem(subject) or "study_id or subject_id is no number"
            problem = f"row {line} of {INDEX}: {why}"
        elif number in items:
            problem = f"row {line} of {INDEX}: study_id {number} is there twice"
        if problem or number is None:
            unusable.append(Item(f"row-{line}", index, {"refused": problem}, unnamed=True))
            continue
        meta = {"patient": f"{NAME}/{patient}", "measured": measured.get(number, ""), "acquired": acquired}
        items[number] = Item(str(number), as_spelt(tree, f"{folder}{path.strip().removesuffix('.hea')}.hea"), meta)
    return [*(items[number] for number in sorted(items)), *unusable]


def read(tree: Tree, item: Item) -> Iterator[Record]:
    """The one recording of an item. Raises RecordError."""
    check_not_refused(item)
    leads = read_twelve_leads(tree, item.path)
    yield Record(
        record_id=f"{NAME}/{item.name}",
        source=NAME,
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        patient_id=item.meta["patient"],
        notes=leads.notes,
        measured=parse_measurements(item.meta["measured"]),
        acquired=moment_of(item.meta["acquired"]),
    )


def _measurements(tree: Tree, folder: str) -> dict[int, str]:
    """By study: the cells of the table's nine measurements, as they are."""
    path = folder + MEASUREMENTS
    if path not in tree:
        return {}
    table: dict[int, str] = {}
    for study, *cells in read_columns(tree, path, ("study_id", *_MEASURED)):
        number = maybe_whole(study)
        if number is not None:
            table[number] = "|".join(cell.strip()[:12] for cell in cells)
    return table


def parse_measurements(text: str) -> dict[str, float]:
    """Measurements under the names of `record.MEASURED` from the nine cells; what was not measurable is left out."""
    cells = text.split("|")
    if len(cells) != len(_MEASURED):
        return {}
    value = {name: _number(cell) for name, cell in zip(_MEASURED, cells, strict=True)}
    times = {name: value[name] for name in _MEASURED[1:6] if _within(value[name], _TIMES_MS)}
    found = {
        "rate_bpm": 60000.0 / value["rr_interval"] if value["rr_interval"] > 0 else float("nan"),
        "p_ms": times.get("p_end", float("nan")) - times.get("p_onset", float("nan")),
        "pr_ms": times.get("qrs_onset", float("nan")) - times.get("p_onset", float("nan")),
        "qrs_ms": times.get("qrs_end", float("nan")) - times.get("qrs_onset", float("nan")),
        "qt_ms": times.get("t_end", float("nan")) - times.get("qrs_onset", float("nan")),
    }
    measured = {name: amount for name, amount in found.items() if _within(amount, _LIMITS[name])}
    for wave in ("p", "qrs", "t"):
        if _within(value[f"{wave}_axis"], (-180.0, 360.0)):
            measured[f"{wave}_axis_deg"] = value[f"{wave}_axis"]
    return measured


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
