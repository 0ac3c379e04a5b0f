"""`beatray track sync RUN_FOLDER ...`: send to MLflow what it does not have of a run yet, without training."""

from __future__ import annotations

from beatray.commands.console import say
from beatray.errors import SettingsError
from beatray.storage.store import Store
from beatray.track.memory import MEMORY, RUNNING, Memory
from beatray.track.setup import resume
from beatray.track.tracker import Tracker
from beatray.train.run_folder import METRICS, SETTINGS, RunFolder

PATIENCE_S = 5.0


def sync(folders: list[str]) -> int:
    """Send the rest of each run; exit code 1 if any server did not take all of it."""
    whole = True
    for path in folders:
        if Store(path).size(MEMORY) is None:
            raise SettingsError(f"{path} holds no {MEMORY}: it is not the folder of a tracked run")
        folder = RunFolder.open(Store(path))
        folder.pull(MEMORY, METRICS, SETTINGS)
        for uri in Memory(folder.scratch).records:
            tracker = Tracker(resume(folder.scratch, uri))
            done = tracker.finish(None, PATIENCE_S)
            whole = whole and done
            say(f"  {path}: {_outcome(done, uri, tracker)}")
        folder.push(MEMORY)
    return 0 if whole else 1


def _outcome(done: bool, uri: str, tracker: Tracker) -> str:
    if not done:
        return f"not all of it could be sent to {uri}; the same command tries again"
    if tracker.known_status == RUNNING:
        return f"all sent to {uri}, run {tracker.run_id}; it stays open there, since it has not ended here"
    return f"all sent to {uri}, run {tracker.run_id}, {tracker.known_status}"
