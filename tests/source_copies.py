"""Small copies of public data sets, written after the published descriptions of their tables, headers and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from array_files import COLUMNS, code15_part
from beatray.ingest.sources import incart
from beatray.ingest.tree import Tree, open_tree
from beatray.record import LEADS
from wfdb_files import ecg_counts, write_record

MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def mimic_copy(root: Path) -> Tree:
    order = [0, 1, 2, 3, 5, 4, *range(6, 12)]
    lines = ["subject_id,study_id,file_name,ecg_time,path"]
    for subject, study in ((10001725, 41420867), (10001725, 40000017), (10023771, 42745010)):
        folder = root / f"files/p{subject // 10000}/p{subject}/s{study}"
        folder.mkdir(parents=True)
        comments = f"# <subject_id>: {subject}\n"
        write_record(folder, str(study), ecg_counts(seed=study % 97)[:, order], leads=MIMIC_LEADS, comments=comments)
        path = f"files/p{subject // 10000}/p{subject}/s{study}/{study}"
        lines.append(f"{subject},{study},{study},2110-10-11 13:06:00,{path}")
    (root / "record_list.csv").write_text("\n".join(lines) + "\n")
    reports = ",".join(f"report_{number}" for number in range(3))
    (root / "machine_measurements.csv").write_text(
        f"subject_id,study_id,cart_id,ecg_time,{reports},bandwidth,filtering,rr_interval,p_onset,p_end,qrs_onset,"
        "qrs_end,t_end,p_axis,qrs_axis,t_axis\n"
        '10001725,41420867,6848296,2110-10-11,Sinus rhythm,"Name, first",,0.005-150 Hz,60 Hz,800,40,150,190,280,580,'
        "55,-12,40\n"
        "10001725,40000017,6848296,2110-10-11,AF,,,0.005-150 Hz,60 Hz,65535,29999,29999,190,280,29999,32767,-32768,40\n"
    )
    return open_tree(str(root))


INCART_TABLE = "patient 1\nI01 I02\nCoronary artery disease\n\npatient 2\nI03\n"


def incart_copy(root: Path, *, table: str | None = INCART_TABLE, seconds: int = 32) -> Tree:
    diagnoses = "<diagnoses> Coronary artery disease, arterial hypertension"
    for name, person, patient in (("I01", diagnoses, "1"), ("I02", diagnoses, "1"), ("I03", "", "2")):
        text = f"#<age>: 65 <sex>: F {person}\n# patient {patient}\n# PVCs, noise\n"
        adc = ecg_counts(257 * seconds, 257.0, seed=int(name[1:]))
        leads = tuple(lead.upper() for lead in LEADS)
        write_record(root, name, adc, rate="257", gain="1000", leads=leads, comments=text)
        (root / f"{name}.atr").write_bytes(b"\0\0")
    if table is not None:
        (root / incart.TABLE).write_text(table)
    return open_tree(str(root))


def zzu_copy(root: Path, prefix: str = "Child_ecg/") -> Tree:
    folder = root / f"{prefix}P00/P00001"
    folder.mkdir(parents=True)
    nine = [*range(6), 6, 8, 10]
    write_record(folder, "P00001_E01", ecg_counts(seed=1), comments="# made for a test\n")
    write_record(folder, "P00001_E02", ecg_counts(2500, seed=2)[:, nine], leads=tuple(LEADS[k] for k in nine))
    columns = "Filename,ECG_ID,Patient_ID,Age,Gender,Acquisition_date,Lead,AHA_code,CHN_code,ICD-10 code,pSQI"
    path, high = "P00/P00001/P00001_E0", "Left ventricular high voltage"
    one = (f"{path}1", "P00001_E01", "P00001", "572d", "'Female'", "2017-11-22", "12", "'C21'", "'C13'", "'Q21.0'", "")
    codes = (f"'D31';'{high}'", "'D22'", "'D31';'(F) I40.0'")
    two = (f"{path}2", "P00001_E02", "P00001", "4015d", "'Male'", "2017-11-22", "9", *codes, "'I':0.5;'V2':Null")
    rows = [one, two]
    text = "\n".join([columns, *(",".join(f'"{cell}"' for cell in row) for row in rows)])
    (root / "AttributesDictionary.csv").write_text(text + "\n")
    return open_tree(str(root))


def tracing(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return ecg_counts(n, 400.0, seed=seed) / 1000.0


def code15_copy(root: Path, **options: Any) -> Tree:
    lengths = {101: 2934, 57: 4096, 3000000: 4000, 9: 2800}
    for part, exams in (("exams_part2.hdf5", [101, 57]), ("exams_part10.hdf5", [3000000, 9])):
        code15_part(root / part, exams, [tracing(lengths[exam], exam % 89) for exam in exams], **options)
    (root / "exams.csv").write_text(
        COLUMNS
        + "9,41,False,38.7,False,False,False,True,False,False,7,,,False,exams_part10.hdf5\n"
        + "101,54,True,44.2,False,True,True,False,False,False,12,False,3.8,False,exams_part2.hdf5\n"
        + "57,27,True,62.3,False,False,False,False,False,False,7,True,2.4,True,exams_part2.hdf5\n"
        + "3000000,100,False,60.1,False,False,False,False,False,False,13,,,False,exams_part10.hdf5\n"
    )
    return open_tree(str(root))
