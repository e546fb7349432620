"""Variational bound on -log p of 16-bit audio under a diffusion model.

Every Gaussian process is normalised to z = cos·x0 + sin·noise = x_t / √(alpha_t² + sigma_t²), with
cos² = SNR/(1 + SNR); its velocity is v = cos·noise - sin·x0 (Salimans & Ho 2022, arXiv:2202.00512). The bound and the
flow (``metrics.flow``) are written in v and the log-SNR alone, so they hold for every schedule and parameterization,
and are well conditioned from nearly clean to nearly noise.

Audio counts as 16-bit: x = k/32768, k = -32768 .. 32767. Padding is silence that is known from the clip's length: only
the clip's own samples are coded, and the bound is one of -log p(clip | its length).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_diffusion.diffusion.float64 import in_double

LEVELS = 2**15  # quantisation steps from 0 to full scale
_LEAST_LOG_SNR = -20.0  # counts as pure noise; used if a schedule ends without any signal


class Schedule(Protocol):
    """The members of a noise schedule that the bound needs; t is in [0, 1], log_snr falls with t."""

    @property
    def num_steps(self) -> int | None: ...  # T of a chain of steps; None: every t is trained

    @property
    def first_time(self) -> float: ...  # the cleanest that is trained

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    def log_snr(self, t: Tensor) -> Tensor: ...


#: denoise(x_t [B, C, T], t [B]) -> estimates of x0 and noise
Denoise = Callable[[Tensor, Tensor], Sequence[Tensor]]


class Bound(NamedTuple):
    """The three parts of the bound on -log p of each clip, in nats, float64 ``[B]``, and details of the second.

    The last four are float64 ``[B, K]``: the noise levels drawn, the width in log-SNR that each represents, its
    contribution to ``diffusion``, and the mean squared error of the noise estimate at it.
    """

    prior: Tensor  # L_T: x_1 is not quite noise
    diffusion: Tensor  # L_{t-1}, summed over t: the network's steps
    reconstruction: Tensor  # L_0: from x at the least noise to the 16-bit sample
    log_snr: Tensor
    width: Tensor
    nats: Tensor
    noise_error: Tensor


def quantise(audio: Tensor) -> Tensor:
    """Quantises audio (full scale ±1) to 16 bits: rounds it to k/32768 and clips k to -32768 .. 32767."""
    return (audio * LEVELS).round().clamp(-LEVELS, LEVELS - 1) / LEVELS


def log_bin(x: Tensor, mean: Tensor, std: Tensor | float, scale: float) -> Tensor:
    """log P of the 16-bit bin [x - 1/65536, x + 1/65536]·scale under N(mean, std²), the outermost bins open; float64.

    DDPM eq. 13, for 16 bits. ``x`` is scale·k/32768; ``mean`` and ``std`` are on the same scale.
    """
    x, mean, half = in_double(x), in_double(mean), scale / LEVELS / 2
    low = torch.where(x < -scale + half, -torch.inf, (x - half - mean) / std)
    high = torch.where(x > scale - 3 * half, torch.inf, (x + half - mean) / std)
    above = low + high > 0  # the upper tail is the lower one of -x: no difference of numbers near 1
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    upper = torch.special.log_ndtr(high)
    return upper + torch.log(-torch.expm1(torch.special.log_ndtr(low) - upper))


def log_density(x: Tensor, mean: Tensor, std: float, scale: float | None) -> Tensor:
    """``log_bin``, or without a scale the log of the density of x under N(mean, std²); float64."""
    if scale is not None:
        return log_bin(x, mean, std, scale)
    error = (in_double(x) - in_double(mean)) / std
    return -0.5 * error.square() - math.log(std) - 0.5 * math.log(2 * math.pi)


def ends(schedule: Schedule, t_min: float) -> tuple[float, float]:
    """The log-SNR at ``t_min``, the least noise, and at t = 1."""
    most, least = schedule.log_snr(torch.tensor([t_min, 1.0], dtype=torch.float64)).tolist()
    return most, max(least, _LEAST_LOG_SNR)


def time_at(schedule: Schedule, log_snr: Tensor, t_min: float) -> Tensor:
    """The t in [t_min, 1] where the schedule has this log-SNR, by bisection; float64 of log_snr's shape, on the CPU."""
    low, high = torch.full_like(log_snr, t_min), torch.ones_like(log_snr)
    for _ in range(45):
        middle = (low + high) / 2
        cleaner = schedule.log_snr(middle) > log_snr
        low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
    return (low + high) / 2


def per_clip(value: Tensor, like: Tensor) -> Tensor:
    """``[B]`` -> ``[B, 1, 1]`` on ``like``'s device, in its dtype."""
    return value.to(like)[:, None, None]


def normal(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal noise of ``like``'s shape, clip i from its own CPU generator: the same in any batch."""
    shape = like.shape[1:]
    return torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]).to(like)


