"""S4D: a filter in time of every channel alone, as long as the recording, with few complex modes per channel.

Gu, Gupta, Goel and Re, "On the Parameterization and Initialization of Diagonal State Space Models" (NeurIPS 2022,
arXiv:2206.11893): A = -exp(log_a) + ib, zero-order hold, inits S4D-Lin and S4D-Inv (section 4). Two-sided kernels
follow Goel et al., "It's Raw!" (ICML 2022), with lag 0 taken once. The network around it is in s4d.py.
"""

from __future__ import annotations

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional

from beatray.models.encoder import at_least_float32

STATE_SPACE_LR = 1e-3
"""log_a, b and log_dt learn no faster than this: a large step moves poles by whole time constants."""


class S4D(nn.Module):
    """y = k * u + D u for every channel alone: (B, H, L) -> (B, H, L), float32 or, of float64, float64.

    k_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l), the zero-order hold of x' = A x + u, y = 2 Re C x, whose
    N/2 modes stand for conjugate pairs. `two_sided` adds a kernel of its own, with the same poles, for lags -1, -2, ...
    `stride`, in input samples per token, only gives `exported_form` how many tokens a recording has.

    Parameters carry for the optimizer `no_decay` and, where time constants are concerned, `max_lr`. Everything between
    u and y is float32 under autocast, as FFTs have no half precision; a batch of no records is legal.
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
