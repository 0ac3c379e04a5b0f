"""What beatray uses of Ray that Ray does not document: all of it is in this file, with what happens where it is absent.

Each function states its purpose, and what is done without the internal part. Seen in Ray 2.58, 2.59 and 2.60.
Contract: an internal part that has gone never ends a run: what it gave is given in a public way, or left out.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.util.placement_group import PlacementGroup

log = logging.getLogger(__name__)

REST_S = 0.02
NO_ACTOR = b"\xff" * 12
"""How the id of a placement group's maker begins where that is a driver; those of Tune are of this kind."""

_warned: set[str] = set()


def _part(module: str, name: str) -> Any:
    """An internal part of Ray; None where this Ray does not have it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning("%s (Ray %s)", message, ray.__version__)


def submission_id() -> str | None:
    """The id under which this process was submitted, as `ray job list` shows it; None outside a job.

    Ray's runtime context knows only the id of the driver. The variable is the one in which Ray hands the settings of a
    job to its driver. Without it a job is not known as one: its MLflow run is not tagged.
    """
    try:
        settings = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
        return str(settings["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return None


def add_job_metadata(job: str, values: dict[str, str]) -> bool:
    """Add to the metadata of a submitted job, as `ray job list` shows it; True if they stand there.

    Ray lets a client set metadata only when it submits. The job's record lies in Ray's key-value store, under a key
    that is not public. Needs an open Ray session. Otherwise there is a warning, and the metadata stay as they are.
    """
    try:
        namespace = _part("ray._private.ray_constants", "KV_NAMESPACE_JOB")
        storage = _part("ray.dashboard.modules.job.common", "JobInfoStorageClient")
        store = importlib.import_module("ray.experimental.internal_kv")
        key = storage.JOB_DATA_KEY.format(job_id=job)
        record = json.loads(store._internal_kv_get(key, namespace=namespace))
        record["metadata"] = {**(record.get("metadata") or {}), **values}
        store._internal_kv_put(key, json.dumps(record), overwrite=True, namespace=namespace)
    except Exception as error:  # a convenience: whatever Ray has changed must not end the job
        _warn_once(f"the metadata of job {job} cannot carry {values}: {error}")
        return False
    return True


def groups_of_dead_actors(job: str) -> list[PlacementGroup]:
    """The placement groups of a job (hexadecimal id) whose maker, an actor, is dead.

    The public table of placement groups does not name who made them; the head node does, and whether it is dead.
    Otherwise none is found, with a warning: what a lost trial had reserved stays so until the sweep ends.
    """
    state = _part("ray._private.state", "state")
    data = _part("ray.core.generated.gcs_pb2", "PlacementGroupTableData")
    try:
        groups = [data.FromString(raw) for raw in state._connect_and_get_accessor().get_placement_group_table()]
        return [
            PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
            for group in groups
            if group.creator_actor_dead
            and not group.creator_actor_id.startswith(NO_ACTOR)
            and group.creator_job_id.hex() == job
            and not group.is_detached
            and group.state != data.REMOVED
        ]
    except (AttributeError, TypeError) as error:
        _warn_once(f"what a lost trial had reserved is not free again before the sweep ends: {error}")
        return []


_Callback = _part("ray.data._internal.execution.execution_callback", "ExecutionCallback")


class RestWhileAhead(_Callback or object):  # type: ignore[misc]  # ray ships no types
    """Lets Ray Data's scheduling loop rest while finished blocks wait to be taken.

    With nothing to start and nothing to wait for, the loop turns without a pause, and holds the interpreter's lock for
    half of the time that training needs it.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data after every turn of the loop."""
        consumer_idling = getattr(executor, "_consumer_idling", None)
        if consumer_idling is not None and not consumer_idling():
            time.sleep(REST_S)


def rest_while_ahead(context: Any) -> bool:
    """Have the executions of a `ray.data.DataContext` rest while they are ahead; True if they will.

    Otherwise the loop turns without a pause: slower, with the same rows.
    """
    known = _part("ray.data._internal.execution.execution_callback", "ExecutionCallback") is not None
    if known and hasattr(context, "custom_execution_callback_classes"):
        context.custom_execution_callback_classes = [RestWhileAhead]
        return True
    return False


def blocks_of(data: Any) -> Iterator[pa.Table]:
    """The blocks of a `ray.data.Dataset` as its tasks made them, in order, in shared memory: let each go at once.

    Not `iter_batches`, which holds several more blocks on their way through its threads; it is what is left without
    `iter_internal_ref_bundles`. Whatever is bound to a name here stays in the object store while the next block is
    awaited.
    """
    bundles = getattr(data, "iter_internal_ref_bundles", None)
    if bundles is None:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        return
    for bundle in bundles():
        references = list(bundle.block_refs)
        del bundle
        while references:
            yield ray.get(references.pop(0))
