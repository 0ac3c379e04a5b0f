"""A network as programs that need no beatray: torch.export (.pt2) and ONNX, verified equal before they are handed out.

Both take `x_mv` (batch, 12, samples) float32, prepared millivolts at 500 Hz. Those of an encoder give `embedding`
(batch, D), its own pooling over all samples, and `feature_map` (batch, C, positions); a fine-tuned model gives its
answers (model_folder.py). Number of recordings and of samples are
free where the exporter can express them; otherwise the number of samples is that of a corpus window, or at most that.

Some layers are written in another way for this, with the same values: torch's tracer ties `max_pool1d` and `avg_pool1d`
with `ceil_mode` to the length of the example (found with torch 2.13), so they become `max_pool2d` over one row, and a
mean of pairs whose last sample is repeated. A layer of a network knows its own form: its method
`exported_form(n_samples)` gives the module to put in its place, equal for inputs of up to n_samples samples.

Contract: `to_programs` and `programs_of` return the bytes of both, or raise ExportError: where a library is missing
(with the line that installs it), where an exporter fails, or where an output differs from the network's by more than
`TOLERANCE` on any of the given recordings, with the difference. Sources: docs of torch.export and torch.onnx (dynamo
exporter, opset 18).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from beatray.models.encoder import Encoder
from beatray.record import WINDOW_SAMPLES

TOLERANCE = 1e-4
"""An output may differ by this much, plus as much of its own size."""

INPUT, OUTPUTS = "x_mv", ("embedding", "feature_map")
OPSET = 18
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'beatray[export]'"

Run = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


class ExportError(ValueError):
    """The encoder cannot be exported, or the export is not equal to it; the message gives the cause."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The files, whether the number of samples is free, up to how many, and the largest difference of each file."""

    pt2: bytes
    onnx: bytes | None
    any_length: bool
    difference: dict[str, float]
    longest: int | None = None
    """Samples above which a program refuses its input; None where there is no such bound."""


class _Both(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_mv: Tensor) -> tuple[Tensor, Tensor]:
        fmap = self.encoder.forward_features(x_mv)
        return self.encoder.pool(fmap), fmap


