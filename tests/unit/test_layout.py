"""Maps channels last, forced on a CPU: the numbers of the default layout, and no copy on the way through a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from beatray.export.folder import real_recordings
from beatray.models import layout
from beatray.models.batch_norm import GlobalBatchNorm1d, _input_gradient, _input_gradient_of_cuda, _NormaliseGlobally
from beatray.models.encoder import Encoder, Stage
from beatray.models.encoder_folder import load_encoder
from beatray.models.layout import AvgPool1d, Conv1d, MaxPool1d, as_filter, as_image, channels_last_on
from beatray.models.registry import build_encoder, encoder_classes
from beatray.models.segmentation import ConvDecoder, UNetDecoder
from beatray.models.signal_decoder import SignalDecoder

OLD_ENCODERS = Path(__file__).parents[1] / "data" / "encoders-0.1"

torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other

SMALL: dict[str, list[dict[str, Any]]] = {
    "tiny": [{}, {"norm": "group"}],
    "xresnet1d50": [{"widths": [8, 8, 8, 8]}],
    "xresnet1d101": [{"widths": [8, 8, 8, 8], "out_stride": 32}],
    "s4d": [{"width": 16, "layers": 2, "state": 4}, {"width": 8, "layers": 1, "stride": 8, "direction": "both"}],
    "lstm": [{"width": 16, "layers": 1}],
    "wav2vec": [{"conv_channels": 16, "width": 32, "depth": 1, "heads": 2, "hidden": 64, "position_groups": 4}],
    "ts2vec": [{"width": 8, "out_width": 16, "blocks": 4}],
    "temporal_net": [{"stem": 4, "widths": [4, 8]}, {"stem": 4, "widths": [4, 8], "block_stride": 2, "streams": 2}],
    "vit": [{"width": 32, "depth": 1}],
}
"""Settings with which a network is quick; every network of the registry is tested, with its defaults if not here."""

every_network = pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name in encoder_classes() for settings in SMALL.get(name, [{}])]
)

LAYERS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "conv": lambda: (Conv1d(6, 8, 5, 2, 2), nn.Conv1d(6, 8, 5, 2, 2)),
    "dilated": lambda: (Conv1d(6, 4, 3, padding=4, dilation=4, bias=False), nn.Conv1d(6, 4, 3, 1, 4, 4, bias=False)),
    "grouped": lambda: (Conv1d(6, 6, 3, 1, 1, groups=3), nn.Conv1d(6, 6, 3, 1, 1, groups=3)),
    "pointwise": lambda: (Conv1d(6, 8, 1, 3), nn.Conv1d(6, 8, 1, 3)),
    "circular": lambda: (Conv1d(6, 6, 3, padding=1, padding_mode="circular"),) * 2,
    "same": lambda: (Conv1d(6, 6, 3, padding="same"), nn.Conv1d(6, 6, 3, padding="same")),
    "max_pool": lambda: (MaxPool1d(3, 2, padding=1), nn.MaxPool1d(3, 2, padding=1)),
    "max_pool_dilated": lambda: (MaxPool1d(2, 1, 1, 2), nn.MaxPool1d(2, 1, 1, 2)),
    "avg_pool": lambda: (AvgPool1d(2, ceil_mode=True), nn.AvgPool1d(2, ceil_mode=True)),
    "avg_pool_padded": lambda: (AvgPool1d(3, 2, 1, count_include_pad=False), nn.AvgPool1d(3, 2, 1, False, False)),
    "norm": lambda: (GlobalBatchNorm1d(6), nn.BatchNorm1d(6)),
}
PRECISION = pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])


def is_channels_last(x: Tensor) -> bool:
    """By the strides of all axes, also where one of them has a single entry."""
    _, channels, cells = x.shape
    return x.stride() == (channels * cells, 1, channels)


def laid_out(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def apart(a: Tensor, b: Tensor) -> float:
    """The distance of a from b over the size of b."""
    return 0.0 if torch.equal(a, b) else float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def recordings(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Four of the bundled recordings, two of them cut short: (4, 12, 1500) mV and their samples."""
    return torch.from_numpy(real_recordings())[2:6, :, :1500].to(dtype), torch.tensor([1500, 1500, 900, 400])


