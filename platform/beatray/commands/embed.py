"""`beatray embed encoder=PATH corpus=PATH out=PATH level=recording|beat|both`: a vector for every recording or beat."""

from __future__ import annotations

from beatray.commands.console import progress, say
from beatray.config import compose
from beatray.infer.files import LEVELS, LISTING, STAGING, Listing
from beatray.infer.plan import EmbedCommand, prepare_plan
from beatray.infer.run import embed
from beatray.infer.stream import use_gpu
from beatray.ray_session import RaySettings, session
from beatray.schema import as_dict, build
from beatray.storage.store import Store

SHORT = {"encoder": "encoder_path"}
"""In this command `encoder` names weights, not an architecture."""


def settings_from(overrides: list[str]) -> EmbedCommand:
    """The settings that the overrides of the command line mean."""
    return build(EmbedCommand, compose("embed", overrides, extra=SHORT))


def run(command: EmbedCommand) -> Listing:
    """Embed and print a summary."""
    plan = prepare_plan(command)
    manifest = plan.corpus.manifest
    say(f"embed {manifest.rows:,} recordings ({' and '.join(plan.levels)} level), into {plan.out.where()}")
    cluster = RaySettings(**as_dict(command.cluster))
    with session(cluster), progress("embed", "recordings") as update:
        if command.overwrite:
            use_gpu(plan.settings, "embed")  # a run that cannot start leaves what is there
            remove_embeddings(plan.out)
        done = embed(plan, lambda rows, total: update(rows, total, ""))
    if done.computed == 0:
        say("  nothing to do: all of them are embedded already")
    elif done.kept:
        say(f"  {done.kept:,} of {done.kept + done.computed:,} shards were embedded before and are kept")
    for level, width in done.listing.widths.items():
        say(f"  {level}: {done.listing.rows(level):,} vectors of {width} numbers")
    say(f'  read them: beatray.read_embeddings("{plan.out.location}", "{plan.levels[0]}").vectors')
    return done.listing


def remove_embeddings(store: Store) -> None:
    """Delete what this command writes in a folder, and nothing else."""
    store.delete(LISTING)  # first: what is left of an interrupted removal is no whole set of embeddings
    for name in (*LEVELS, STAGING):
        store.delete_folder(name)