def uniform(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 ``[B, *shape]`` on the CPU, clip i from its own generator."""
    return torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])


def _draw_levels(
    schedule: Schedule, t_min: float, num_steps: int | None, num_levels: int, u: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws K noise levels of each clip, float64 ``[K, B]``: t, log-SNR, the factor c of c/2·|v - v̂|², and the width in
    log-SNR that each level represents.

    The sum (over t) or integral (over log-SNR) is estimated without bias from K evenly spaced points with a random
    start on the scale of log(1 + SNR), on which all points contribute equally for white noise of unit variance.
    """
    points = (torch.arange(num_levels)[:, None] + u) / num_levels
    if num_steps is None:
        top, bottom = (F.softplus(torch.tensor(end, dtype=torch.float64)) for end in ends(schedule, t_min))
        information = bottom + (top - bottom) * points
        t = time_at(schedule, information + torch.log(-torch.expm1(-information)), t_min)
        log_snr, share = schedule.log_snr(t), (top - bottom) / num_levels
        return t, log_snr, share.expand_as(t), share / torch.sigmoid(log_snr)
    grid = torch.linspace(t_min, 1, num_steps, dtype=torch.float64)
    log_snr = schedule.log_snr(grid)
    gains = -F.softplus(log_snr).diff()  # of the steps from grid[i + 1] to grid[i]
    if num_levels >= len(gains):
        step = torch.arange(len(gains))[:, None].expand(-1, len(u))
        weight = torch.ones_like(step, dtype=torch.float64)
    else:
        share = gains / gains.sum()
        step = torch.searchsorted(share.cumsum(0), points, right=True).clamp(max=len(gains) - 1)
        weight = 1 / (num_levels * share[step])
    snr, width = log_snr.exp(), -log_snr.clamp(min=_LEAST_LOG_SNR).diff()
    factor = (snr[step] - snr[step + 1]) / (1 + snr[step + 1])
    return grid[step + 1], log_snr[step + 1], weight * factor, weight * width[step]


@dataclass(frozen=True)
class _Estimates:
    """The network's estimates of given clips at given times."""

    denoise: Denoise
    schedule: Schedule
    x0: Tensor
    own: Tensor  # bool, x0's shape: False on padding
    generators: Sequence[torch.Generator]

    def total(self, values: Tensor) -> Tensor:
        """Sums values over each clip, without padding, in float64."""
        values = in_double(values)
        return torch.where(self.own.to(values.device), values, 0.0).flatten(1).sum(1)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x̂0, and the squared error of v summed over the clip, with fresh noise."""
        x0, t, noise = self.x0, t.to(self.x0.dtype), normal(self.generators, self.x0)
        alpha, sigma = (per_clip(value, x0) for value in self.schedule.alpha_sigma(t.double()))
        found_x0, found_noise = self.denoise(alpha * x0 + sigma * noise, t.to(x0.device))
        error = alpha * (noise - found_noise) - sigma * (x0 - found_x0)
        return found_x0, self.total(error.square() / (alpha.square() + sigma.square()))


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    mask: Tensor,
    scale: float | None,
    generators: Sequence[torch.Generator],
    *,
    t_min: float,
    num_steps: int | None,
    num_levels: int = 32,
) -> Bound:
    """Computes the bound of each clip (DDPM eq. 5) for a chain of T = ``num_steps`` even steps from t = 1 to ``t_min``.

    Each step has the variance of the posterior (β̃, DDPM eq. 7), so its KL is ½(SNR_s - SNR_t)·|x0 - x̂0|² (Kingma et
    al. 2021, arXiv:2107.00630, eq. 13 and after). If ``num_steps`` is None, the bound is the limit of infinitely many
    steps, ½∫|noise - estimate|² d log-SNR (eqs. 17 and 18). L_0 is the probability of the sample's 16-bit bin under
    N(x̂0, sigma²/alpha²) at ``t_min``, or without a ``scale`` the density of x0. The model's x_1 is
    N(0, alpha² + sigma²), for variance-preserving schedules N(0, I).

    Args:
        denoise: estimates x0 and noise from x_t and t.
        schedule: noise schedule of the process.
        x0: clean clips ``[B, D, L]``, encoded from audio rounded by ``quantise``.
        mask: bool, broadcastable to x0, False on padding.
        scale: x0 = scale · audio; None if the values of x0 are not single samples: the bound is then on its density.
        generators: one per clip, on the CPU, from which all noise of the clip is drawn.
        t_min: time of the least noise; on a chain, 1/T is the least in training.
        num_steps: number of steps T; None for continuous time.
        num_levels: network evaluations for the diffusion part; if the chain has no more steps, each is evaluated once.
    """
    own = mask.expand_as(x0)
    dims = own.flatten(1).sum(1).clamp(min=1)
    estimates = _Estimates(denoise, schedule, x0, own, generators)
    times, log_snr, factor, width = _draw_levels(schedule, t_min, num_steps, num_levels, uniform(generators))
    errors = [estimates.at(t)[1].cpu() for t in times]
    error = torch.stack(errors) if errors else torch.zeros_like(times)  # T = 1 has no such steps
    nats = 0.5 * factor * error

    most, least = ends(schedule, t_min)
    cos2, log1p_snr = torch.sigmoid(torch.tensor(least)).item(), F.softplus(torch.tensor(least)).item()
    x0_last, _ = estimates.at(torch.full((len(x0),), t_min, dtype=torch.float64))
    return Bound(
        prior=estimates.total(0.5 * (cos2 * (in_double(x0).square() - 1) + log1p_snr)).cpu(),
        diffusion=nats.sum(0),
        reconstruction=-estimates.total(log_density(x0, x0_last, math.exp(-most / 2), scale)).cpu(),
        log_snr=log_snr.T,
        width=width.T,
        nats=nats.T,
        noise_error=(torch.sigmoid(log_snr) * error / dims.cpu()).T,
    )
