"""The layers of any encoder in the order of depth: what is frozen, and what learns slowly, when it is fine-tuned.

Networks register their parts in the order in which a signal passes them, so the order can be read off the module tree:
a list of blocks is as many layers; a part without a matrix of its own (a norm) belongs to the layer before it, or to
that of the part for which a network names it in `acts_after`. Parts that stand side by side (one recurrence for each
direction, one network for each group of leads, towers) are gone through together, their first layers being one layer: a
network, or a part of it that stands side by side with others, names them in `side_by_side`.

Contract: every parameter of the encoder is in exactly one layer; layer 0 reads the signal. Parameters that belong to no
part (a class token, positions) are in layer 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from beatray.models.encoder import Encoder

Layer = tuple[list[nn.Module], list[nn.Parameter]]
"""The modules of a layer, for their mode, and its parameters."""


def layers_of(encoder: Encoder) -> list[Layer]:
    """The layers, the one that reads the signal first."""
    return _layers(encoder)


def _layers(module: nn.Module) -> list[Layer]:
    side_by_side, acts_after = getattr(module, "side_by_side", ()), getattr(module, "acts_after", {})
    layers: list[Layer] = [([], [])]
    for name, child in module.named_children():
        if name in acts_after:
            continue
        if name in side_by_side:
            lanes = [_layers(lane) for lane in child.children()]
            found = [_joined(level) for level in zip(*lanes, strict=True)]
        else:
            found = [([part], list(part.parameters())) for part in _parts(child)]
        for modules, parameters in found:
            if any(parameter.ndim > 1 for parameter in parameters):
                layers.append((modules, parameters))
            else:
                layers[-1][0].extend(modules)
                layers[-1][1].extend(parameters)
    layers = _merged_head(layers)
    for name, before in acts_after.items():
        child, first = module.get_submodule(name), next(module.get_submodule(before).parameters())
        modules, parameters = next(layer for layer in layers if any(each is first for each in layer[1]))
        modules.append(child)
        parameters.extend(child.parameters())
    # after the head was merged: a token is a matrix too, but it reads no signal
    layers[0][1][:0] = module.parameters(recurse=False)
    return layers


def _joined(layers: Sequence[Layer]) -> Layer:
    """Layers side by side as one."""
    modules = [module for own, _ in layers for module in own]
    return modules, [parameter for _, own in layers for parameter in own]


def _parts(module: nn.Module) -> list[nn.Module]:
    """A module, or those that it only lines up."""
    if isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and any(_is_block(child) for child in module)
    ):
        return [part for child in module for part in _parts(child)]
    return [module]


def _is_block(module: nn.Module) -> bool:
    """Whether it has parts with parameters: then it is more than one operation."""
    return any(True for child in module.children() for _ in child.parameters())


def _merged_head(layers: list[Layer]) -> list[Layer]:
    """Without a first layer that has no matrix: it belongs to the next one."""
    while len(layers) > 1 and not any(parameter.ndim > 1 for parameter in layers[0][1]):
        (modules, parameters), (more, others) = layers[0], layers[1]
        layers = [(modules + more, parameters + others), *layers[2:]]
    return layers
