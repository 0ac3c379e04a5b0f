"""`train.precision=auto`: bf16 where the processor has it, the same on all ranks, and the same when a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from beatray.models.encoder_folder import describe_encoder
from beatray.train import precision
from beatray.train.ranks import Ranks
from pretraining import losses, train_here


class OneWithout(Ranks):
    """A rank of two, of which the other's processor has no bf16."""

    def all_true(self, condition: bool) -> bool:
        return False


def test_the_processor_lists_what_it_can(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    for line, has in (
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_bf16", True),
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_vnni", False),  # nothing that only begins alike
        ("Features\t: fp asimd sve bf16", True),
        ("Features\t: fp asimd sve", False),
    ):
        file.write_text(f"processor\t: 0\nmodel name\t: bf16\n{line}\n")
        precision.cpu_flags.cache_clear()
        assert bool(precision.CPU_FLAGS & precision.cpu_flags(str(file))) == has, line
    assert precision.cpu_flags(str(tmp_path / "none")) == frozenset()


def test_auto_is_what_all_ranks_can_and_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert precision.agreed("auto", Ranks()) == "bf16"
    assert precision.agreed("auto", OneWithout(world=2)) == "fp32"
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert precision.agreed("auto", Ranks()) == "fp32"
    assert precision.agreed("bf16", Ranks()) == "bf16" and precision.agreed("fp64", Ranks()) == "fp64"


def test_a_run_goes_on_in_the_arithmetic_it_began_in(
    sample_corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("train.precision=auto", "train.epochs=1", "train.batch_size=64")
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    train_here(sample_corpus, tmp_path, "whole", *overrides)
    train_here(sample_corpus, tmp_path, "moved", *overrides, "train.stop_after_steps=2")
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)  # it goes on on another machine
    train_here(sample_corpus, tmp_path, "moved", *overrides)
    train_here(sample_corpus, tmp_path, "single", *overrides)
    assert losses(tmp_path, "moved") == losses(tmp_path, "whole") != losses(tmp_path, "single")
    assert describe_encoder(str(tmp_path / "moved"))["precision"] == "bf16"
    assert describe_encoder(str(tmp_path / "single"))["precision"] == "fp32"


def test_this_processor_is_asked() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    precision.cpu_flags.cache_clear()
    assert precision.has_bf16(torch.device("cpu")) == any(f" {flag}" in flags for flag in precision.CPU_FLAGS)