def built(name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Encoder:
    """Without dropout, whose draws fall elsewhere in another layout, and with every branch of every block alive."""
    torch.manual_seed(2)
    encoder = build_encoder(name, **settings).to(dtype)
    for module in encoder.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d)):
            module.p = 0.0
        if isinstance(module, GlobalBatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return encoder


def all_there_is(module: nn.Module, run: Callable[[nn.Module, Tensor], list[Tensor]], x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients of the input and of all weights, and statistics."""
    x = x.clone().requires_grad_()
    outputs = run(module, x)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    torch.autograd.backward(outputs, upstream)
    assert x.grad is not None
    found = {f"output/{number}": y.detach() for number, y in enumerate(outputs)} | {"gradient/input": x.grad}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[f"gradient/{name}"] = parameter.grad
    return found | {f"statistics/{name}": value.clone() for name, value in module.named_buffers()}


def once(module: nn.Module, x: Tensor) -> list[Tensor]:
    return [module(x)]


class Copies(TorchDispatchMode):
    """The shapes of all maps of `records` rows that are copied."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.records, self.shapes = records, list[tuple[int, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copies = func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        if copies and out.dim() >= 3 and out.shape[0] == self.records:
            self.shapes.append(tuple(out.shape))
        return out


class Inputs:
    """What layers are given."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def keep(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.kept.append(given[0])


@PRECISION
@pytest.mark.parametrize("shape", [(4, 6, 23), (3, 6, 4), (2, 6, 1), (0, 6, 9)])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_torch(name: str, shape: tuple[int, int, int], dtype: torch.dtype, close: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    if name == "norm" and x.numel() == 0:
        pytest.skip("torch's refuses an empty batch; test_batch_norm.py has it")

    def made() -> list[nn.Module]:
        torch.manual_seed(0)
        channels_last, plain = LAYERS[name]()
        plain.load_state_dict(channels_last.state_dict())  # the same names and shapes, or this raises
        return [channels_last.to(dtype), plain.to(dtype)]

    expected = all_there_is(made()[1], once, x)
    with channels_last_on("cpu"):
        for given in (x, laid_out(x)):
            found = all_there_is(made()[0], once, given)
            assert sorted(found) == sorted(expected)
            for key, value in expected.items():
                assert found[key].shape == value.shape and found[key].dtype == value.dtype
                assert apart(found[key], value) <= close, key
            if name not in ("circular", "same") and x.numel():
                assert is_channels_last(found["output/0"]) or shape[2] == 1


@PRECISION
def test_functions_are_those_of_torch(dtype: torch.dtype, close: float) -> None:
    x, beyond = torch.randn(3, 5, 17, dtype=dtype), (torch.arange(17) > torch.tensor([[16], [9], [2]]))[:, None]
    for channels_last, plain in (
        (lambda v: layout.cat([v, 2 * v], 1), lambda v: torch.cat([v, 2 * v], 1)),
        (lambda v: layout.cat([v, v[..., :1]], -1), lambda v: torch.cat([v, v[..., :1]], -1)),
        (lambda v: layout.fill(v, beyond, 0.5), lambda v: v.masked_fill(beyond, 0.5)),
        (lambda v: layout.pad(v, 2, 1), lambda v: functional.pad(v, (2, 1))),
        (
            lambda v: layout.interpolate(v, 33),
            lambda v: functional.interpolate(v, size=33, mode="linear", align_corners=True),
        ),
    ):
        expected = all_there_is(nn.Module(), lambda _, v, f=plain: [f(v)], x)
        assert torch.equal(channels_last(x), expected["output/0"])
        with channels_last_on("cpu"):
            found = all_there_is(nn.Module(), lambda _, v, f=channels_last: [f(v)], laid_out(x))
        assert is_channels_last(found["output/0"])
        assert all(apart(found[key], value) <= close for key, value in expected.items())


def test_on_a_cpu_nothing_is_laid_out() -> None:
    x = torch.randn(2, 6, 20)
    for make in LAYERS.values():
        channels_last, plain = make()
        plain.load_state_dict(channels_last.state_dict())
        assert torch.equal(channels_last(x), plain(x)) and channels_last(x).is_contiguous()
    with channels_last_on("cpu"):
        with channels_last_on("cpu"):
            pass
        assert is_channels_last(Conv1d(6, 8, 3)(x))
    assert Conv1d(6, 8, 3)(x).is_contiguous()


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 5, 1), (1, 5, 7), (3, 1, 7), (3, 1, 1), (0, 5, 7)])
def test_a_map_that_is_laid_out_is_seen_and_not_copied(shape: tuple[int, int, int]) -> None:
    x = laid_out(torch.randn(shape))
    image = as_image(x)
    assert image.data_ptr() == x.data_ptr() and torch.equal(image[:, :, 0], x)
    assert torch.equal(as_image(x.contiguous())[:, :, 0], x)
    if shape[1] == 1 or min(shape[0], shape[2]) > 1:
        expected = (shape[1] * shape[2], 1, shape[1] * shape[2], shape[1])
        assert as_image(x.contiguous()).stride() == expected
    halves = torch.randn(6, *shape[1:])[::2]
    assert torch.equal(as_image(halves)[:, :, 0], halves)


@pytest.mark.parametrize("shape", [(8, 4, 1), (8, 1, 5), (8, 4, 5), (8, 1, 1)])
def test_a_gradient_channels_last_reaches_the_weight_in_its_own_strides(shape: tuple[int, int, int]) -> None:
    """As cuDNN gives it; DistributedDataParallel compares all strides, those of axes of one entry too."""
    weight = nn.Parameter(torch.randn(shape))
    outputs, inputs, kernel = shape
    strides = (inputs * kernel, 1, inputs * kernel, inputs)
    upstream = torch.randn(shape).unsqueeze(2)
    as_filter(weight).backward(torch.empty_strided(upstream.shape, strides).copy_(upstream))
    assert as_filter(weight).shape == (outputs, inputs, 1, kernel)
    assert weight.grad is not None and weight.grad.stride() == weight.stride()
    assert torch.equal(weight.grad, upstream[:, :, 0])


@every_network
def test_every_network_gives_what_it_gives_by_default(name: str, settings: dict[str, Any]) -> None:
    """Maps, embedding, all gradients and statistics: in float64, where no ReLU changes sides by rounding.

    float32 by its outputs: torch's CPU kernel for the statistics of a norm channels last adds value by value, 10^4 of
    them, and a network of 101 layers passes that on.
    """
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        x_mv, n_samples = recordings(dtype)

        def run(encoder: nn.Module, x: Tensor, n_samples: Tensor = n_samples) -> list[Tensor]:
            assert isinstance(encoder, Encoder)
            maps = encoder.forward_stages(x, n_samples)
            return [*maps, encoder.pool(maps[-1], n_samples)]

        results = []
        for context in (nullcontext(), channels_last_on("cpu")):
            with context:
                encoder = built(name, settings, dtype)
                results.append(all_there_is(encoder, run, x_mv))
        expected, found = results
        assert sorted(found) == sorted(expected)
        for key, value in expected.items():
            if dtype == torch.float64 or not key.startswith("gradient"):
                assert apart(found[key], value) <= close, (key, dtype)


@every_network
def test_names_and_shapes_are_those_of_torchs_layers(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings)
    layers = {key: module for key, module in encoder.named_modules() if isinstance(module, nn.Conv1d)}
    assert all(isinstance(module, Conv1d) for module in layers.values())
    for key, module in layers.items():
        bias = module.bias is not None
        plain = nn.Conv1d(
            module.in_channels, module.out_channels, module.kernel_size[0], groups=module.groups, bias=bias
        )
        shapes = {name: value.shape for name, value in plain.state_dict().items()}
        held = {n: v.shape for n, v in encoder.state_dict().items() if n.rpartition(".")[0] == key}
        assert held == {f"{key}.{name}": shape for name, shape in shapes.items()}
    assert all(value.is_contiguous() for value in encoder.state_dict().values())


@pytest.mark.parametrize("name", ["tiny", "xresnet1d18"])
def test_encoders_of_version_0_1_load_and_give_the_same(name: str) -> None:
    expected = torch.tensor(json.loads((OLD_ENCODERS / "expected.json").read_text())[name])
    x = torch.linspace(-1, 1, 12 * 500).reshape(1, 12, 500).sin() * 0.5
    with torch.no_grad(), channels_last_on("cpu"):
        encoder = load_encoder(str(OLD_ENCODERS / name))
        torch.testing.assert_close(encoder(x)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["tiny", "xresnet1d50"])
def test_the_layout_is_kept_from_the_first_convolution_to_the_last(name: str, half: bool) -> None:
    encoder, lost = build_encoder(name), list[str]()
    seen = {"forward": 0, "backward": 0}

    def look(way: str, key: str, x: Tensor) -> None:
        seen[way] += 1
        if not is_channels_last(x):
            lost.append(f"{way} {key} {tuple(x.shape)} {x.stride()}")

    for key, module in encoder.named_modules():
        if key and key != "lead_scale":  # the signal itself is (N, 12, T) contiguous

            def forward(_m: nn.Module, _x: Any, y: Tensor, key: str = key) -> None:
                look("forward", key, y)
                y.register_hook(lambda grad: look("backward", key, grad))

            if not isinstance(module, nn.ModuleList):
                module.register_forward_hook(forward)
    signals = recordings()[0][:3, :, :1001]
    with channels_last_on("cpu"), Copies(len(signals)) as copies:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            maps = encoder.forward_stages(signals)
            pooled = encoder.pool(maps[-1])
        pooled.square().sum().backward()
    layers = sum(isinstance(module, (Conv1d, GlobalBatchNorm1d)) for module in encoder.modules())
    assert seen["forward"] > layers and seen["backward"] > layers
    assert all(is_channels_last(fmap) for fmap in maps)
    # the gradient of the last map comes from the pooling, which knows of no layout: what follows its ReLU has it again
    assert [line for line in lost if not line.startswith(f"backward {LAST[name]} ")] == []
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in encoder.parameters())
    assert len(copies.shapes) == 1 and copies.shapes[0][1] == 12, copies.shapes  # the signal itself, once


LAST = {"tiny": "block_3", "xresnet1d50": "residual_stages.3"}


def test_decoders_keep_the_layout_and_the_numbers() -> None:
    stages = [Stage(6, 4), Stage(8, 8), Stage(10, 16)]
    maps = [torch.randn(3, s.channels, -(-1001 // s.stride), dtype=torch.float64) for s in stages]

    def run(decoder: nn.Module, x: Tensor) -> list[Tensor]:
        return [decoder(x)] if isinstance(decoder, SignalDecoder) else [decoder([*maps[:-1], x], 1001)]

    for make in (
        lambda: UNetDecoder(stages, dropout=0.0),
        lambda: ConvDecoder(stages[-1]),
        lambda: ConvDecoder(stages[-1], depth=0),
        lambda: SignalDecoder(stages[-1], 7),
    ):
        torch.manual_seed(4)
        expected = all_there_is(make().double(), run, maps[-1])
        torch.manual_seed(4)
        decoder, inputs = make().double(), Inputs()
        for module in decoder.modules():
            if isinstance(module, Conv1d):
                module.register_forward_pre_hook(inputs.keep)
        with channels_last_on("cpu"):
            found = all_there_is(decoder, run, laid_out(maps[-1]))
        assert all(apart(found[key], value) <= 1e-12 for key, value in expected.items())
        assert inputs.kept and all(is_channels_last(x) for x in inputs.kept)


@pytest.mark.parametrize("name", ["tiny", "temporal_net"])
def test_compiled_and_exported(name: str) -> None:
    """The compiler follows the layout, also where one function is called in both."""
    torch._dynamo.reset()
    encoder = built(name, SMALL[name][0])
    x_mv, _ = recordings()
    compiled = torch.compile(encoder.forward_stages, backend="aot_eager")
    compiled(x_mv)
    with channels_last_on("cpu"):
        maps, expected = compiled(x_mv), encoder.forward_stages(x_mv)
        for fmap, eager in zip(maps, expected, strict=True):
            torch.testing.assert_close(fmap, eager, rtol=1e-5, atol=1e-5)
            assert fmap.stride() == eager.stride()
        torch.autograd.backward(maps, [torch.ones_like(fmap) for fmap in maps])
        grads = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        encoder.zero_grad()
        torch.autograd.backward(expected, [torch.ones_like(fmap) for fmap in expected])
        for grad, p in zip(grads, encoder.parameters(), strict=True):
            assert p.grad is not None and apart(grad, p.grad) < 1e-4
        free = torch.export.Dim.AUTO
        program = torch.export.export(encoder.eval(), (x_mv,), dynamic_shapes=({0: free, 2: free},))
        torch.testing.assert_close(program.module()(x_mv[:3, :, :1200]), encoder(x_mv[:3, :, :1200]))
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
    plain = torch.export.export(encoder, (x_mv,))
    assert not any("2d" in str(node.target) for node in plain.graph.nodes)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kernel_that_only_cuda_has_is_given_what_it_wants(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Its formula in place of the kernel: Normalization.cuh of torch, batch_norm_backward_elemt_channels_last."""

    def kernel(dy: Tensor, x: Tensor, *per_channel: Tensor) -> Tensor:
        mean, inverse_sd, weight, sum_dy, sum_dy_xmu = (each[:, None, None] for each in per_channel[:-1])
        count = per_channel[-1]
        assert count.dtype == torch.int32 and all(each.is_contiguous() for each in per_channel)
        assert {each.dtype for each in per_channel[:-1]} == {torch.promote_types(dtype, torch.float32)}
        over = 1.0 / count.sum()
        centred = (x - mean) * inverse_sd.square() * sum_dy_xmu * over
        return ((dy - sum_dy * over - centred) * weight * inverse_sd).to(x.dtype)

    monkeypatch.setattr(torch.ops.aten, "batch_norm_backward_elemt", kernel)
    torch.manual_seed(0)
    x, dy = (as_image(torch.randn(4, 5, 9).to(dtype)) for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    mean, inverse_sd, weight, mean_dy, mean_dy_xhat = torch.rand(5, 5, dtype=wide).unbind()
    given = dy, x, weight, mean, inverse_sd, mean_dy, mean_dy_xhat
    close = 0.02 if dtype == torch.bfloat16 else 1e-6
    assert apart(_input_gradient_of_cuda(*given), _input_gradient(*given)) < close
    assert _input_gradient_of_cuda(dy[:0], x[:0], *given[2:]).shape == (0, 5, 1, 9)


def test_the_norm_over_ranks_brings_the_gradient_into_the_layout_of_its_input() -> None:
    x = as_image(torch.randn(4, 5, 9, dtype=torch.float64)).requires_grad_()
    scale, shift, mean, var = torch.rand(4, 5, dtype=torch.float64).requires_grad_()
    y = _NormaliseGlobally.apply(x, scale, shift, mean.detach(), var.detach(), torch.tensor(36.0), 1e-5)
    (dx,) = torch.autograd.grad(y, x, torch.randn(4, 5, 1, 9, dtype=torch.float64))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in (y, dx))