class _MaxPool(nn.Module):
    def __init__(self, old: nn.MaxPool1d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = _int(old.kernel_size), _int(old.stride), _int(old.padding)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(
            x[:, :, None], (1, self.kernel), stride=(1, self.stride), padding=(0, self.padding)
        )
        return pooled[:, :, 0]


class _PairMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool1d(torch.cat([x, x[..., -1:]], dim=-1), 2, 2)


def to_programs(encoder: Encoder, x_mv: NDArray[np.float32], *, with_onnx: bool = True) -> Programs:
    """An encoder exported and verified: x_mv (n, 12, WINDOW_SAMPLES) are real recordings, at least 3."""
    return programs_of(_Both(encoder), OUTPUTS, x_mv, "encoder", with_onnx=with_onnx)


def programs_of(
    network: nn.Module, outputs: tuple[str, ...], x_mv: NDArray[np.float32], what: str, *, with_onnx: bool = True
) -> Programs:
    """Any network of prepared millivolts that gives a tuple of `outputs`; `what` it is called in messages."""
    if with_onnx:
        check_libraries()
    reference = network.eval()
    traced = copy.deepcopy(reference)
    _replace_layers(traced)
    program, any_length = _export(traced, torch.from_numpy(x_mv[:2].copy()), what)
    proof = _Proof(reference, outputs, what)
    cases = _cases(x_mv, any_length=any_length)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    difference = {"model.pt2": proof.of("model.pt2", lambda x: _arrays(loaded, x), cases)}
    onnx = None
    if with_onnx:
        onnx, run = _to_onnx(program, outputs)
        difference["model.onnx"] = proof.of("model.onnx", run, cases)
    longest = None if any_length and _takes(loaded, WINDOW_SAMPLES + 1) else WINDOW_SAMPLES
    return Programs(buffer.getvalue(), onnx, any_length, difference, longest)


def check_libraries() -> None:
    """ExportError with the line that installs what ONNX needs."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: {INSTALL}, or leave it out with --no-onnx")


def _export(traced: nn.Module, example: Tensor, what: str) -> tuple[Any, bool]:
    """The exported program, and whether it takes any number of samples."""
    refused = ""
    for free in ({0: Dim.AUTO, 2: Dim.AUTO}, {0: Dim.AUTO}):
        try:
            with torch.no_grad(), _quiet():
                program = torch.export.export(traced, (example,), dynamic_shapes=(free,))
                probes = [example[:1], *([example[..., :2501]] if 2 in free else [])]
                for probe in probes:
                    program.module()(probe)
        except Exception as error:  # the exporter has no error of its own
            refused = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names the files of this machine
        return program, 2 in free
    raise ExportError(f"torch.export cannot take this {what}: {refused}")


def _takes(program: Callable[[Tensor], Any], samples: int) -> bool:
    with torch.no_grad():
        try:
            program(torch.zeros(1, 12, samples))
        except (AssertionError, RuntimeError):  # a guard on the shape: which of the two depends on the version of torch
            return False
    return True


def _to_onnx(program: Any, outputs: tuple[str, ...]) -> tuple[bytes, Run]:
    import onnx
    import onnxruntime

    with _quiet(), tempfile.TemporaryDirectory(prefix="beatray-export-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
            if made is None:
                raise ExportError("torch.onnx gave no program")
            made.save(str(path), external_data=False)
            onnx.checker.check_model(str(path), full_check=True)
            data = path.read_bytes()
            session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception as error:  # several libraries, each with errors of its own
            raise ExportError(f"ONNX: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return data, lambda x: list(session.run(list(outputs), {INPUT: x}))


@dataclass(frozen=True, slots=True)
class _Proof:
    """Holds programs against the network that they are made of."""

    reference: nn.Module
    outputs: tuple[str, ...]
    what: str

    def of(self, name: str, run: Run, cases: list[NDArray[np.float32]]) -> float:
        """The largest absolute difference over all cases and outputs; ExportError where one is too large."""
        largest = 0.0
        for x in cases:
            expected = _arrays(self.reference, x)
            try:
                found = run(x)
            except Exception as error:
                raise ExportError(f"{name} fails on {x.shape}: {str(error).splitlines()[0]}") from error
            for output, a, b in zip(self.outputs, found, expected, strict=True):
                if a.shape != b.shape:
                    raise ExportError(f"{name}: {output} of {x.shape} has shape {a.shape} instead of {b.shape}")
                apart = np.abs(a - b)
                worst = float(apart.max())
                if not (apart <= TOLERANCE * (1.0 + np.abs(b))).all():
                    raise ExportError(
                        f"{name} is not equal to the {self.what}: {output} of {x.shape} differs by up to {worst:.3g}, "
                        f"where {TOLERANCE:g} of (1 + its size) is allowed"
                    )
                largest = max(largest, worst)
        return largest


def _cases(x_mv: NDArray[np.float32], *, any_length: bool) -> list[NDArray[np.float32]]:
    """All recordings, one of them, and parts of odd and even lengths."""
    cases = [x_mv, x_mv[:1]]
    if any_length:
        cases += [x_mv[:3, :, : WINDOW_SAMPLES // 2], x_mv[1:3, :, :4999], x_mv[2:3, :, 1000:2024]]
    return [np.ascontiguousarray(x) for x in cases]


def _arrays(module: nn.Module, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        return [output.numpy() for output in module(torch.from_numpy(x))]


def _replace_layers(module: nn.Module) -> None:
    """Put the form for exporters in the place of every layer below `module` that has one."""
    for name, child in module.named_children():
        exported_form = getattr(child, "exported_form", None)
        if callable(exported_form):
            setattr(module, name, exported_form(WINDOW_SAMPLES))
        elif isinstance(child, nn.MaxPool1d) and not child.ceil_mode:
            setattr(module, name, _MaxPool(child))
        elif isinstance(child, nn.AvgPool1d) and child.ceil_mode and _int(child.stride) == _int(child.kernel_size) == 2:
            setattr(module, name, _PairMean())
        else:
            _replace_layers(child)


def _int(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on optional libraries."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
