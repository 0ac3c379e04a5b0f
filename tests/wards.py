"""A folder of recordings as a hospital has it, for tests of what reads files in place."""

from __future__ import annotations

import zipfile
from pathlib import Path

from beatray.ingest.plan import SAMPLE

EACH = 10


def ward_folder(folder: Path) -> Path:
    """20 recordings of LUDB and PTB-XL, two of them torn, and a text beside them, written into `folder`."""
    for source in ("ludb", "ptbxl"):
        with zipfile.ZipFile(SAMPLE / f"{source}-sample.zip") as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".hea"))[:EACH]:
                for suffix in (".hea", ".dat"):
                    file = folder / source / Path(name).with_suffix(suffix).name
                    file.parent.mkdir(exist_ok=True)
                    file.write_bytes(archive.read(name.removesuffix(".hea") + suffix))
    for file in sorted(folder.rglob("*.dat"))[3:6:2]:
        file.write_bytes(file.read_bytes()[:-1001])
    (folder / "notes.txt").write_text("nothing to read")
    return folder
