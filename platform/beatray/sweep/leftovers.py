"""Frees the CPUs and GPUs that a lost trial left reserved, or the next trial would wait for them for ever.

The ranks of a trial sit in a placement group that the controller of its Ray Train run has made. When the trial's
process is killed (out of memory, its node gone) the controller dies with it, and Ray keeps the group as long as the job
that the sweep is lives. Ray Train's own cleaner needs a dashboard, and gives up on a machine with two Rays; the head
node knows without either whose maker is dead.
"""

from __future__ import annotations

import ray
from ray._private.state import state  # the public table of placement groups does not say who made them
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

NO_ACTOR = b"\xff" * 12
"""How the id of the maker begins where that is a driver; those of Tune are of this kind."""


def free_leftovers() -> int:
    """Remove this job's placement groups whose maker, an actor, is dead; returns how many there were."""
    job = ray.get_runtime_context().get_job_id()
    groups = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    left = [
        ray.PlacementGroupID(group.placement_group_id)
        for group in groups
        if group.creator_actor_dead
        and not group.creator_actor_id.startswith(NO_ACTOR)
        and group.creator_job_id.hex() == job
        and not group.is_detached
        and group.state != PlacementGroupTableData.REMOVED
    ]
    for identity in left:
        remove_placement_group(PlacementGroup(identity))
    return len(left)
