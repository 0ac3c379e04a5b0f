"""This machine against the plan: CPUs and devices for the workers, memory, shared memory, open files, temporary folder.

Contract: reads /proc, /sys and limits, starts nothing; torch is imported only to ask what devices it can use. Where a
cluster is joined, its own resources are checked by `--multi-node`; here only what concerns this machine.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beatray.doctor.finding import Finding, fail, ok, warn
from beatray.errors import SettingsError
from beatray.settings import PretrainSettings
from beatray.train.resources import check_resources

GIB = 2**30
RAY_GIB = 1.2
"""Ray itself without a dashboard, and the driver."""
WORKER_GIB = 0.9
"""A worker with torch and its readers, without the cache of the corpus."""
SOCKET_ROOM = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead")  # the longest one
LONGEST_SOCKET = 107
"""The kernel's limit on the path of a Unix socket."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device as torch sees it."""

    name: str
    memory_gib: float
    capability: tuple[int, int]


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that this process may use: its affinity, within the quota of its container."""
    have = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return have if quota == "max" else min(have, int(quota) / int(period))
    except (OSError, ValueError):
        return have


def usable_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """Bytes that are still available, and what sets the bound: the machine, or the limit of the container."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        left = int(limit) - _held(cgroup) if limit != "max" else free
    except (OSError, ValueError):
        left = free
    return (left, "the container's limit") if left < free else (free, "the machine")


def _held(cgroup: Path) -> int:
    """Bytes that a container holds, without those of files that the kernel would give back."""
    held = int((cgroup / "memory.current").read_text())
    try:
        lines = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return held
    return max(0, held - int(lines.get("inactive_file", 0)))


def check_plan(settings: PretrainSettings, cpus: float, gpus: int) -> Finding:
    """Workers and readers fit; the arithmetic is that of the start of a run."""
    slots = float(settings.cluster.cpus or max(int(cpus), 2))
    try:
        check_resources(settings, {"CPU": slots, "GPU": float(gpus)})
    except SettingsError as error:
        return fail(f"the plan does not fit: {error}", "change the settings it names, or set cluster.cpus=")
    if slots > cpus:
        return warn(
            f"train.workers={settings.train.least_workers} fits {slots:g} Ray slots, but they share {cpus:g} CPUs",
            "expect it to be slow, or lower train.workers and cluster.cpus",
        )
    return ok(f"train.workers={settings.train.least_workers} and their readers fit {slots:g} CPUs")


def check_memory(free_bytes: int, who: str, workers: int, object_store_mb: int) -> Finding:
    """Memory for Ray, its object store and the workers."""
    free, need = free_bytes / GIB, RAY_GIB + object_store_mb / 1024 + workers * WORKER_GIB
    what = f"{free:.1f} GiB of memory free ({who}); train.workers={workers} needs about {need:.1f} without caches"
    if free < need / 2:
        return fail(what, "free memory, lower train.workers or cluster.object_store_mb, or take a larger machine")
    if free < need:
        return warn(what, "lower train.workers, train.cache_mb or cluster.object_store_mb")
    return ok(what)


def check_shared_memory(size: int | None, object_store_mb: int) -> Finding:
    """Ray's object store fits into /dev/shm; otherwise Ray keeps it on disk."""
    if size is None:
        return warn("there is no /dev/shm: Ray keeps its object store on disk, slowly", "mount a tmpfs at /dev/shm")
    what = f"/dev/shm has {size / GIB:.2f} GiB free for an object store of {object_store_mb / 1024:.2f} GiB"
    if size < object_store_mb * 2**20:
        grow = "docker run --shm-size=, an emptyDir of medium Memory at /dev/shm on Kubernetes"
        return warn(f"{what}: Ray would keep it on disk, slowly", f"{grow}, or lower cluster.object_store_mb")
    return ok(what)


def check_open_files(soft: int, hard: int) -> Finding:
    """Every worker, reader and connection of Ray holds files open."""
    what = (
        f"open-file limit {soft:,} (at most {hard:,})"
        if hard != resource.RLIM_INFINITY
        else f"open-file limit {soft:,}"
    )
    if soft < 1024:
        return fail(what, "ulimit -n 65536, or LimitNOFILE= of the service, before Ray is started")
    if soft < 4096:
        return warn(f"{what}: enough for a laptop, not for a head node", "ulimit -n 65536 before Ray is started")
    return ok(what)


