"""Encoders and decoders: positions, sizes, alignment in time, pooling, precision, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from beatray.config import config_folder
from beatray.models.encoder import Encoder, Stage, TokenEncoder, pool_over_time, valid_cells
from beatray.models.encoder_folder import load_encoder
from beatray.models.heads import BeatHead, LinearClassifier, MlpClassifier, ProjectionHead
from beatray.models.lead_scale import LEAD_STD_MV, LeadScale
from beatray.models.registry import build_encoder, encoder_classes
from beatray.models.segmentation import ConvDecoder, UNetDecoder, upsample
from beatray.record import LEADS

OLD_ENCODERS = Path(__file__).parents[1] / "data" / "encoders-0.1"

torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other

SMALL: dict[str, list[dict[str, Any]]] = {
    "tiny": [{}, {"norm": "group"}],
    "xresnet1d101": [{"widths": [8, 8, 8, 8]}, {"widths": [8, 8, 8, 8], "norm": "group"}],
    "s4d": [
        {"width": 16, "layers": 2, "state": 4, "stride": 8},
        {"width": 16, "layers": 2, "state": 4, "direction": "both", "norm": "group"},
        {"width": 16, "layers": 2, "state": 4, "direction": "bidirectional", "pre_norm": True},
    ],
    "lstm": [{"width": 16}, {"width": 16, "layers": 1, "direction": "both", "pool_last": True, "norm": "group"}],
    "wav2vec": [
        {
            "conv_channels": 16,
            "width": 32,
            "depth": 2,
            "heads": 2,
            "hidden": 64,
            "position_kernel": 16,
            "position_groups": 4,
            "half_rate": half_rate,
        }
        for half_rate in (False, True)
    ],
    "ts2vec": [
        {"width": 8, "out_width": 16},
        {"width": 8, "out_width": 16, "blocks": 4, "stride": 8, "pooling": "mean"},
    ],
    "temporal_net": [
        {"stem": 4, "widths": [4, 8]},
        {
            "stem": 4,
            "stem_stride": 2,
            "widths": [4, 8],
            "block_stride": 2,
            "streams": 2,
            "norm": "group",
            "pooling": "mean_std",
        },
    ],
    "vit": [{"width": 32, "depth": 2}, {"width": 32, "depth": 2, "registers": 1, "bias": False, "dropout": 0.1}],
}
"""Settings with which a network is quick; every network of the registry is tested, with its defaults if not here."""

every_network = pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name in encoder_classes() for settings in SMALL.get(name, [{}])]
)


def built(name: str, settings: dict[str, Any]) -> Encoder:
    torch.manual_seed(2)
    return build_encoder(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "positions", "channels", "stride"),
    [
        ("tiny", {}, 313, 64, 16),
        ("tiny", {"norm": "group", "pooling": "mean_max"}, 313, 64, 16),
        ("xresnet1d18", {}, 313, 64, 16),
        ("xresnet1d50", {"out_stride": 32}, 157, 256, 32),
        ("xresnet1d50", {}, 313, 256, 16),
        ("xresnet1d101", {"norm": "group"}, 313, 256, 16),
    ],
)
def test_positions_and_channels(
    name: str, settings: dict[str, object], positions: int, channels: int, stride: int
) -> None:
    encoder = build_encoder(name, **settings).requires_grad_(False)
    x = torch.randn(2, 12, 5000)
    maps = encoder.forward_stages(x)
    assert maps[-1].shape == (2, channels, positions)
    assert (encoder.stride, encoder.channels, encoder.embed_dim) == (stride, channels, 2 * channels)
    for fmap, stage in zip(maps, encoder.stages, strict=True):
        assert fmap.shape == (2, stage.channels, -(-5000 // stage.stride))
    assert encoder(x).shape == (2, encoder.embed_dim)
    odd = encoder.forward_features(torch.randn(1, 12, 2345))
    assert odd.shape[-1] == -(-2345 // stride)


def test_sizes() -> None:
    def size(name: str) -> int:
        return sum(p.numel() for p in build_encoder(name).parameters())

    assert 110_000 < size("tiny") < 140_000
    assert size("xresnet1d18") < size("xresnet1d50") < size("xresnet1d101") < 3_000_000


@pytest.mark.parametrize("name", ["tiny", "xresnet1d18"])
def test_cell_j_is_centred_on_sample_j_times_stride(name: str) -> None:
    """Reversing time reverses the map when every layer is symmetric: with the kernels made so, centres are exact."""
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 3:
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
    stride = encoder.stride
    x = torch.randn(1, 12, 64 * stride + 1)
    forward, backward = encoder.forward_features(x), encoder.forward_features(x.flip(-1)).flip(-1)
    if name == "tiny":
        torch.testing.assert_close(forward, backward, atol=1e-4, rtol=1e-4)
    else:
        # the average pooling of xresnet's shortcuts spans two samples, so it is centred half a sample late
        assert torch.nn.functional.cosine_similarity(forward.flatten(), backward.flatten(), dim=0) > 0.9


def test_new_blocks_start_as_their_shortcut() -> None:
    encoder = build_encoder("xresnet1d50")
    assert all(block.inner[-1].weight.abs().max() == 0 for stage in encoder.residual_stages for block in stage)  # type: ignore


def test_amplitude_is_scaled_per_lead() -> None:
    scale = LeadScale()
    x = torch.tensor([LEAD_STD_MV[lead] for lead in LEADS])[None, :, None].expand(1, 12, 7)
    torch.testing.assert_close(scale(x), torch.ones(1, 12, 7))
    assert "lead_scale.lead_std_mv" in build_encoder("tiny").state_dict()
    with pytest.raises(ValueError, match="millivolts"):
        scale(torch.zeros(1, 8, 7))


@every_network
def test_evaluation_does_not_mix_records(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings).eval()
    x = torch.randn(3, 12, 1000)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), atol=1e-5, rtol=1e-5)


@every_network
def test_maps_are_what_the_stages_say(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings).eval()
    for n in (1000, 1003, 1):
        maps = encoder.forward_stages(torch.randn(2, 12, n))
        assert len(maps) == len(encoder.stages)
        for fmap, stage in zip(maps, encoder.stages, strict=True):
            assert fmap.shape == (2, stage.channels, -(-n // stage.stride))
    pooled = encoder(torch.randn(2, 12, 1000))
    assert pooled.shape == (2, encoder.embed_dim) and pooled.dtype == torch.float32


@every_network
def test_an_empty_batch_trains(name: str, settings: dict[str, Any]) -> None:
    """A rank without a record still takes part in the reduction of every gradient."""
    encoder = built(name, settings)
    for n_samples in (None, torch.zeros(0, dtype=torch.int64)):
        encoder.zero_grad()
        pooled = encoder(torch.zeros(0, 12, 1250), n_samples)
        assert pooled.shape == (0, encoder.embed_dim)
        pooled.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


@every_network
def test_bfloat16_trains(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = encoder(torch.randn(4, 12, 1250), torch.tensor([1250, 1250, 600, 100]))
    assert pooled.dtype == torch.float32 and torch.isfinite(pooled).all()
    pooled.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


@every_network
def test_bfloat16_is_near(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings).eval()
    x = torch.randn(4, 12, 1250)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = encoder(x)
    with torch.no_grad():
        exact = encoder(x)
    assert (rough - exact).norm() < 0.02 * exact.norm()


@every_network
def test_what_follows_the_signal_does_not_matter(name: str, settings: dict[str, Any]) -> None:
    """Beyond the reach of convolutions, about 1,100 samples to each side in xresnet1d101."""
    encoder = built(name, settings).eval()
    x, n_samples = torch.randn(2, 12, 4000), torch.tensor([4000, 1000])
    changed = x.clone()
    changed[1, :, 2600:] = 5.0
    with torch.no_grad():
        torch.testing.assert_close(encoder(changed, n_samples), encoder(x, n_samples), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(encoder(changed)[1], encoder(x)[1], atol=1e-3)


@every_network
def test_tokens_in_context_are_the_map(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings).eval()
    if not isinstance(encoder, TokenEncoder):
        pytest.skip("makes maps only")
    x = torch.randn(2, 12, 1001)
    tokens = encoder.tokens(x)
    stage = encoder.token_stage
    assert tokens.shape == (2, -(-1001 // stage.stride), stage.channels)
    torch.testing.assert_close(
        encoder.encode(tokens).transpose(1, 2), encoder.forward_features(x), atol=1e-5, rtol=1e-5
    )
    assert encoder.channels % max(1, len(encoder.directions)) == 0


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("s4d", 3_008_512),
        ("s4d_tiny", 39_168),
        ("lstm", 4_999_168),
        ("lstm_tiny", 46_848),
        ("ts2vec", 637_952),
        ("ts2vec_tiny", 52_128),
        ("vit_xs", 3_616_896),
        ("vit_s", 14_311_680),
        ("vit_b", 85_286_400),
        ("vit_tiny", 476_352),
        ("wav2vec", 90_373_248),
        ("wav2vec_tiny", 554_016),
    ],
)
def test_presets(preset: str, parameters: int) -> None:
    content = yaml.safe_load((config_folder() / "encoder" / f"{preset}.yaml").read_text())
    with torch.device("meta"):
        encoder = build_encoder(content.pop("name"), **content)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert isinstance(encoder, TokenEncoder)


def test_padding_is_kept_out_of_the_pooling() -> None:
    fmap = torch.randn(2, 5, 10)
    fmap[1, :, 6:] = 100.0
    for pooling in ("mean_max", "mean_std"):
        whole = pool_over_time(fmap, pooling, Stage(5, 16), None)
        known = pool_over_time(fmap, pooling, Stage(5, 16), torch.tensor([160, 96]))
        torch.testing.assert_close(known[0], whole[0])
        torch.testing.assert_close(known[1], pool_over_time(fmap[1:, :, :6], pooling, Stage(5, 16), None)[0])
        assert torch.isfinite(pool_over_time(fmap, pooling, Stage(5, 16), torch.tensor([0, 1]))).all()
    mean, sd = pool_over_time(fmap, "mean_std", Stage(5, 16), None).chunk(2, dim=1)
    torch.testing.assert_close(mean, fmap.mean(-1))
    torch.testing.assert_close(sd, fmap.std(-1, correction=0), atol=1e-4, rtol=1e-4)


def test_wrong_names_and_settings_say_what_is_right() -> None:
    with pytest.raises(ValueError, match="did you mean 'xresnet1d50'"):
        build_encoder("xresnet50")
    with pytest.raises(ValueError, match="did you mean 'out_stride'"):
        build_encoder("xresnet1d50", outstride=32)
    with pytest.raises(ValueError, match="one of 16, 32"):
        build_encoder("xresnet1d50", out_stride=8)
    with pytest.raises(ValueError, match="mean_std, mean_max, mean"):
        build_encoder("tiny", pooling="max")


def test_heads() -> None:
    pooled = torch.randn(4, 128)
    assert ProjectionHead(128)(pooled).shape == (4, 128)
    assert LinearClassifier(128, 5)(pooled).shape == (4, 5)
    assert MlpClassifier(128, 5)(pooled).shape == (4, 5)
    head = BeatHead(64)
    boxes, owner = torch.tensor([[0.0, 400.0], [50.0, 500.0]]), torch.tensor([0, 3])
    assert head(torch.randn(4, 64, 157), boxes, owner, Stage(64, 16)).shape == (2, 128)
    assert head(torch.randn(4, 64, 157), boxes[:0], owner[:0], Stage(64, 16)).shape == (0, 128)


@pytest.mark.parametrize(("name", "settings"), [("tiny", {}), ("xresnet1d18", {}), ("xresnet1d18", {"out_stride": 32})])
def test_decoders_give_every_sample_a_class(name: str, settings: dict[str, object]) -> None:
    encoder = build_encoder(name, **settings)
    for n in (2500, 1001):
        maps = encoder.forward_stages(torch.randn(2, 12, n))
        for decoder in (
            ConvDecoder(encoder.stages[-1]),
            ConvDecoder(encoder.stages[-1], depth=0),
            UNetDecoder(encoder.stages),
        ):
            assert decoder(maps, n).shape == (2, 4, n)


def test_upsampling_puts_cells_on_their_samples() -> None:
    cells = torch.arange(313.0)[None, None] * 16
    fine = upsample(cells, 16, 5000)
    torch.testing.assert_close(fine[0, 0, :4993], torch.arange(4993.0), atol=1e-2, rtol=0)
    assert (fine[0, 0, 4993:] == 4992).all()
    assert torch.equal(upsample(cells, 1, 300), cells[..., :300])


@pytest.mark.parametrize(("stride", "offset"), [(16, 2.0), (5, 2.0), (8, 3.5), (16, -3.0)])
def test_an_offset_is_kept_by_decoders_and_pooling(stride: int, offset: float) -> None:
    cells = (torch.arange(100.0) * stride + offset)[None, None]
    fine = upsample(cells, stride, 90 * stride, offset)[0, 0]
    inside = torch.arange(max(math.ceil(offset), 0), 90 * stride)
    torch.testing.assert_close(fine[inside], inside.float(), atol=1e-2, rtol=0)
    decoder = UNetDecoder([Stage(2, stride, offset), Stage(3, 2 * stride, offset + stride / 2)])
    coarse = torch.zeros(1, 3, 50)
    assert decoder([cells.expand(1, 2, 100), coarse], 100 * stride).shape == (1, 4, 100 * stride)
    # cells 0 to 9 stand for samples before 10 * stride + offset
    stage, edge = Stage(1, stride, offset), int(9 * stride + offset) + 1
    pooled = pool_over_time(cells, "mean_max", stage, torch.tensor([edge]))
    assert float(pooled[0, 1]) == 9 * stride + offset


def test_a_coarse_map_is_read_where_the_finer_cells_lie() -> None:
    """Both maps hold the sample they stand for: between two stages nothing is moved."""
    fine, coarse = Stage(1, 8, 3.5), Stage(1, 16, 3.5)
    cells = (torch.arange(40.0) * coarse.stride + coarse.offset)[None, None]
    read = upsample(cells, coarse.stride / fine.stride, 78, (coarse.offset - fine.offset) / fine.stride)[0, 0]
    torch.testing.assert_close(read, torch.arange(78.0) * fine.stride + fine.offset)


@pytest.mark.parametrize("name", ["tiny", "xresnet1d18"])
def test_encoders_that_version_0_1_exported_still_load(name: str) -> None:
    expected = json.loads((OLD_ENCODERS / "expected.json").read_text())[name]
    encoder = load_encoder(str(OLD_ENCODERS / name))
    x = torch.linspace(-1, 1, 12 * 500).reshape(1, 12, 500).sin() * 0.5
    with torch.no_grad():
        torch.testing.assert_close(encoder(x)[0], torch.tensor(expected), atol=1e-5, rtol=1e-4)


@every_network
def test_tokens_in_context_are_the_last_map_for_short_records_too(name: str, settings: dict[str, Any]) -> None:
    encoder = built(name, settings).eval().double()
    if not isinstance(encoder, TokenEncoder):
        pytest.skip("makes maps only")
    x, n_samples = torch.randn(3, 12, 1000, dtype=torch.float64), torch.tensor([1000, 400, 130])
    there = valid_cells(n_samples, encoder.token_stage, encoder.tokens(x).shape[1])
    with torch.no_grad():
        encoded = encoder.encode(encoder.tokens(x, n_samples), valid=there)
        expected = encoder.forward_features(x, n_samples).transpose(1, 2)
    torch.testing.assert_close(encoded[there], expected[there], atol=1e-9, rtol=1e-9)
