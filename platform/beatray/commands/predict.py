"""`beatray predict model=PATH corpus=PATH|files=PATH out=NAME.csv|NAME.parquet|FOLDER`: a model over new recordings."""

from __future__ import annotations

from typing import Any

from beatray.commands.console import progress, say
from beatray.commands.predicted_page import page_lead, page_title, recordings_shown
from beatray.config import compose
from beatray.errors import SettingsError
from beatray.infer.attribution import need_captum
from beatray.infer.predict import predict, remove, there_already
from beatray.infer.predict_plan import PredictCommand, PredictPlan, PredictSettings, prepare_plan
from beatray.infer.stream import use_gpu
from beatray.ray_session import RaySettings, session
from beatray.report.prediction_page import prediction_page
from beatray.schema import as_dict, build


def settings_from(overrides: list[str]) -> PredictCommand:
    """The settings that the overrides of the command line mean."""
    return build(PredictCommand, content_of(overrides))


def content_of(overrides: list[str]) -> dict[str, Any]:
    """The same as plain content."""
    return compose("predict", overrides, kinds={"predict": PredictSettings})


def run(command: PredictCommand, show: int = 0) -> dict[str, Any]:
    """Predict and print a summary; returns the listing. `show`: a page of so many recordings."""
    if show < 0:
        raise SettingsError(f"--show {show}: give the number of recordings that the page shows")
    plan = prepare_plan(command)
    paths = plan.paths
    if show and plan.model.kind != "waves":
        need_captum()
    if not command.overwrite:
        there_already(plan)  # what must not be replaced is refused before anything starts
    what = "rows of the corpus" if "corpus" in plan.of else "recordings"
    say(f"predict {', '.join(plan.model.names)} of {plan.recordings:,} {what}, into {paths.store.where(paths.table)}")
    with session(RaySettings(**as_dict(command.cluster))), progress("predict", "recordings") as update:
        if command.overwrite:
            use_gpu(plan.settings, "predict")  # a run that cannot start leaves what is there
            remove(paths)
        done = predict(plan, lambda rows, total: update(rows, total, ""))
    if not done.computed:
        say("  nothing to do: all of them are answered already")
    elif done.kept:
        say(f"  {done.kept:,} of {done.kept + done.computed:,} parts were answered before and are kept")
    print_listing(plan, done.listing)
    if show:
        shown = recordings_shown(plan, show)
        page = prediction_page(page_title(plan), page_lead(plan), shown)
        paths.store.write(paths.page, page.encode())
        say(f"  page of {len(shown)} recordings: {paths.store.where(paths.page)}")
    return done.listing


def print_listing(plan: PredictPlan, listing: dict[str, Any]) -> None:
    """Counts and paths."""
    paths = plan.paths
    rows = f" in {listing['table']['rows']:,} rows" if plan.model.kind == "waves" else ""
    say(f"  {listing['recordings']:,} recordings ({listing['windows']:,} windows of up to 10 s){rows}")
    if listing["refused"]:
        say(f"  {listing['refused']:,} refused, with reasons: {paths.store.where(paths.refused)}")
    if listing["annotated"]:
        say(f"  {listing['annotated']:,} WFDB annotation files: {paths.store.where(paths.annotations)}")
