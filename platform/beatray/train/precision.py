"""In which arithmetic a run multiplies: `train.precision=auto` is bf16 where every rank's processor has it, else fp32.

A processor that has no bf16 emulates it, slower than single precision: x86 needs AVX512-BF16 or AMX-BF16, ARM BF16, a
GPU of NVIDIA compute capability 8.0. Contract: all ranks agree; a run that continues keeps the arithmetic that it began
in, which its checkpoints hold, whatever the processor is then.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

from beatray.train.ranks import Ranks

Precision = Literal["fp32", "bf16", "fp64"]
CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What /proc/cpuinfo calls it, on x86 and on ARM."""


def agreed(asked: Literal["auto"] | Precision, ranks: Ranks) -> Precision:
    """`asked`, or what `auto` means for these ranks; every rank must call it."""
    if asked != "auto":
        return asked
    return "bf16" if ranks.all_true(has_bf16(ranks.device)) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(CPU_FLAGS & cpu_flags())


@cache
def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """The features of the processor, as Linux lists them; none where it does not."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return frozenset()
    found = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(found[0]) if found else frozenset()
