"""The table of checks: by subject, in the order in which a user should fix what they find."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from beatray.doctor import machine, ray_state, storage, tracking, versions
from beatray.doctor.finding import Finding, fail
from beatray.settings import PretrainSettings
from beatray.track.secrets import without_secrets

CHECKS: dict[str, Callable[[PretrainSettings], list[Finding]]] = {
    "versions": lambda settings: versions.check(),
    "machine": machine.check,
    "ray": lambda settings: ray_state.check(cluster_address(settings)),
    "storage": lambda settings: storage.check(settings, cluster_address(settings) is not None),
    "tracking": tracking.check,
}


def cluster_address(settings: PretrainSettings) -> str | None:
    """The cluster that a run with these settings would join; None if it would start a Ray of its own."""
    return settings.cluster.address or os.environ.get("RAY_ADDRESS") or None


def examine(settings: PretrainSettings) -> Iterator[tuple[str, Finding]]:
    """Make every check; one that breaks is itself a finding, and the others are made all the same."""
    for subject, check in CHECKS.items():
        try:
            findings = check(settings)
        except Exception as error:
            what = without_secrets(f"this could not be checked: {type(error).__name__}: {error}")
            findings = [fail(what, "fix what the message names; if it names nothing, report it as a fault of beatray")]
        for finding in findings:
            yield subject, finding
