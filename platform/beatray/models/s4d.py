"""s4d: a diagonal state-space network (S4D), causal or seeing both sides, for CPC and latent masked prediction.

A strided convolutional stem makes local tokens; each of a few blocks filters every channel in time by a kernel that is
as long as the recording, but has only N/2 complex modes per channel, and then mixes channels. No scan, no CUDA kernel:
the kernel has a closed form and is applied by FFT.

`S4D` is the layer of Gu, Gupta, Goel and Re, "On the Parameterization and Initialization of Diagonal State Space
Models" (NeurIPS 2022, arXiv:2206.11893): A = -exp(log_a) + ib, zero-order hold, inits S4D-Lin and S4D-Inv (section 4).
Two-sided kernels follow Goel et al., "It's Raw!" (ICML 2022), with lag 0 taken once. Block and stem are those of the
S4 encoders that Strodthoff's group pretrains by CPC on ECGs (stem of convolutions, 4 layers, H 512, dropout 0.2 tied
over time, norm after the residual), with S4D in place of S4; here the stem works on 250 Hz and is centred on samples.

Contract: (B, 12, T) mV at 500 Hz -> maps [first convolution, context], 4 and `stride` samples per cell, cell j centred
on sample j * stride. The stem looks 8 samples (stride 4) or 12 (stride 8) to both sides; with direction "forward" no
cell sees further ahead than that. With n_samples, tokens of cells beyond the signal are zero before every layer, so
that the backward kernels and stacks start from rest at the end of the signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.batch_norm import ChannelNorm, Norm, build_norm
from beatray.models.encoder import Encoder, Pooling, Stage, at_least_float32, cells_of
from beatray.models.layout import Conv1d
from beatray.models.tiny import halve_rate

STATE_SPACE_LR = 1e-3
"""log_a, b and log_dt learn no faster than this: a large step moves poles by whole time constants."""

_DIRECTIONS: dict[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "both": ("forward", "backward"),
    "bidirectional": (),
}


@dataclass(frozen=True, slots=True)
class S4DSettings:
    """Settings of `s4d`."""

    norm: Norm = "global_batch"  # of the stem; "group" over the channels of each token alone, or it would see ahead
    pooling: Pooling = "mean_std"
    width: int = setting(512, "channels H of stem and blocks", at_least=1)
    layers: int = setting(4, "blocks of a stack", at_least=1)
    state: int = setting(16, "N: real state size of a channel, N/2 complex modes; even", at_least=2)
    stride: int = setting(4, "samples per token: 4 (8 ms) or 8 (16 ms)", choices=(4, 8))
    direction: Literal["forward", "both", "bidirectional"] = setting(
        "forward", "forward: a causal stack; both: a second one on reversed time; bidirectional: two-sided kernels"
    )
    init: Literal["lin", "inv"] = setting("lin", "frequencies of the modes: S4D-Lin or S4D-Inv")
    dropout: float = setting(0.2, "of whole channels of a record", at_least=0, below=1)
    pre_norm: bool = setting(False, "norm before a block, and once at the end, instead of after each residual")
    dt_min: float = setting(1e-3, "shortest step at the start, in tokens", above=0)
    dt_max: float = setting(1e-1, "longest step at the start, in tokens", above=0)

    def __post_init__(self) -> None:
        check(self)
        if self.state % 2:
            raise ValueError(f"state must be even, not {self.state}")
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min must be at most dt_max, not {self.dt_min:g} and {self.dt_max:g}")


class S4DEncoder(Encoder):
    """Convolutional stem and one or two stacks of S4D blocks; a `TokenEncoder`."""

    Settings = S4DSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"s4d": {}}
    side_by_side = ("stacks",)
    drops_tokens: bool = False

    def __init__(self, settings: S4DSettings) -> None:
        width, stride, norm = settings.width, settings.stride, settings.norm
        directions = _DIRECTIONS[settings.direction]
        stacks = max(1, len(directions))
        super().__init__(settings, [Stage(width, 4), Stage(stacks * width, stride)])
        self.token_stage, self.directions = Stage(width, stride), directions
        self.first = nn.Sequential(
            Conv1d(12, width, 7, 2, 3, bias=False), build_norm(norm, width, per_step=True), nn.ReLU()
        )
        further: list[nn.Module] = []
        # stride 8: one more strided convolution; stride 4: three of kernel 1, as in the published stem
        for kernel, step in [(3, 2)] if stride == 8 else [(1, 1)] * 3:
            conv = Conv1d(width, width, kernel, step, kernel // 2, bias=False)
            further += [conv, build_norm(norm, width, per_step=True), nn.ReLU()]
        self.further = nn.Sequential(*further)
        self.stacks = nn.ModuleList(_Stack(settings) for _ in range(stacks))

    def rescale_rate(self, factor: float) -> None:
        """Fit every kernel to tokens of another rate: see `S4D.rescale_rate`. The stem knows only its own rate."""
        for module in self.modules():
            if isinstance(module, S4D):
                module.rescale_rate(factor)

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Output of the stem, (B, 12, T) mV -> (B, T', width); zero beyond the signal when n_samples is given."""
        tokens_bct = self._stem(x_mv)[1]
        return _keep_valid(tokens_bct, self._valid(tokens_bct, n_samples)).transpose(1, 2)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, T', width) -> (B, T', channels). ValueError with `keep`: time steps cannot be left out of a filter."""
        if keep is not None:
            raise ValueError("s4d cannot leave tokens out: its layers filter over evenly spaced time steps")
        there = None if valid is None else valid[:, None, :]
        return self._context(tokens.transpose(1, 2), there).transpose(1, 2)

    def encode_layers(self, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """What each layer makes of the tokens, (B, T', channels), first to last; the last is what `encode` gives.

        With pre_norm each goes through the last norm: what lies between such layers has no scale of its own.
        """
        there = None if valid is None else valid[:, None, :]
        return [_joined(*layer).transpose(1, 2) for layer in self._layers(tokens.transpose(1, 2), there)]

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps of the first convolution, (B, width, T / 4), and of the context, (B, channels, T')."""
        first, tokens_bct = self._stem(x_mv)
        return [first, self._context(tokens_bct, self._valid(tokens_bct, n_samples))]

    def _stem(self, x_mv: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(halve_rate(self.lead_scale(x_mv)))
        return first, self.further(first)

    def _valid(self, tokens_bct: Tensor, n_samples: Tensor | None) -> Tensor | None:
        """(B, 1, T') bool: the cells that stand for a sample of the signal."""
        if n_samples is None:
            return None
        positions = torch.arange(tokens_bct.shape[-1], device=tokens_bct.device)
        cells = cells_of(n_samples.to(tokens_bct.device), self.token_stage, tokens_bct.shape[-1])
        return (positions < cells[:, None])[:, None]

    def _context(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, width, T') -> (B, channels, T'), both halves in the time order of the input."""
        return _joined(*self._layers(x, valid)[-1])

    def _layers(self, x: Tensor, valid: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Of each layer the output (B, width, T') of each stack; the second reads, and gives, reversed time."""
        ahead = self.stacks[0](x, valid)
        if len(self.stacks) == 1:
            return [(output,) for output in ahead]
        behind = self.stacks[1](x.flip(-1), None if valid is None else valid.flip(-1))
        return list(zip(ahead, behind, strict=True))


def _joined(ahead: Tensor, *behind: Tensor) -> Tensor:
    return torch.cat([ahead, *(half.flip(-1) for half in behind)], dim=1) if behind else ahead


class _Stack(nn.Module):
    def __init__(self, settings: S4DSettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(S4Block(settings) for _ in range(settings.layers))
        self.final_norm = ChannelNorm(settings.width) if settings.pre_norm else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None) -> list[Tensor]:
        outputs = []
        for block in self.blocks:
            x = block(x, valid)
            outputs.append(self.final_norm(x))
        return outputs


class S4Block(nn.Module):
    """S4D, GELU, dropout, channel mixing through a GLU, dropout; added to the input; norm after it, or before S4D."""

    def __init__(self, settings: S4DSettings) -> None:
        super().__init__()
        width = settings.width
        self.pre_norm = settings.pre_norm
        self.norm = ChannelNorm(width)
        self.s4d = S4D(
            width,
            settings.state,
            two_sided=settings.direction == "bidirectional",
            init=settings.init,
            dt_min=settings.dt_min,
            dt_max=settings.dt_max,
            stride=settings.stride,
        )
        self.mix = Conv1d(width, 2 * width, 1)
        self.dropout = nn.Dropout1d(settings.dropout)  # of whole channels: the filter would fill in single steps

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, H, L) -> (B, H, L); cells outside `valid` (B, 1, L) enter as zero and hold nothing of worth."""
        inner = _keep_valid(self.norm(x) if self.pre_norm else x, valid)
        inner = self.dropout(functional.gelu(self.s4d(inner)))
        out: Tensor = x + self.dropout(functional.glu(self.mix(inner), dim=1))
        return out if self.pre_norm else self.norm(out)


class S4D(nn.Module):
    """y = k * u + D u for every channel alone: (B, H, L) -> (B, H, L), float32 or, of float64, float64.

    k_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l), the zero-order hold of x' = A x + u, y = 2 Re C x, whose
    N/2 modes stand for conjugate pairs. `two_sided` adds a kernel of its own, with the same poles, for lags -1, -2, ...
    `stride`, in input samples per token, only tells `exported_form` how many tokens a recording has.

    Parameters say to the optimiser `no_decay` and, where time constants are concerned, `max_lr`. Everything between u
    and y is float32 under autocast, as FFTs have no half precision; a batch of no records is legal.
    """

    def __init__(
        self,
        width: int,
        state: int,
        *,
        two_sided: bool = False,
        init: str = "lin",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.stride = stride
        modes = state // 2
        self.log_a = nn.Parameter(torch.full((width, modes), math.log(0.5)))
        self.b = nn.Parameter(_frequencies(init, state).repeat(width, 1))
        self.log_dt = nn.Parameter(torch.empty(width).uniform_(math.log(dt_min), math.log(dt_max)))
        # complex normal with E|C|^2 = 1, as real pairs, which every optimiser and reducer understands
        self.C = nn.Parameter(torch.randn(2 if two_sided else 1, width, modes, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(width))
        for parameter in (self.log_a, self.b, self.log_dt, self.C, self.D):
            parameter.no_decay = True  # type: ignore[attr-defined]
        for parameter in (self.log_a, self.b, self.log_dt):
            parameter.max_lr = STATE_SPACE_LR  # type: ignore[attr-defined]

    def kernels(self, length: int) -> Tensor:
        """k_0 .. k_{length-1}, without D: (1 or 2, H, length) float32 or float64. The second is for negative lags.

        exp(dt A l) with l = q R + r is a product of two factors, so that about 2 sqrt(length) exponentials per mode are
        taken instead of `length`, and no tensor of (H, N/2, length) is held, forward or backward.
        """
        with torch.autocast(self.D.device.type, enabled=False):
            log_a, frequency, log_dt, weights = (at_least_float32(p) for p in (self.log_a, self.b, self.log_dt, self.C))
            dt, decay = log_dt.exp()[:, None], -log_a.exp()
            re, im = dt * decay, dt * frequency
            # exp(z) - 1 without cancellation: the plain float32 difference is off by 6e-5 where |z| = 5e-4
            hold_re = torch.expm1(re) * im.cos() - 2.0 * (0.5 * im).sin().square()
            hold_im = re.exp() * im.sin()
            size = decay.square() + frequency.square()
            hold_re, hold_im = (
                (hold_re * decay + hold_im * frequency) / size,
                (hold_im * decay - hold_re * frequency) / size,
            )
            c_re, c_im = weights.unbind(-1)
            c_re, c_im = c_re * hold_re - c_im * hold_im, c_re * hold_im + c_im * hold_re
            inner = math.isqrt(max(0, length - 1)) + 1
            steps = torch.arange(inner, device=re.device, dtype=re.dtype)
            jumps = torch.arange(-(-length // inner), device=re.device, dtype=re.dtype) * inner
            fine_re, fine_im = _powers(re, im, steps)
            jump_re, jump_im = _powers(re, im, jumps)
            coarse_re = c_re[..., None] * jump_re - c_im[..., None] * jump_im
            coarse_im = c_re[..., None] * jump_im + c_im[..., None] * jump_re
            # element by element, not as a matrix product: that may be TF32, where three digits are left
            total = coarse_re.new_zeros(())
            for n in range(re.shape[-1]):
                total = total + coarse_re[:, :, n, :, None] * fine_re[:, n, None, :]
                total = total - coarse_im[:, :, n, :, None] * fine_im[:, n, None, :]
            return 2.0 * total.flatten(-2)[..., :length]

    def forward(self, u: Tensor) -> Tensor:
        """(B, H, L) -> (B, H, L). Linear, not circular: the FFT is at least 2 L long."""
        with torch.autocast(u.device.type, enabled=False):
            u, length = at_least_float32(u), u.shape[-1]
            kernels = self.kernels(length)
            gain = at_least_float32(self.D)[:, None]
            if u.shape[0] == 0:
                # rfft refuses an empty batch; the kernels stay in the graph, for ranks reduce every gradient
                return u * (gain + kernels.sum(0))
            n = next_fast_len(2 * length, real=True)
            if len(kernels) == 2:  # lag -l lies at n - l; lag 0 comes from the first alone
                between = kernels.new_zeros(kernels.shape[1], n - 2 * length + 1)
                response = torch.cat([kernels[0], between, kernels[1, :, 1:].flip(-1)], dim=-1)
            else:
                response = kernels[0]
            y: Tensor = torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(response, n), n)[..., :length]
            return y + gain * u

    @torch.no_grad()
    def rescale_rate(self, factor: float) -> None:
        """Multiply dt by `factor` = old rate / new rate, so that the kernels keep their shape in seconds.

        Zero-shot resampling: tokens of half the rate (factor 2) meet the same filter. ValueError unless positive.
        """
        if not factor > 0:
            raise ValueError(f"factor must be positive, not {factor}")
        self.log_dt.add_(math.log(factor))

    def to_conv(self, length: int) -> nn.Module:
        """The same as a convolution with the kernel as it is now, for up to `length` tokens: no FFT, no complex number.

        For exporters. Costs length^2 per channel. A longer input is refused.
        """
        with torch.no_grad():
            kernels = self.kernels(length)
            now = kernels[0].clone()
            now[:, 0] += at_least_float32(self.D)
            ahead = kernels[1, :, 1:] if len(kernels) == 2 else None
        return _KernelConv(now, ahead)

    def exported_form(self, n_samples: int) -> nn.Module:
        """What export/programs.py puts in place of this layer for inputs of up to n_samples samples."""
        return self.to_conv(-(-n_samples // self.stride))


class _KernelConv(nn.Module):
    """Depthwise convolution with fixed kernels: `now` (H, L) for lags 0 .. L-1, `ahead` (H, L-1) for -1 .. -(L-1)."""

    weight: Tensor
    room: Tensor

    def __init__(self, now: Tensor, ahead: Tensor | None) -> None:
        super().__init__()
        width, self.length = now.shape
        # a convolution of torch is a correlation: the oldest lag comes first
        weight = now.flip(-1) if ahead is None else torch.cat([now.flip(-1), ahead], dim=-1)
        self.padding = (self.length - 1, 0 if ahead is None else self.length - 1)
        self.register_buffer("weight", weight[:, None].contiguous())
        self.register_buffer("room", torch.zeros(self.length, dtype=now.dtype))
        self.width = width

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[-1]
        y = functional.conv1d(functional.pad(u.to(self.weight.dtype), self.padding), self.weight, groups=self.width)
        # beyond `length` the kernel would be cut off in silence; a sum with too few zeros fails in every runtime
        return y + self.room[:length]


def _frequencies(init: str, state: int) -> Tensor:
    """b (N/2,): S4D-Lin pi n; S4D-Inv (N / pi)(N / (2n + 1) - 1)."""
    n = torch.arange(state // 2, dtype=torch.float64)
    b = math.pi * n if init == "lin" else state / math.pi * (state / (2 * n + 1) - 1)
    return b.to(torch.get_default_dtype())


def _powers(re: Tensor, im: Tensor, lags: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp((re + i im) lag): (H, n), (l,) -> (H, n, l) each."""
    size, angle = (re[..., None] * lags).exp(), im[..., None] * lags
    return size * angle.cos(), size * angle.sin()


def _keep_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else x.masked_fill(~valid, 0.0)
