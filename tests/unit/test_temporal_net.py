"""temporal_net: leads share weights, the map is their mean, groups know no order, cells lie where they are said to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from beatray.config import config_folder
from beatray.models.encoder import Encoder, LeadEncoder, pool_over_time
from beatray.models.registry import build_encoder
from beatray.models.segmentation import ConvDecoder, UNetDecoder
from beatray.record import INDEPENDENT_LEADS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"stem": 4, "widths": (4, 6), "dropout": 0.0}


def built(**settings: Any) -> Any:
    torch.manual_seed(0)
    encoder: Encoder = build_encoder("temporal_net", **{**SMALL, **settings}).double().eval()
    for parameter in encoder.parameters():  # norms that do nothing hide an order of the leads
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.2, 0.8)
    encoder.lead_scale.lead_std_mv.fill_(1.0)  # so that leads may change places
    return encoder.requires_grad_(False)


def signal(records: int = 2, samples: int = 600) -> torch.Tensor:
    return torch.randn(records, 12, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("block_stride", [1, 2])
def test_the_embedding_of_a_recording_is_the_mean_of_its_leads(streams: int, block_stride: int) -> None:
    encoder, x = built(streams=streams, block_stride=block_stride), signal()
    assert isinstance(encoder, LeadEncoder) and encoder.leads == INDEPENDENT_LEADS
    for n_samples in (None, torch.tensor([600, 300])):
        leads = encoder.forward_leads(x, n_samples)
        assert leads.shape == (2, 8, encoder.lead_dim)
        torch.testing.assert_close(leads.mean(1), encoder(x, n_samples), atol=1e-12, rtol=0)
        groups = [leads[:, list(group)].mean(1) for group in encoder.lead_groups]
        torch.testing.assert_close(torch.stack(groups).mean(0), encoder(x, n_samples), atol=1e-12, rtol=0)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_lead_is_read_alone_and_derived_leads_are_not_read(streams: int) -> None:
    encoder, x = built(streams=streams), signal()
    before = encoder.forward_leads(x)
    for lead in range(12):
        changed = x.clone()
        changed[:, lead] += 1.0
        moved = (encoder.forward_leads(changed) != before).any(-1)
        assert moved.all(0).nonzero()[:, 0].tolist() == [i for i, read in enumerate(INDEPENDENT_LEADS) if read == lead]


def test_all_leads_share_their_weights() -> None:
    encoder = built()
    same = signal()[:, :1].expand(-1, 12, -1)
    leads = encoder.forward_leads(same)
    torch.testing.assert_close(leads, leads[:, :1].expand(-1, 8, -1), atol=1e-12, rtol=0)
    size = sum(p.numel() for p in encoder.parameters())
    assert size == sum(p.numel() for p in encoder.streams[0].parameters())  # that of one lead's network
    assert sum(p.numel() for p in built(streams=2).parameters()) == 2 * size
    assert encoder.streams[0].stem.weight.shape == (4, 1, 7)


def test_the_order_of_leads_within_a_group_does_not_matter_and_that_of_groups_does() -> None:
    encoder, x = built(streams=2), signal()
    within, across = x.clone(), x.clone()
    within[:, [0, 1, 10, 11]] = x[:, [10, 0, 11, 1]]  # I, II, V5, V6
    within[:, [6, 7, 8, 9]] = x[:, [9, 8, 6, 7]]  # V1 to V4
    across[:, [0, 6]] = x[:, [6, 0]]
    for found, expected in zip(encoder.forward_stages(within), encoder.forward_stages(x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert float((encoder(across) - encoder(x)).abs().max()) > 1e-4
    alone = built()
    torch.testing.assert_close(alone(across), alone(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("streams", [1, 2])
def test_maps_are_means_over_leads_at_each_scale_and_decoders_take_them(streams: int) -> None:
    encoder = built(streams=streams, block_stride=2, widths=(4, 6, 6))
    assert [(stage.channels, stage.stride) for stage in encoder.stages] == [(4, 4), (8, 8), (12, 16), (12, 32)]
    x = signal()
    maps = encoder.forward_stages(x)
    for scale, fmap in enumerate(maps):
        leads = torch.cat([of_leads[scale] for of_leads in encoder._lead_maps(x)], 1)
        torch.testing.assert_close(fmap, leads.mean(1), atol=1e-12, rtol=0)
    for decoder in (ConvDecoder(encoder.stages[-1]), UNetDecoder(encoder.stages)):
        assert decoder.double()(maps, 600).shape == (2, 4, 600)
    assert [fmap.shape for fmap in built(stem_stride=2).forward_stages(x)] == [(2, 4, 150), (2, 12, 150)]
    published = built()
    assert [(stage.channels, stage.stride) for stage in published.stages] == [(4, 4), (12, 4)]
    assert UNetDecoder(published.stages).double()(published.forward_stages(x), 600).shape == (2, 4, 600)


@pytest.mark.parametrize(("stem_stride", "block_stride"), [(1, 1), (1, 2), (2, 2)])
def test_cell_j_is_centred_on_sample_j_times_stride(stem_stride: int, block_stride: int) -> None:
    encoder = built(stem_stride=stem_stride, block_stride=block_stride, widths=(4, 6, 6))
    for parameter in encoder.parameters():
        if parameter.dim() == 3:
            parameter.copy_((parameter + parameter.flip(-1)) / 2)
    x = signal(1, 12 * encoder.stride + 1)
    for forward, backward in zip(encoder.forward_stages(x), encoder.forward_stages(x.flip(-1)), strict=True):
        torch.testing.assert_close(forward, backward.flip(-1), atol=1e-12, rtol=1e-12)


def test_leads_are_pooled_over_their_signal_as_the_settings_say() -> None:
    encoder, x = built(pooling="mean_std"), signal(2)
    n_samples = torch.tensor([600, 200])
    (lead_maps,) = encoder._lead_maps(x)
    expected = pool_over_time(lead_maps[-1][:, 3], "mean_std", encoder.stages[-1], n_samples)
    torch.testing.assert_close(encoder.forward_leads(x, n_samples)[:, 3], expected, atol=1e-12, rtol=0)
    assert encoder.lead_dim == 2 * encoder.channels


@pytest.mark.parametrize("streams", [1, 2])
def test_no_record_trains(streams: int) -> None:
    encoder = built(streams=streams).train().requires_grad_()
    leads = encoder.forward_leads(torch.zeros(0, 12, 500, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    leads.sum().backward()
    assert leads.shape == (0, 8, encoder.lead_dim) and all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("preset", "parameters", "positions"),
    [
        ("temporal_net", 3_482_144, 1250),
        ("temporal_net_dual", 2 * 3_482_144, 1250),
        ("temporal_net_tiny", 57_960, 79),
        ("temporal_net_dual_tiny", 2 * 57_960, 79),
    ],
)
def test_presets(preset: str, parameters: int, positions: int) -> None:
    content = yaml.safe_load((config_folder() / "encoder" / f"{preset}.yaml").read_text())
    with torch.device("meta"):
        encoder = build_encoder(content.pop("name"), **content)
        assert encoder.eval().forward_features(torch.zeros(1, 12, 5000)).shape[-1] == positions
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert isinstance(encoder, LeadEncoder)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="kernels must be odd"):
        build_encoder("temporal_net", kernels=(3, 6))
    with pytest.raises(ValueError, match="widths is empty"):
        build_encoder("temporal_net", widths=())
    with pytest.raises(ValueError, match="streams must be one of 1, 2"):
        build_encoder("temporal_net", streams=3)
