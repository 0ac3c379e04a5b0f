"""`beatray ingest explain PATH [MEMBER]`: what the reader finds in one file, check by check, and what becomes of it.

Contract: prints one line per check that is passed, in order, with the value seen, and then how many rows would be kept,
and for each recording that is refused the reason and what to do; of a file that is no recording by itself, which source
reads it. Exit code 1 where one is refused or the file is none, else 0. Writes nothing, needs no corpus, and shows
nothing about the person but age and sex.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beatray.commands.console import say
from beatray.dsp import analyse
from beatray.dsp.features import RECORD_FEATURES
from beatray.dsp.quality import Flag
from beatray.errors import SettingsError
from beatray.ingest.canonical import WindowFlag
from beatray.ingest.each_record import each_record, refusal_of
from beatray.ingest.formats.checks import listening
from beatray.ingest.formats.registry import FORMATS, HEAD_BYTES, recognise, unsupported
from beatray.ingest.long_record import windows_of
from beatray.ingest.read_by import read_by
from beatray.ingest.tree import ARCHIVE_SUFFIXES, Tree, open_tree
from beatray.record import LEADS, Reason, Record, RecordError, Window

REMEDIES = {
    Reason.HEADER: "the file is damaged or not what its name indicates: export or download it again",
    Reason.MISSING_FILE: "put the missing file beside this one under the name given above",
    Reason.UNSAFE_PATH: "put plain files into one folder, without links, and with plain names",
    Reason.HIDDEN: "rename it without the dot in front, if it is a recording",
    Reason.ABSURD_SIZE: "the file is damaged, or no resting ECG: look at its header, or cut a long recording up",
    Reason.FORMAT: "export the recording in another way: uncompressed, or in another of the formats",
    Reason.TRUNCATED: "the file was cut: copy or export it again",
    Reason.TRAILING_BYTES: "the file is longer than its header states: copy or export it again",
    Reason.CHECKSUM: "the samples were changed after they were written: restore the file from a copy",
    Reason.BAD_GAIN: "without a calibration no voltage is known: correct the header if you know it",
    Reason.BAD_UNITS: "without a unit of voltage no voltage is known: correct the header if you know it",
    Reason.BAD_RATE: "correct the sampling rate in the header if you know it",
    Reason.LEADS_MISSING: "I, II and a chest lead are needed, recorded together and under their usual names",
    Reason.DUPLICATE_LEADS: "rename one of the two leads, if you know which is which",
    Reason.TOO_SHORT: "at least 5 s of signal are needed",
    Reason.NOT_FINITE: "too much of the signal is marked as invalid: nothing can be done here",
    Reason.FLAT: "no electrode was connected, or the gain is wrong by far: look at the header",
    Reason.AMPLITUDE: "the gain or its unit is wrong by far: correct the header if you know the right one",
    Reason.ANNOTATION: "restore the annotation file from a copy",
    Reason.METADATA: "correct the source's table, or rename the file",
    Reason.READER_FAULT: "this is a fault of beatray: please report it, with the file if it may be shared",
    Reason.CORRUPT_ARCHIVE: "copy or download the archive again",
}
"""What a user can do about a refusal."""


def run(args: list[str]) -> int:
    """Explain one file; the exit code is 0 if it would be kept."""
    tree, path = _file(args)
    say(f"{tree.location.rstrip('/')}/{path}")
    try:
        return _explain(tree, path)
    except RecordError as error:
        return _refused(error.reason, error.detail)
    except OSError:
        raise  # the disk's fault, not the file's
    except Exception as error:
        return _refused(Reason.READER_FAULT, type(error).__name__)


def _refused(reason: Reason, detail: str) -> int:
    _line("refused", reason.value, detail)
    say(f"refused: {reason.value}. What to do: {REMEDIES[reason]}")
    return 1


def _file(args: list[str]) -> tuple[Tree, str]:
    """The tree and the path in it. Raises SettingsError."""
    if not 1 <= len(args) <= 2 or not all(args):
        raise SettingsError("use beatray ingest explain FILE, or ARCHIVE MEMBER, or FOLDER MEMBER")
    path = Path(args[0]).expanduser().absolute()
    if not path.exists():
        raise SettingsError(f"{path}: no such file or folder")
    if path.is_file() and not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        if len(args) == 2:
            raise SettingsError(f"{path} is neither a folder nor an archive: it has no members")
        return open_tree(str(path.parent)), path.name
    tree = open_tree(str(path))
    if len(args) == 2:
        return tree, args[1]
    try:
        names = tree.names()
    except RecordError as error:
        raise SettingsError(error.detail) from error
    if len(names) != 1:
        example = next((name for name in names if name.lower().endswith(_suffixes())), "MEMBER")
        raise SettingsError(f"{path} holds {len(names)} files; name one: beatray ingest explain {args[0]} {example}")
    return tree, names[0]


def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for entry in FORMATS.values() for suffix in entry.suffixes)


def _explain(tree: Tree, path: str) -> int:
    head = tree.head(path, HEAD_BYTES)
    found, by = recognise(head, path)
    if found is None:
        if reader := read_by(tree, path):
            say(f"not read by itself: {reader}")
            return 1
        known = f"it looks like {unsupported(head)}, which is not read" if unsupported(head) else "of no known format"
        raise RecordError(Reason.FORMAT, f"{known}; read are {', '.join(FORMATS)}")
    _line("ok", "format", f"{found.name}, recognised by its {by}")
    rows = refused = 0
    with listening(lambda what, seen: _line("ok", what, seen)):
        for number, record in each_record(lambda: found.read(tree, path)):
            if number > 1:
                say(f"recording {number} of the file")
            try:
                if isinstance(record, RecordError):
                    raise record
                windows = windows_of(record)
            except Exception as error:
                why = refusal_of(error)
                refused += _refused(why.reason, why.detail)
                continue
            _person(record)
            rows += len(windows)
            _signal(record, windows)
            _measured(record, windows)
    if rows:
        say(f"would be kept as {rows} row{'s' if rows != 1 else ''}")
    return 1 if refused else 0


def _line(state: str, what: str, seen: str) -> None:
    say(f"  {state:8s}{what:20s} {seen}")


def _person(record: Record) -> None:
    _line("ok", "age and sex", f"{'not given' if record.age is None else f'{record.age:g} years'}, {record.sex or '?'}")
    if record.patient_id is not None:
        _line("ok", "patient id", "there (not shown); stored hashed with --id-key-file, dropped without")


def _signal(record: Record, windows: list[Window]) -> None:
    present = [lead for lead in range(12) if record.lead_mask >> lead & 1]
    spans = np.ptp(record.signal_mv[present], axis=1)
    _line(
        "ok",
        "amplitudes",
        f"leads span {spans.min():.2f} mV ({LEADS[present[int(spans.argmin())]]}) to "
        f"{spans.max():.2f} mV ({LEADS[present[int(spans.argmax())]]})",
    )
    _line("ok", "notes", ", ".join(record.notes) or "none")
    lengths = ", ".join(f"{window.n_samples / 500:g} s" for window in windows[:6]) + (" ..." if windows[6:] else "")
    flags = WindowFlag(0)
    for window in windows:
        flags |= WindowFlag(window.flags)
    names = ", ".join(str(flag.name).lower() for flag in WindowFlag if flag in flags)
    _line("ok", "windows", f"{len(windows)} ({lengths}); {names or 'nothing changed'}")


def _measured(record: Record, windows: list[Window]) -> None:
    """Quality flags, heartbeats and measurements as an ingest would store them, beside the device's own."""
    found = analyse.analyse(
        np.stack([window.signal_uv for window in windows]),
        np.array([window.n_samples for window in windows], np.int32),
        np.array([window.lead_mask for window in windows], np.int16),
    )
    for number, window in enumerate(windows):
        which = f" of window {number}" if len(windows) > 1 else ""
        flags = Flag(int(found.flags[number]))
        _line("ok", f"quality{which}", ", ".join(str(f.name).lower() for f in Flag if f in flags) or "no flags")
        beats = len(found.r_peaks[number])
        _line("ok", f"R-peaks{which}", f"{beats} in {window.n_samples / 500:g} s")
    measured = dict(zip(RECORD_FEATURES, found.record_features[0], strict=True))
    parts = [f"rate {6 * measured['heart_rate_per_10s']:.0f}/min"]
    parts += [f"{name.upper()} {1e3 * measured[f'{name}_s']:.0f} ms" for name in ("pr", "qrs", "qt")]
    _line("ok", "measured here", ", ".join(part for part in parts if "nan" not in part) or "nothing")
    if record.measured:
        _line("ok", "measured by device", ", ".join(f"{name} {value:g}" for name, value in record.measured.items()))
