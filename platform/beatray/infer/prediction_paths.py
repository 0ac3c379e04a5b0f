"""Where predictions lie, by the setting `out`: a table by name, with all that belongs to it beside it under that name.

    predictions.parquet      or .csv: the outputs of the model, a row for each recording, or for each wave
    predictions.refused.csv  recordings that could not be read: source, recording, reason, detail
    predictions.json         the commit, written last: which models and recordings, counts, the table's SHA-256
    predictions.annotations/ of a model of waves: a WFDB annotation file for each recording
    predictions.parts/       of an unfinished run

`out=day.csv` calls them day.csv, day.refused.csv, ...; `out=FOLDER` puts predictions.parquet into it. Contract: names
only, nothing is read or written here; SettingsError for a name whose format is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from beatray.errors import SettingsError
from beatray.storage.store import Store

FORMATS = ("parquet", "csv")
OTHER_TABLES = (".tsv", ".txt", ".json", ".xlsx", ".xls", ".gz", ".zip", ".feather", ".html", ".pq")
STEM = "predictions"


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Names of what belongs to one table, in its store."""

    store: Store
    stem: str
    form: str

    @property
    def table(self) -> str:
        return f"{self.stem}.{self.form}"

    @property
    def refused(self) -> str:
        return f"{self.stem}.refused.csv"

    @property
    def listing(self) -> str:
        return f"{self.stem}.json"

    @property
    def annotations(self) -> str:
        return f"{self.stem}.annotations"

    @property
    def parts(self) -> str:
        return f"{self.stem}.parts"

    @property
    def page(self) -> str:
        return f"{self.stem}.html"


def output_paths(out: str, form: str = "auto") -> OutputPaths:
    """What `out=` and `format=` mean; `out` is absolute or a URI."""
    if form not in ("auto", *FORMATS):
        raise SettingsError(f"format={form} is not one of auto, {', '.join(FORMATS)}")
    path, mark, options = out.partition("?") if "://" in out else (out, "", "")
    name = PurePosixPath(path.replace("\\", "/").rstrip("/")).name
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in OTHER_TABLES:
        raise SettingsError(f"out={out}: predictions are written as .parquet or .csv, or into a folder")
    if suffix.removeprefix(".") not in FORMATS:
        return OutputPaths(Store(out), STEM, "parquet" if form == "auto" else form)
    if form not in ("auto", suffix.removeprefix(".")):
        raise SettingsError(f"out={out} and format={form} name two formats: leave one of them out")
    folder = path.rstrip("/")[: -len(name)].rstrip("/") or "/"
    return OutputPaths(Store(f"{folder}{mark}{options}"), name[: -len(suffix)], suffix.removeprefix("."))
