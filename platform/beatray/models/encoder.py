"""What every encoder is: lead scaling, feature maps finest first, and pooling. One network, one file in this folder.

A network subclasses `Encoder`, names its `Settings` (a frozen dataclass: the schema of `encoder.*`) and `names`, and
gives `forward_stages`. It is found by looking (`registry.py`); docs/adding-an-encoder.md is a worked example.

Contract: input (B, 12, T) millivolts at 500 Hz, as `preprocess.prepare` makes them; `forward_stages` gives one map
(B, C, T') per entry of `stages`, where cell j stands for input sample j * stride + offset; `forward_features` is the
last of them; `pool` gives (B, embed_dim) float32; `forward(x)` is pool(forward_features(x)). B may be 0. `n_samples`
(B,) is how many input samples are signal; what follows them must not matter beyond the reach of a convolution (in
training it does enter the statistics of batch norms, which run over all cells of a batch).

Methods that need more than maps ask for it when they are built: see `TokenEncoder`, `LayerEncoder` and `LeadEncoder`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from beatray.models.lead_scale import LeadScale

Pooling = Literal["mean_std", "mean_max", "mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

_VARIANCE_FLOOR = 1e-5  # keeps the gradient of the standard deviation finite for a constant channel


@dataclass(frozen=True, slots=True)
class Stage:
    """One feature map: its channels, and that its cell j stands for input sample j * stride + offset."""

    channels: int
    stride: int
    offset: float = 0.0


class Encoder(nn.Module):
    """The base of all networks; see the module text. Subclasses give `Settings`, `names` and `forward_stages`."""

    Settings: ClassVar[type[Any]]
    names: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Registry name -> the settings that this name fixes."""

    side_by_side: ClassVar[tuple[str, ...]] = ()
    """Lists of parts that do not follow each other: together they are one layer (depth.py). Parts may name theirs."""

    acts_after: ClassVar[Mapping[str, str]] = {}
    """A part -> the one it acts after, where others are registered between them: they are one layer (depth.py)."""

    def __init__(self, settings: Any, stages: Sequence[Stage], embed_dim: int | None = None) -> None:
        super().__init__()
        self.name = type(self).__name__  # the registry writes the name it was asked for
        self.settings = settings
        self.pooling: str = getattr(settings, "pooling", "mean_std")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        self.stages = tuple(stages)
        self.embed_dim: int = embed_dim or pooled_width(self.pooling, self.channels)
        self.lead_scale = LeadScale()
        self.register_load_state_dict_pre_hook(_drop_trunk)

    @property
    def channels(self) -> int:
        """Of the last map."""
        return self.stages[-1].channels

    @property
    def stride(self) -> int:
        """Of the last map."""
        return self.stages[-1].stride

    @property
    def offset(self) -> float:
        """Of the last map."""
        return self.stages[-1].offset

    def described_settings(self) -> dict[str, Any]:
        """The settings that build this network again by its name, as plain data."""
        fixed = self.names.get(self.name, {})
        return {key: value for key, value in dataclasses.asdict(self.settings).items() if key not in fixed}

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Feature maps, one per entry of `stages`, finest first; the last is `forward_features`."""
        raise NotImplementedError(f"{type(self).__name__} gives no forward_stages")

    def forward_features(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """(B, 12, T) mV -> (B, channels, T')."""
        return self.forward_stages(x_mv, n_samples)[-1]

    def pool(self, fmap: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """The last map to one vector: (B, C, T') -> (B, embed_dim) float32. A network may override it.

        With n_samples (B,), valid input samples, only cells that stand for one of them count (at least one).
        """
        return pool_over_time(fmap, self.pooling, self.stages[-1], n_samples)

    def forward(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """(B, 12, T) mV -> (B, embed_dim)."""
        return self.pool(self.forward_features(x_mv, n_samples), n_samples)


@runtime_checkable
class TokenEncoder(Protocol):
    """A network that first makes local tokens of the signal and then puts each into its context.

    `tokens` (B, T', D) hold positions where the network needs them; `encode` gives (B, T', channels), or with `keep`
    (B, K) int64, the tokens that are left in, (B, K, channels). `directions` names the causal stacks whose outputs lie
    one after the other along the channels, "forward" (token t has seen 0..t) and "backward" (t..T'-1); empty where a
    token sees both sides. `drops_tokens` is whether `keep` may be given. `valid` (B, T'), or (B, K) with `keep`, bool
    marks the tokens that are there: the others are as if they were not (`valid_cells`), as in `forward_stages`.
    Where tokens hold positions, `token_positions(tokens)` gives them alone, (T', D): a method that puts something of
    its own in the place of a token leaves them there.
    """

    token_stage: Stage
    directions: tuple[str, ...]
    drops_tokens: bool

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor: ...

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class LayerEncoder(Protocol):
    """A `TokenEncoder` that shows what each of its layers makes of the tokens: a list of (B, T', channels), first to
    last; the last is what `encode` gives."""

    def encode_layers(self, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]: ...


@runtime_checkable
class LeadEncoder(Protocol):
    """A network that reads each lead as a sequence of its own: (B, 12, T) mV -> (B, leads, lead_dim) float32.

    `leads` are the positions of those it reads, in the order of the result; `lead_groups` the positions in `leads` of
    those that share weights: one group, where all do. Row (b, l) depends on lead l alone, but for batch norms.
    """

    leads: tuple[int, ...]
    lead_groups: tuple[tuple[int, ...], ...]
    lead_dim: int

    def forward_leads(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor: ...


def lead_rows(x: Tensor, leads: Sequence[int]) -> Tensor:
    """The rows (N, L, ...) of the given leads as (N, len(leads), ...).

    A list as an index would be copied to the device, and the host would wait for that.
    """
    return torch.stack([x[:, lead] for lead in leads], 1)


def chosen_positions(chosen: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the chosen tokens of each record, in time order, and which of these exist: (B, T') -> (B, K) twice.

    K is the most that a record has, or `most`, which asks no device; what a record with fewer has beyond them are
    positions of other tokens.
    """
    counts = chosen.sum(1)
    if most is None:
        most = int(counts.max()) if len(counts) else 1
    at = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    return at, torch.arange(at.shape[1], device=chosen.device) < counts[:, None]


def at_least_float32(x: Tensor) -> Tensor:
    """What sums and norms are worked out in, also inside autocast: float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def check_odd(settings: Any, *names: str) -> None:
    """Raise ValueError for a kernel that is even: only odd, same-padded ones are centred on a sample."""
    for name in names:
        if getattr(settings, name) % 2 == 0:
            raise ValueError(f"{name} must be odd, not {getattr(settings, name)}")


def pooled_width(pooling: str, channels: int) -> int:
    """Length of what `pool_over_time` gives."""
    return channels if pooling == "mean" else 2 * channels


def cells_of(n_samples: Tensor, stage: Stage, cells: int) -> Tensor:
    """How many of `cells` cells stand for one of the first `n_samples` (B,) samples, at least one: (B,) int64."""
    reached = torch.ceil((n_samples.double() - stage.offset) / stage.stride).long()
    return reached.clamp(1, cells)


def valid_cells(n_samples: Tensor, stage: Stage, cells: int) -> Tensor:
    """Which of `cells` cells stand for one of the first `n_samples` (B,) samples: (B, cells) bool."""
    return torch.arange(cells, device=n_samples.device) < cells_of(n_samples, stage, cells)[:, None]


def pool_over_time(fmap: Tensor, pooling: str, stage: Stage, n_samples: Tensor | None) -> Tensor:
    """`mean_max`, `mean_std` or `mean` over the valid cells: (B, C, T') -> (B, D) float32; double stays double."""
    f_bct = at_least_float32(fmap)
    if n_samples is None:
        mean = f_bct.mean(-1)
        if pooling == "mean":
            return mean
        if pooling == "mean_max":
            return torch.cat([mean, f_bct.amax(-1)], dim=1)
        variance = (f_bct - mean[..., None]).square().mean(-1)
        return torch.cat([mean, (variance + _VARIANCE_FLOOR).sqrt()], dim=1)
    cells = cells_of(n_samples.to(fmap.device), stage, fmap.shape[-1])
    valid = (torch.arange(fmap.shape[-1], device=fmap.device) < cells[:, None])[:, None, :]
    count = cells[:, None].to(f_bct.dtype)
    mean = f_bct.masked_fill(~valid, 0.0).sum(-1) / count
    if pooling == "mean":
        return mean
    if pooling == "mean_max":
        return torch.cat([mean, f_bct.masked_fill(~valid, float("-inf")).amax(-1)], dim=1)
    variance = (f_bct - mean[..., None]).masked_fill(~valid, 0.0).square().sum(-1) / count
    return torch.cat([mean, (variance + _VARIANCE_FLOOR).sqrt()], dim=1)


def _drop_trunk(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Folders and checkpoints of before 0.2 hold the weights of a network below `trunk.`, xresnet's in `stages`.

    A network that has a part of this name is none of those: its weights stay where they are.
    """
    if isinstance(getattr(module, "trunk", None), nn.Module):
        return
    old = f"{prefix}trunk."
    for key in [key for key in state if key.startswith(old)]:
        name = key.removeprefix(old)
        if name.startswith("stages."):
            name = f"residual_{name}"
        state[prefix + name] = state.pop(key)
