"""Predictions for a corpus or for files, with Ray Data: readers read, workers hold the models, the driver writes.

Parts (a shard, a slice of files) are kept one by one as they are answered (prediction_parts.py); when all are there,
they become the table, the list of refusals and, of waves, the annotations; the listing, written last, makes it a whole,
and the parts go. Contract: the files' bytes depend on the models and the recordings alone, not on workers, readers or
interruptions; a recording is in the table or in the list of refusals, never in neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from beatray.errors import CorpusError, SettingsError
from beatray.infer import prediction_parts as parts_at_rest
from beatray.infer.annotations import write_annotations
from beatray.infer.files import digest_of
from beatray.infer.predict_plan import PredictPlan
from beatray.infer.prediction_parts import Answered
from beatray.infer.prediction_paths import OutputPaths
from beatray.infer.prediction_table import prediction_table, recording_starts, table_bytes
from beatray.infer.predictor import Predictor, Work
from beatray.infer.stream import answers, use_gpu
from beatray.infer.windows import Part
from beatray.infer.worker import unpacked

FORMAT = "beatray-predictions"
UNLISTED = "(not listed)"
REFUSED = pa.schema([(name, pa.string()) for name in ("source", "item", "reason", "detail")])

OnProgress = Callable[[int, int], None]
"""(recordings done, recordings in all)"""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What came of it: the listing, how many parts were answered now, and how many were there before."""

    listing: dict[str, Any]
    computed: int
    kept: int


def predict(plan: PredictPlan, on_progress: OnProgress = lambda done, total: None) -> Predicted:
    """Answer what is not answered yet, and commit. Needs an open Ray session.

    Raises SettingsError for a plan that cannot run, CorpusError for a damaged corpus or where nothing can be read.
    """
    paths, inputs = plan.paths, _digest_of_inputs(plan)
    listing = there_already(plan)
    if listing is not None and listing["inputs"] == inputs and _is_whole(plan, listing):
        paths.store.delete_folder(paths.parts)  # of a run that was killed when all but this was done
        return Predicted(listing, 0, len(plan.parts))
    there = {part.name for part in plan.parts if _read(plan, part) is not None}
    waiting = [part for part in plan.parts if part.name not in there]
    if waiting:
        gpu = use_gpu(plan.settings, "predict")
        paths.store.clear_temporary(shared=True)  # other tables, and much else, may be written beside this one
        paths.store.clear_temporary(paths.parts)
        done = plan.recordings - sum(part.rows for part in waiting)
        on_progress(done, plan.recordings)
        for part in _answered(plan, waiting, gpu):
            done += part.rows
            on_progress(done, plan.recordings)
    return Predicted(_finish(plan, inputs), len(waiting), len(there))


def there_already(plan: PredictPlan) -> dict[str, Any] | None:
    """The listing of the table that is there; None where there is none.

    SettingsError where it is damaged, or what is there was made otherwise, or not by beatray.
    """
    listing = read_listing(plan.paths)
    if listing is not None:
        _refuse_other(plan, listing)
    _refuse_own(plan.paths, listing)
    return listing


def read_listing(paths: OutputPaths) -> dict[str, Any] | None:
    """The listing of a finished table; None where there is none. SettingsError for one that is damaged."""
    try:
        content: dict[str, Any] = json.loads(paths.store.read(paths.listing))
        claimed = content.pop("sha256")
        if content.get("format") != FORMAT or digest_of(content) != claimed:
            raise ValueError("its SHA-256 differs")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise SettingsError(
            f"{paths.store.where(paths.listing)} is no list of predictions, or damaged ({error}): choose another out=, "
            "or set overwrite=true"
        ) from error
    return content


def remove(paths: OutputPaths) -> None:
    """All that belongs to a table; nothing else in its folder."""
    for name in (paths.listing, paths.table, paths.refused, paths.page, paths.annotations, paths.parts):
        paths.store.delete(name)
    for folder in (paths.annotations, paths.parts):
        paths.store.delete_folder(folder)


def _refuse_other(plan: PredictPlan, listing: dict[str, Any]) -> None:
    differing = [key for key in plan.made_by if listing["made_by"].get(key) != plan.made_by[key]]
    differing += ["recordings"] if listing["of"] != plan.of else []
    differing += ["format"] if listing.get("form", plan.paths.form) != plan.paths.form else []
    if differing:
        raise SettingsError(
            f"{plan.paths.store.where(plan.paths.table)} was made otherwise (different: {', '.join(differing)}). "
            "Choose another out=, or set overwrite=true"
        )


