"""vit: a transformer over patches of all twelve leads, for methods that leave tokens out (MAE, JEPA).

A patch of 50 ms becomes one token; tokens do not overlap, so a token that is left out takes its samples with it.
The network and its sizes XS, S and B are those of Weimann and Conrad, "Self-Supervised Pre-Training with
Joint-Embedding Predictive Architecture Boosts ECG Classification Performance" (arXiv:2410.13867): the vision
transformer of Dosovitskiy et al. (ICLR 2021) with norm before each branch, fixed sine and cosine positions (Vaswani et
al., NeurIPS 2017, section 3.5) and, as an option, a register token that holds no position (Darcet et al., ICLR 2024).

Contract: (B, 12, T) mV at 500 Hz -> one map, (B, width, ceil(T / patch)). The patch is odd and token j holds samples
j * patch - patch // 2 to j * patch + patch // 2, so that it is centred on sample j * patch; T is filled up with zeros,
and samples beyond the reach of the last token are not seen. With n_samples, samples beyond it are taken as zero and
tokens beyond it are no key of the attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Pooling, Stage, cells_of, check_odd
from beatray.models.layout import Conv1d

_INIT_STD = 0.02
_EPS = 1e-6  # of layer norms


@dataclass(frozen=True, slots=True)
class ViTSettings:
    """Settings of `vit`; the defaults are size XS."""

    pooling: Pooling = "mean"
    width: int = setting(192, "of a token; even, a multiple of heads", at_least=2)
    depth: int = setting(8, "blocks", at_least=1)
    heads: int = setting(4, "of the attention", at_least=1)
    patch: int = setting(25, "samples per token; odd", at_least=1)
    registers: int = setting(0, "1: a token without position that the map does not show", choices=(0, 1))
    bias: bool = setting(True, "in linear layers and norms; the patches never have one")
    dropout: float = setting(0.0, "of the output of attention and MLP", at_least=0, below=1)

    def __post_init__(self) -> None:
        check(self)
        check_odd(self, "patch")
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"width must be even and a multiple of heads, not {self.width} with {self.heads}")


class ViT(Encoder):
    """Patches, positions, blocks, a last norm; a `TokenEncoder` that drops tokens."""

    Settings = ViTSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"vit": {}}
    directions: tuple[str, ...] = ()
    drops_tokens: bool = True

    def __init__(self, settings: ViTSettings) -> None:
        width, patch = settings.width, settings.patch
        super().__init__(settings, [Stage(width, patch)])
        self.token_stage = self.stages[0]
        # padded by half a patch on both sides, floor gives ceil(T / patch) cells, cell j around sample j * patch
        self.embed = Conv1d(12, width, patch, patch, patch // 2, bias=False)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, _EPS, bias=settings.bias)
        self.register_token = nn.Parameter(torch.empty(1, settings.registers, width)) if settings.registers else None
        initialise(self, self.blocks)
        if self.register_token is not None:
            nn.init.trunc_normal_(self.register_token, std=_INIT_STD)
            self.register_token.no_decay = True  # type: ignore[attr-defined]

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Embedded patches plus positions, (B, 12, T) mV -> (B, T', width); a token sees its own patch only."""
        if n_samples is not None:
            beyond = torch.arange(x_mv.shape[-1], device=x_mv.device) >= n_samples.to(x_mv.device)[:, None]
            x_mv = x_mv.masked_fill(beyond[:, None], 0.0)
        patches: Tensor = self.embed(self.lead_scale(x_mv)).transpose(1, 2)
        if patches.dtype != torch.float64:
            patches = patches.float()  # so that the residual stream stays in 32 bits inside autocast
        return patches + self.token_positions(patches)

    def token_positions(self, tokens: Tensor) -> Tensor:
        """The part of tokens (B, T', width) that encodes their position alone: (T', width)."""
        return positions(tokens.shape[1], self.channels, tokens)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, T', width) -> (B, T', width), or with keep (B, K) int64 of those tokens alone -> (B, K, width).

        Tokens that are not `valid` are no key of the attention.
        """
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        return self._attend(tokens, valid)

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """The map of the last norm."""
        tokens = self.tokens(x_mv, n_samples)
        valid = None if n_samples is None else self._valid(tokens, n_samples)
        return [self._attend(tokens, valid).transpose(1, 2)]

    def _valid(self, tokens: Tensor, n_samples: Tensor) -> Tensor | None:
        """(B, T') bool: the tokens that hold signal; None where all are known to, for attention is faster without.

        Only n_samples on the CPU are looked at: elsewhere the answer would have to be waited for.
        """
        cells = cells_of(n_samples, self.token_stage, tokens.shape[1])
        if cells.device.type == "cpu" and bool((cells == tokens.shape[1]).all()):
            return None
        return torch.arange(tokens.shape[1], device=tokens.device) < cells.to(tokens.device)[:, None]

    def _attend(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Blocks and last norm on (B, K, width); keys outside `valid` (B, K) are left out."""
        x, registers = tokens, 0
        if self.register_token is not None:
            registers = self.register_token.shape[1]
            x = torch.cat([self.register_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        mask = None if valid is None else functional.pad(valid, (registers, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.norm(x)[:, registers:]
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), the MLP four times as wide, with GELU."""

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        width, bias = settings.width, settings.bias
        self.heads = settings.heads
        self.norm_1 = nn.LayerNorm(width, _EPS, bias=bias)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=bias)
        self.attended = nn.Linear(width, width, bias=bias)
        self.norm_2 = nn.LayerNorm(width, _EPS, bias=bias)
        self.wide = nn.Linear(width, 4 * width, bias=bias)
        self.narrow = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, K, D) -> (B, K, D); mask (B, 1, 1, K) bool is true for keys that may be looked at."""
        parts = self.queries_keys_values(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x = x + self.dropout(self.attended(found.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.dropout(self.narrow(functional.gelu(self.wide(self.norm_2(x)))))
        return out


def initialise(network: nn.Module, blocks: nn.ModuleList) -> None:
    """Truncated normal weights and no bias for all linear layers and convolutions of a network with these `Block`s."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            nn.init.trunc_normal_(module.weight, std=_INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for block in blocks:
            # 2 depth branches add up in the residual stream: its variance shall not grow with the depth
            for projection in (block.attended, block.narrow):
                projection.weight /= math.sqrt(2 * len(blocks))  # type: ignore[operator,union-attr]


def positions(count: int, width: int, like: Tensor) -> Tensor:
    """(count, width) on the device and of the type of `like`: sines of j / 10000^(2i / width), then the cosines."""
    index = torch.arange(count, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / width))
    angles = index[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)
