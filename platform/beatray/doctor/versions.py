"""Python and packages against the bounds that the package declares, and combinations that are known to break.

The bounds are those of the installed package's own metadata; in a source tree that is not installed, of its
pyproject.toml. Contract: nothing is imported that is being checked.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from beatray.doctor.finding import Finding, fail, ok, warn

VersionOf = Callable[[str], str | None]
"""The installed version of a package, None if it is not installed."""


@dataclass(frozen=True, slots=True)
class KnownBad:
    """Versions that each fit their own bounds but not each other; an empty `other` needs only the first."""

    package: str
    versions: str
    why: str
    remedy: str
    other: str = ""
    other_versions: str = ""


KNOWN_BAD = (
    KnownBad(
        "mlflow",
        ">=3.18",
        "its client and its skinny part differ",
        "pip install 'mlflow<3.18'",
        "mlflow-skinny",
        "<3.18",
    ),
    KnownBad("pandas", ">=3", "neurokit2 needs pandas below 3", "pip install 'pandas<3'", "neurokit2", "<0.3"),
    KnownBad(
        "pyarrow", ">=26", "mlflow below 3.18 needs pyarrow below 26", "pip install 'pyarrow<26'", "mlflow", "<3.18"
    ),
    KnownBad(
        "setuptools", ">=82", "neurokit2 needs setuptools below 82", "pip install 'setuptools<82'", "neurokit2", "<0.3"
    ),
    KnownBad(
        "mosaicml-streaming",
        ">=0",
        "installing it replaces torch by a CUDA build and numpy by an older one",
        "keep it in an environment of its own: pip uninstall mosaicml-streaming",
    ),
    KnownBad(
        "torch",
        "<2.6",
        "its weights_only loading can be made to run code (CVE-2025-32434)",
        "pip install 'torch>=2.6,<2.14'",
    ),
    KnownBad(
        "pyarrow",
        "<14.0.1",
        "reading a Parquet file can run code (CVE-2023-47248)",
        "pip install 'pyarrow>=20,<26'",
    ),
)


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def declared() -> tuple[str, list[str]]:
    """(bounds of Python, requirements) as the package declares them."""
    try:
        about = metadata("beatray")
        return str(about["Requires-Python"]), list(about.get_all("Requires-Dist") or [])
    except PackageNotFoundError:
        pass
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    return project["requires-python"], project["dependencies"]


def check_python(bounds: str, running: str = "{}.{}.{}".format(*sys.version_info)) -> Finding:
    """The running Python is one that the package supports."""
    if SpecifierSet(bounds).contains(running, prereleases=True):
        return ok(f"Python {running}")
    return fail(f"Python {running}; needed {bounds}", "make the virtual environment with Python 3.11 or 3.12")


def check_packages(requirements: Iterable[str], version_of: VersionOf = installed) -> list[Finding]:
    """Every required package is there in a version within its bounds; beatray's extras are not required."""
    findings, fine = [], 0
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version_of(requirement.name)
        remedy = f"pip install '{requirement.name}{_extras(requirement)}{requirement.specifier}'"
        if found is None:
            findings.append(fail(f"{requirement.name} is not installed", remedy))
        elif not requirement.specifier.contains(found, prereleases=True):
            findings.append(fail(f"{requirement.name} {found}; needed {requirement.specifier}", remedy))
        else:
            fine += 1
    return [*findings, ok(f"{fine} packages within their bounds")]


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def check_combinations(version_of: VersionOf = installed, known: Iterable[KnownBad] = KNOWN_BAD) -> list[Finding]:
    """None of the combinations that are known to break is installed."""
    findings = []
    for bad in known:
        found = version_of(bad.package)
        other = version_of(bad.other) if bad.other else None
        if found is None or (bad.other and other is None) or not _within(found, bad.versions):
            continue
        if other is None or _within(other, bad.other_versions):
            beside = f" beside {bad.other} {other}" if bad.other else ""
            findings.append(fail(f"{bad.package} {found}{beside}: {bad.why}", bad.remedy))
    return findings


def _within(found: str, bounds: str) -> bool:
    return SpecifierSet(bounds).contains(Version(found), prereleases=True)


def check_ray_parts(has: Callable[[str], object] = find_spec) -> list[Finding]:
    """Ray came with its dashboard: jobs and the early end of sweep trials need it."""
    missing = [name for name in ("aiohttp_cors", "opencensus") if not has(name)]
    if not missing:
        return []
    what = f"ray was installed without its dashboard ({', '.join(missing)} missing): jobs and sweeps need it"
    return [warn(what, "pip install 'ray[default]>=2.58,<2.61'")]


def check() -> list[Finding]:
    """All checks of this file, on this installation."""
    bounds, requirements = declared()
    return [check_python(bounds), *check_packages(requirements), *check_combinations(), *check_ray_parts()]
