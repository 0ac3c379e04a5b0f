"""Checkpoints under fire: death in the middle of a write, flipped bits, a full disk."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from beatray.models.registry import build_encoder
from beatray.storage.store import Store
from beatray.track.journal import read_lines
from beatray.train import checkpoint as checkpoints
from beatray.train.checkpoint import Checkpoint
from counts import count

KIB_64 = 65536


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_encoder("tiny")


def snapshot(model: torch.nn.Module, step: int) -> Checkpoint:
    optimiser = torch.optim.AdamW(model.parameters())
    model.zero_grad()
    model(torch.ones(2, 12, 500)).sum().backward()
    optimiser.step()  # so that there are moments
    return checkpoints.snapshot(checkpoints.name_of(step), {"global_step": step}, model, optimiser)


def die_writing(run: Store, checkpoint: Checkpoint, after_bytes: int) -> int:
    """Write in a child that the kernel kills when a file grows beyond `after_bytes`; returns how the child ended."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; by default it kills on the spot
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, after_bytes))
        checkpoints.save(run, checkpoint)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_death_at_every_64_kib_leaves_the_newest_whole(model: torch.nn.Module, tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    first, second = snapshot(model, 1), snapshot(model, 2)
    checkpoints.save(run, first)
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoints" / first.name).iterdir())
    killed = 0
    for after_bytes in range(0, largest + KIB_64, KIB_64):
        status = die_writing(run, second, after_bytes)
        found = checkpoints.latest(run)
        assert found is not None
        if os.WIFSIGNALED(status):
            killed += 1
            assert found.name == first.name, after_bytes
            assert all(torch.equal(found.model[name], first.model[name]) for name in first.model)
        else:
            assert after_bytes >= largest and found.name == second.name
    assert killed >= largest // KIB_64
    Store(str(tmp_path)).clear_temporary("checkpoints")  # as the next start does before it writes
    checkpoints.save(run, second)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [first.name, second.name]
    print(f"killed {killed} times, every 64 KiB of {largest:,} bytes")


def test_any_flipped_bit_is_found_and_the_one_before_taken(model: torch.nn.Module, tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    for step in (1, 2):
        checkpoints.save(run, snapshot(model, step))
    newest = tmp_path / "checkpoints" / checkpoints.name_of(2)
    draw = random.Random(5)
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        for _ in range(count(8, 250)):
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(data))
            found = checkpoints.latest(run)
            assert found is not None and found.name == checkpoints.name_of(1), path.name
        path.write_bytes(whole)
    found = checkpoints.latest(run)
    assert found is not None and found.name == checkpoints.name_of(2)


TRAIN_ON_A_SMALL_DISK = """
import sys
import ray
from beatray.ray_session import RaySettings, session
from beatray.config import compose
from beatray.schema import build
from beatray.train.composed import pretrain_settings
from beatray.settings import PretrainSettings
from beatray.train.loop import train
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks

with session(RaySettings(cpus=2, object_store_mb=100)):
    train(prepare_run(pretrain_settings(sys.argv[1:])), Ranks())
"""


@pytest.mark.ray
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1) to mount a small disk of its own")
def test_a_full_disk(sample_corpus: str, tmp_path: Path) -> None:
    """A disk with room for two checkpoints and a half: the error says so; without `required` training goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    saved = tmp_path / "saved"
    overrides = [
        *(f"corpus={sample_corpus}", f"out={disk}", "run=full", "encoder=tiny", "train=small", "tracking.uri=null"),
        *("train.workers=1", "train.epochs=2", "train.batch_size=24", "train.checkpoint_every_steps=1"),
    ]
    attempt = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if attempt.returncode:
        pytest.skip("this machine does not let a user mount a disk of his own")

    def on_small_disk(*more: str) -> subprocess.CompletedProcess[str]:
        script = (
            f"mount -t tmpfs -o size=6500k tmpfs {disk} && {sys.executable} -c '{TRAIN_ON_A_SMALL_DISK}' "
            f'"$@"; code=$?; rm -rf {saved}; cp -r {disk}/full {saved}; exit $code'
        )
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", *overrides, *more],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    stopped = on_small_disk()
    assert stopped.returncode != 0
    assert "the disk is full" in stopped.stderr, stopped.stderr[-2000:]
    newest = checkpoints.latest(Store(str(saved)))
    assert newest is not None and 1 <= newest.state["global_step"] < 8
    if not count(0, 1):
        return  # half a minute more: the rest runs with BEATRAY_CHAOS=1
    went_on = on_small_disk("checkpoint.required=false")
    assert went_on.returncode == 0, went_on.stderr[-3000:]
    lines = read_lines(saved / "metrics.jsonl")
    assert len(lines) == 8 and lines[-1]["checkpoint_failures"] >= 3
    assert (saved / "encoder" / "encoder.json").is_file()
