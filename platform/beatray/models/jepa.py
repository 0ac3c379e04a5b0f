"""The predictor of JEPA: a narrow transformer that fills in masked tokens from those that were kept.

Weimann and Conrad (arXiv:2410.13867): kept tokens through a linear layer to half the width, a learned token for each
that is masked, positions on both, blocks and last norm as in `vit`, a linear layer back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.models.vit import Block, ViTSettings, initialise, positions


class TokenPredictor(nn.Module):
    """Kept tokens of `channels` and the positions of masked ones -> masked tokens of `channels`."""

    def __init__(self, channels: int, settings: ViTSettings) -> None:
        super().__init__()
        width, bias = settings.width, settings.bias
        self.enter = nn.Linear(channels, width, bias=bias)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.mask_token.no_decay = True  # type: ignore[attr-defined]
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, 1e-6, bias=bias)
        self.out = nn.Linear(width, channels, bias=bias)
        initialise(self, self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, kept: Tensor, kept_at: Tensor, masked_at: Tensor, count: int, there: Tensor | None) -> Tensor:
        """kept (B, K, D) at positions kept_at (B, K) of `count`, masked_at (B, M) -> (B, M, D).

        `there` (B, K + M) bool marks which of both, kept ones first, there are; None: all.
        """
        table = positions(count, len(self.mask_token), self.mask_token)
        x = torch.cat([self.enter(kept) + table[kept_at], self.mask_token + table[masked_at]], dim=1)
        mask = None if there is None else there[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.out(self.norm(x[:, kept.shape[1] :]))
        return out