def _refuse_own(paths: OutputPaths, listing: dict[str, Any] | None) -> None:
    """Raise SettingsError where a name that belongs to the table is that of something of the user's."""
    if parts_at_rest.any_part(paths.store, paths.parts):
        return  # of an interrupted run, which began only where nothing of the user's was
    names = (paths.table, paths.refused, paths.page) if listing is None else ()
    found = [name for name in names if paths.store.size(name) is not None]
    if (listing is None or not listing["annotations"]) and paths.store.exists(paths.annotations):
        found.append(f"{paths.annotations}/")
    if paths.store.names(paths.parts):
        found.append(f"{paths.parts}/")
    if found:
        raise SettingsError(
            f"{paths.store.where(found[0])} is there, and {paths.listing} does not show that beatray made it: choose "
            "another out=, or set overwrite=true, which replaces it"
        )


def _digest_of_inputs(plan: PredictPlan) -> str:
    """Equal for the same recordings, those refused unread included."""
    inputs: dict[str, Any] = {"parts": [[part.name, part.stamp] for part in plan.parts]}
    if plan.unlisted:
        inputs["unlisted"] = [[other.reason.value, other.detail] for other in plan.unlisted]
    return digest_of(inputs)


def _is_whole(plan: PredictPlan, listing: dict[str, Any]) -> bool:
    """Whether all that the plan asks for is there as listed."""
    store, paths = plan.paths.store, plan.paths
    if listing["annotations"] != plan.annotated or store.size(paths.table) != listing["table"]["bytes"]:
        return False
    annotated = store.child(paths.annotations).walk() if store.exists(paths.annotations) else {}
    return store.size(paths.refused) is not None and len(annotated) >= listing["annotated"]


def _read(plan: PredictPlan, part: Part) -> Answered | None:
    return parts_at_rest.read_part(plan.paths.store, plan.paths.parts, plan.key, part)


def _answered(plan: PredictPlan, waiting: Sequence[Part], gpu: bool) -> Iterator[Part]:
    """The waiting parts, each once its answers are kept."""
    s = plan.settings
    work = Work(plan.models, plan.sha256, s.threads_per_worker, gpu)
    units = [unit for part in waiting for unit in part.units]
    rows = answers(units, Predictor, work, s, gpu)
    for part in waiting:
        own = list(islice(rows, len(part.units)))
        refused = [refusal for row in own for refusal in json.loads(row["refused"])]
        found = Answered(pa.concat_tables([unpacked(row["answers"]) for row in own]), refused)
        parts_at_rest.write_part(plan.paths.store, plan.paths.parts, plan.key, part, found)
        yield part


def _finish(plan: PredictPlan, inputs: str) -> dict[str, Any]:
    """The files of the module text, out of the parts."""
    paths = plan.paths
    found = [_read(plan, part) for part in plan.parts]
    whole = parts_at_rest.joined([part for part in found if part is not None])
    refused = [{**row, "item": row.pop("record_id")} for row in map(dict, whole.refused)]
    refused += [
        {"source": plan.of["source"], "item": UNLISTED, "reason": other.reason.value, "detail": other.detail}
        for other in plan.unlisted
    ]
    if not len(whole.answers):
        examples = "; ".join(f"{row['item']}: {row['reason']}: {row['detail']}" for row in refused[:3])
        raise CorpusError(f"no recording could be read; of {len(refused)} refused, for example {examples}")
    table = prediction_table(whole.answers, plan.model)
    data = table_bytes(table, paths.form)
    if paths.store.size(paths.page) is not None:
        paths.store.delete(paths.page)  # it shows the answers of the table before
    paths.store.write(paths.table, data)
    paths.store.write(paths.refused, table_bytes(pa.Table.from_pylist(refused, schema=REFUSED), "csv"))
    paths.store.delete_folder(paths.annotations)
    annotated = write_annotations(paths.store, paths.annotations, table) if plan.annotated else 0
    content = {
        "format": FORMAT,
        "made_by": plan.made_by,
        "of": plan.of,
        "form": paths.form,
        "inputs": inputs,
        "recordings": len(recording_starts(whole.answers)[0]),
        "windows": len(whole.answers),
        "refused": len(refused),
        "annotations": plan.annotated,
        "annotated": annotated,
        "table": {"rows": len(table), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
    }
    text = json.dumps({**content, "sha256": digest_of(content)}, indent=1, sort_keys=True, allow_nan=False)
    paths.store.write(paths.listing, text.encode())
    paths.store.delete_folder(paths.parts)
    return content
