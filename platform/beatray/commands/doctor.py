"""`beatray doctor [--multi-node] [--json] [overrides]`: would such a run work here, and what stands in its way.

Takes the overrides of `beatray pretrain`; after `finetune` those of `beatray finetune`. Exit code 1 if any
finding is a `fail`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain

from beatray.commands.console import say
from beatray.doctor.checks import cluster_address, examine
from beatray.doctor.finding import Finding, Level, fail
from beatray.doctor.ray_state import check_cluster_address
from beatray.finetune.settings import finetune_settings
from beatray.schema import as_dict
from beatray.settings import PretrainSettings
from beatray.track.secrets import without_secrets
from beatray.train.composed import pretrain_settings

Found = tuple[str, Finding]
"""(subject, finding)"""

COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def run(overrides: list[str], *, multi_node: bool, as_json: bool, seconds: float) -> int:
    """Examine, report, and return the exit code."""
    of_finetune = overrides[:1] == ["finetune"]
    settings = finetune_settings(overrides[1:]) if of_finetune else pretrain_settings(overrides)
    found = examine(settings)
    if multi_node:
        found = chain(found, _cluster(settings, seconds))
    if as_json:
        listed = list(found)
        say(json.dumps([{"subject": subject, **as_dict(finding)} for subject, finding in listed], indent=1))
    elif sys.stdout.isatty():
        listed = list(found)
        _table(listed)
    else:
        listed = list(_lines(found))
    counts = {level: sum(finding.level is level for _, finding in listed) for level in Level}
    if not as_json:
        say(f"{counts[Level.OK]} ok, {counts[Level.WARN]} warnings, {counts[Level.FAIL]} failures")
    return 1 if counts[Level.FAIL] else 0


def _cluster(settings: PretrainSettings, seconds: float) -> Iterator[Found]:
    if any(finding.level is Level.FAIL for finding in check_cluster_address(cluster_address(settings))):
        return  # reported already; Ray would wait for minutes
    from beatray.doctor.collective import check_cluster
    from beatray.ray_session import RaySettings, session

    try:
        with session(RaySettings(**as_dict(settings.cluster))):
            for finding in check_cluster(settings.out, settings.corpus.path or None, seconds):
                yield "cluster", finding
    except Exception as error:
        what = without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
        remedy = "check cluster.address, RAY_ADDRESS and RAY_AUTH_MODE, and that the cluster is up: ray status"
        yield "cluster", fail(what, remedy)


def _lines(found: Iterable[Found]) -> Iterator[Found]:
    for subject, finding in found:
        say(f"{finding.level:4s}  {subject:8s}  {finding.what}")
        if finding.remedy:
            say(f"                -> {finding.remedy}")
        yield subject, finding


def _table(listed: list[Found]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), show_header=False)
    for subject, finding in listed:
        colour = COLOURS[finding.level]
        remedy = f"\n[dim]→ {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(f"[{colour}]{finding.level}[/]", subject, f"{escape(finding.what)}{remedy}")
    Console().print(table)
