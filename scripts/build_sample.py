"""Build the two archives of real recordings that ship inside the package.

    python scripts/build_sample.py --ptbxl DIR --ludb DIR [--out platform/beatray/sample]

DIR are unpacked copies of PTB-XL (1.0.1 or later) and LUDB 1.0.1. The archives keep each data set's own layout, files
and licence text untouched; only the two tables are cut down to the chosen rows. The choice is deterministic: LUDB
records in the order of a hash of their name; PTB-XL patients whole, those with any non-normal superclass first.
The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import io
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

from beatray.ingest.sources.ptbxl import WITHDRAWN

TEST_FOLDS = {8, 9}  # the sample has no fold 10, so the demo tests on these
PTBXL_TRAIN, PTBXL_TEST, LUDB_RECORDS = 120, 80, 125
EPOCH = (2026, 1, 1, 0, 0, 0)

ATTRIBUTION = {
    "ptbxl": """PTB-XL, a large publicly available electrocardiography dataset (a selection of {n} records).
Wagner P, Strodthoff N, Bousseljot R-D, Samek W, Schaeffter T. PhysioNet, doi:10.13026/kfzx-aw45.
Wagner P et al. PTB-XL, a large publicly available electrocardiography dataset. Scientific Data 7:154 (2020),
doi:10.1038/s41597-020-0495-6. Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 101 (2000).
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0); text in LICENSE.txt.
Changes: records chosen, ptbxl_database.csv cut to the chosen rows and to the columns the reader uses; signals and
headers untouched.
""",
    "ludb": """Lobachevsky University Electrocardiography Database 1.0.1 (a selection of {n} records).
Kalyakulina A, Yusipov I, Moskalenko V, Nikolskiy A, Kosonogov K, Zolotykh N, Ivanchenko M. PhysioNet,
doi:10.13026/eegm-h675. Kalyakulina A et al. LUDB: a new open-access validation tool for electrocardiogram delineation
algorithms. IEEE Access 8:186181 (2020), doi:10.1109/ACCESS.2020.3029211.
Licence: Open Data Commons Attribution License 1.0 (ODC-By 1.0); text in LICENSE.txt.
Changes: records chosen, ludb.csv cut to the chosen rows; signals, headers and annotations untouched.
""",
}
PTBXL_COLUMNS = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr")


def name_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def choose_ptbxl(rows: list[dict[str, str]], classes: dict[str, str]) -> list[dict[str, str]]:
    """Whole patients, the rarer findings first, until both parts are full."""
    patients: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if int(row["ecg_id"]) not in WITHDRAWN:
            patients[row["patient_id"]].append(row)

    def rank(patient: str) -> tuple[bool, bytes]:
        codes = {code for row in patients[patient] for code in ast.literal_eval(row["scp_codes"])}
        found = {classes[code] for code in codes if code in classes}
        return (not found - {"NORM"}, name_hash(f"ptbxl/{patient}"))

    room = {True: PTBXL_TEST, False: PTBXL_TRAIN}
    chosen = []
    for patient in sorted(patients, key=rank):
        records = patients[patient]
        part = int(records[0]["strat_fold"]) in TEST_FOLDS
        if len(records) <= room[part]:
            room[part] -= len(records)
            chosen += records
    return sorted(chosen, key=lambda row: int(row["ecg_id"]))


def table(rows: list[dict[str, str]], columns: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    """Signals with LZMA (a third smaller here), the rest with deflate; fixed times, sorted names."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_LZMA if name.endswith(".dat") else zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    print(f"{path.name}: {len(members)} files, {path.stat().st_size / 1e6:.2f} MB", file=sys.stderr)


def build_ptbxl(folder: Path, out: Path) -> None:
    with (folder / "scp_statements.csv").open(newline="") as file:
        classes = {row[""]: row["diagnostic_class"] for row in csv.DictReader(file) if row["diagnostic"] == "1.0"}
    with (folder / "ptbxl_database.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (folder / f"{row['filename_hr']}.dat").is_file()]
    chosen = choose_ptbxl(rows, classes)
    members = {
        "ptbxl_database.csv": table(chosen, list(PTBXL_COLUMNS)),
        "scp_statements.csv": (folder / "scp_statements.csv").read_bytes(),
        "LICENSE.txt": (folder / "LICENSE.txt").read_bytes(),
        "ATTRIBUTION.txt": ATTRIBUTION["ptbxl"].format(n=len(chosen)).encode(),
    }
    for row in chosen:
        for suffix in (".hea", ".dat"):
            members[row["filename_hr"] + suffix] = (folder / (row["filename_hr"] + suffix)).read_bytes()
    write_zip(out / "ptbxl-sample.zip", members)


def build_ludb(folder: Path, out: Path) -> None:
    with (folder / "ludb.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    order = sorted(rows, key=lambda row: name_hash(f"ludb-sample/{row['ID'].strip()}"))
    chosen = sorted(order[:LUDB_RECORDS], key=lambda row: int(row["ID"]))
    members = {
        "ludb.csv": table(chosen, columns),
        "LICENSE.txt": (folder / "LICENSE.txt").read_bytes(),
        "ATTRIBUTION.txt": ATTRIBUTION["ludb"].format(n=len(chosen)).encode(),
    }
    for row in chosen:
        for path in sorted((folder / "data").glob(f"{row['ID'].strip()}.*")):
            members[f"data/{path.name}"] = path.read_bytes()
    write_zip(out / "ludb-sample.zip", members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptbxl", type=Path, required=True, help="unpacked PTB-XL folder")
    parser.add_argument("--ludb", type=Path, required=True, help="unpacked LUDB folder")
    parser.add_argument("--out", type=Path, default=Path("platform/beatray/sample"), help="where the archives go")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    build_ptbxl(args.ptbxl, args.out)
    build_ludb(args.ludb, args.out)


if __name__ == "__main__":
    main()
