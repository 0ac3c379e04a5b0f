"""Which source reads a file that is no recording by itself: MATLAB, HDF5, arrays, the signal file of a WFDB header.

Contract: `read_by(tree, path)` is a sentence on what the file is and what to do with it, empty where nothing
here reads it. It looks at names of variables and at the files beside, never at a person's data.
"""

from __future__ import annotations

import struct

import numpy as np

from beatray.ingest.formats.hdf5 import open_hdf5
from beatray.ingest.formats.mat4 import HEADER_BYTES, MAX_NAME_BYTES, PRECISION_OF_FORMAT
from beatray.ingest.formats.mat5 import Value, read_mat5
from beatray.ingest.sources import arrays_plan, code15, cpsc
from beatray.ingest.spelling import as_spelt
from beatray.ingest.tree import Tree
from beatray.record import RecordError

MAT5, MAT73, HDF5, NPY = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"
ARRAYS = (".npy", ".npz", ".parquet")
SIGNALS = (".dat", ".mat", ".xyz")
SHOWN = 5
FOLDER = "(FOLDER: where it lies)"
AS_ARRAYS = (
    f"save the signals as .npy and ingest them with `beatray ingest arrays=FOLDER` and a {arrays_plan.FILE_NAME} there"
)


def read_by(tree: Tree, path: str) -> str:
    """See the module's contract."""
    head = tree.head(path, HEADER_BYTES + MAX_NAME_BYTES)
    header = as_spelt(tree, f"{path.rpartition('.')[0]}.hea")
    wfdb = _is_mat4(head) or (path.lower().endswith(SIGNALS) and not head.startswith((MAT5, MAT73, HDF5)))
    if wfdb and header in tree:
        return f"it is the signal file of a WFDB record: give its header, {header}, instead"
    if _is_mat4(head):
        return (
            "it is a MATLAB level 4 matrix, the signal file of a WFDB record as in the PhysioNet/CinC Challenges: its "
            f"header {header}, which gives leads, gain and rate, is missing beside it"
        )
    if wfdb and path.lower().endswith((".dat", ".xyz")):
        return f"if it is the signal file of a WFDB record, its header {header} is missing beside it"
    if head.startswith(MAT5):
        return _of_mat5(tree, path)
    if head.startswith(HDF5):
        return _of_hdf5(tree, path)
    if head.startswith(MAT73):
        return f"it is a MATLAB 7.3 file: save it again with -v7, or {AS_ARRAYS}"
    if head.startswith(NPY) or path.lower().endswith(ARRAYS):
        return (
            f"arrays are read by `beatray ingest arrays=FOLDER` {FOLDER}, with a {arrays_plan.FILE_NAME} there that "
            "gives rate, unit and leads"
        )
    return ""


def _is_mat4(head: bytes) -> bool:
    """A little-endian level 4 matrix of the kinds that WFDB writes, with a name that ends in a zero."""
    if len(head) < HEADER_BYTES:
        return False
    kind, _, _, imaginary, name_bytes = struct.unpack_from("<5i", head)
    end = HEADER_BYTES + name_bytes
    known = kind in PRECISION_OF_FORMAT.values() and imaginary == 0 and 1 < name_bytes <= MAX_NAME_BYTES
    return known and head[end - 1 : end] == b"\0" and head[HEADER_BYTES : end - 1].isalnum()


def _of_mat5(tree: Tree, path: str) -> str:
    try:
        variables = read_mat5(tree.read(path, cpsc.MAX_MAT_BYTES))
    except RecordError as error:
        return f"it is a MATLAB level 5 file that cannot be read ({error.detail})"
    if isinstance(ecg := variables.get("ECG"), dict) and isinstance(ecg.get("data"), np.ndarray):
        return f"a struct ECG with data, as in CPSC 2018, is read by `beatray ingest cpsc=FOLDER` {FOLDER}"
    names = ", ".join(_shown(name, value) for name, value in list(variables.items())[:SHOWN])
    return f"it is a MATLAB file with {names}, of no source that is read here: {AS_ARRAYS}"


def _shown(name: str, value: Value) -> str:
    if isinstance(value, np.ndarray):
        return f"{name} ({' x '.join(map(str, value.shape))})"
    return f"{name} (struct of {', '.join(list(value)[:SHOWN])})" if isinstance(value, dict) else f"{name} (text)"


def _of_hdf5(tree: Tree, path: str) -> str:
    with tree.open_random(path) as file:
        try:
            with open_hdf5(file) as hdf5:
                names = sorted(map(str, hdf5))
        except RecordError as error:
            return f"it is an HDF5 file that cannot be read ({error.detail})"
    if {"tracings", "exam_id"} <= set(names):
        how = "tracings and exam_id, as in CODE-15%, are read by `beatray ingest code15=FOLDER`"
        return f"{how} {FOLDER}, with {code15.INDEX} there"
    return (
        f"it is an HDF5 file with {', '.join(names[:SHOWN]) or 'nothing'}, of no source that is read here: {AS_ARRAYS}"
    )
