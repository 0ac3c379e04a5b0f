"""The layers of a network in the order of depth: which parts are one layer, and which reads the signal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from beatray.models.depth import layers_of
from beatray.models.encoder import Encoder
from beatray.models.registry import build_encoder


def network(name: str, **settings: Any) -> Encoder:
    with torch.device("meta"):
        return build_encoder(name, **settings)


def names_of(encoder: Encoder) -> list[list[str]]:
    """Of each layer the names of its parameters."""
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    return [[names[id(parameter)] for parameter in parameters] for _, parameters in layers_of(encoder)]


@pytest.mark.parametrize("streams", [1, 2])
def test_towers_side_by_side_are_gone_through_together(streams: int) -> None:
    layers = names_of(network("temporal_net", widths=(4, 8, 8), streams=streams))
    assert len(layers) == 5
    assert {name.split(".")[2] for name in layers[0]} == {"stem", "stem_norm"}
    for number, layer in enumerate(layers[1:-1]):
        places = {tuple(name.split(".")[:4]) for name in layer}
        assert places == {
            ("streams", str(stream), "towers", str(tower)) for stream in range(streams) for tower in range(2)
        }
        assert {name.split(".")[4] for name in layer} == {str(number)}
    assert {name.split(".")[2] for name in layers[-1]} == {"join", "join_norm"}


def test_a_token_of_no_part_is_in_the_layer_that_reads_the_signal() -> None:
    with_token, without = (names_of(network("vit", width=8, depth=2, registers=count)) for count in (1, 0))
    assert with_token == [["register_token", "embed.weight"], *without[1:]]
    assert without[0] == ["embed.weight"]


def test_a_norm_is_in_the_layer_that_it_acts_after() -> None:
    encoder = network("wav2vec", convs=3, depth=1)
    layers = names_of(encoder)
    assert layers[0] == ["convs.0.weight", "conv_norm.weight", "conv_norm.bias"]
    assert layers[1] == ["convs.1.weight"]
    assert layers[2] == ["convs.2.weight", "token_norm.weight", "token_norm.bias"]
    modules, _ = layers_of(encoder)[0]
    assert encoder.get_submodule("conv_norm") in modules  # so that its mode is that of the layer