def check_temporary(folder: Path, free: float) -> list[Finding]:
    """Ray's folder: its sockets have room in their names, and its disk is not full; `free` is a share of the disk."""
    findings = []
    if len(str(folder)) + SOCKET_ROOM > LONGEST_SOCKET:
        what = f"the temporary folder {folder} has too long a name for Ray's sockets"
        findings.append(
            fail(what, f"export RAY_TMPDIR= to a folder of at most {LONGEST_SOCKET - SOCKET_ROOM} characters")
        )
    what = f"{100 * free:.0f} % of the disk of {folder} is free for Ray's logs and spilled objects"
    if free < 0.05:
        findings.append(
            fail(f"{what}; from 95 % full on Ray stops storing objects", "free space, or export RAY_TMPDIR=")
        )
    elif free < 0.1:
        findings.append(warn(what, "free space, or export RAY_TMPDIR="))
    else:
        findings.append(ok(what))
    return findings


def check_devices(
    settings: PretrainSettings, gpus: Sequence[Gpu], driver: Sequence[str], built_for: str | None
) -> list[Finding]:
    """What torch can use, against what the driver shows and the settings ask for.

    `driver` are the GPUs that the NVIDIA driver lists; `built_for` is the CUDA version of torch, None for a CPU build.
    """
    train = settings.train
    if not gpus:
        if driver:
            why = "torch is a CPU build" if built_for is None else f"torch for CUDA {built_for} cannot use the driver"
            remedy = "install the CUDA build of torch that the driver supports (nvidia-smi names its CUDA version)"
            return [fail(f"{len(driver)} GPUs ({driver[0]}), but {why}", remedy)]
        if train.device == "cuda":
            return [fail("train.device=cuda, but there is no GPU", "set train.device=cpu, or use a machine with a GPU")]
        return [ok("no GPU: training on CPUs")]
    findings = [
        ok(f"GPU {number}: {gpu.name}, {gpu.memory_gib:.0f} GiB, {'bf16' if gpu.capability >= (8, 0) else 'no bf16'}")
        for number, gpu in enumerate(gpus)
    ]
    if train.precision == "bf16" and any(gpu.capability < (8, 0) for gpu in gpus):
        what = "train.precision=bf16, but a GPU has no bf16 (it needs compute capability 8.0)"
        findings.append(warn(what, "set train.precision=fp32: bf16 is emulated there, slowly"))
    return findings


def gpus_of_torch() -> tuple[list[Gpu], str | None]:
    """(devices, CUDA version that torch was built for)."""
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        gpus.append(Gpu(about.name, about.total_memory / GIB, (about.major, about.minor)))
    return gpus, torch.version.cuda


def gpus_of_driver() -> list[str]:
    """Name, memory and driver version of each GPU, as nvidia-smi lists them."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.splitlines() if line.strip()]


def temporary_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where Ray makes its `ray` folder."""
    return Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp")


def check(settings: PretrainSettings) -> list[Finding]:
    """All checks of this file, on this machine."""
    try:
        gpus, built_for = gpus_of_torch()
        findings = check_devices(settings, gpus, gpus_of_driver(), built_for)
    except ImportError as error:
        gpus, findings = [], [fail(f"torch cannot be imported: {error}", "pip install 'torch>=2.6,<2.14'")]
    cpus, (memory, who) = usable_cpus(), usable_memory()
    findings.append(ok(f"{cpus:g} CPUs"))
    joins = settings.cluster.address or os.environ.get("RAY_ADDRESS")
    if joins:
        findings.append(ok(f"workers run on the cluster at {joins}; --multi-node looks at its nodes"))
    else:
        store_mb = settings.cluster.object_store_mb
        findings.append(check_plan(settings, cpus, len(gpus)))
        findings.append(check_memory(memory, who, settings.train.most_workers, store_mb))
        shm = Path("/dev/shm")
        findings.append(check_shared_memory(shutil.disk_usage(shm).free if shm.is_dir() else None, store_mb))
    findings.append(check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)))
    folder = temporary_folder()
    if folder.is_dir():
        usage = shutil.disk_usage(folder)
        return [*findings, *check_temporary(folder, usage.free / usage.total)]
    return [*findings, fail(f"the temporary folder {folder} does not exist", "make it, or export RAY_TMPDIR=/tmp")]
