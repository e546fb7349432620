"""Noise schedules: the factors of signal and noise in x_t = alpha_t·x0 + sigma_t·noise.

Time t runs from 0 (clean) to 1 (noise). Variance preserving, alpha_t² + sigma_t² = 1: the chain of T steps of DDPM (Ho
et al. 2020, arXiv:2006.11239, eq. 4), whose integer index is t·T. Input scaled: the same with a fainter signal.
Variance exploding, alpha_t = 1: EDM (Karras et al. 2022, arXiv:2206.00364). Flow, alpha_t = 1 - t: rectified flow.
Solvers do not depend on the kind: they use only alpha_t, sigma_t and the time of a log-SNR.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.diffusion.schedule import Schedule

#: largest -log ᾱ that is distinguished from no signal at all: alpha_t is 2e-22 there
_NO_SIGNAL = 100.0
#: distance, in steps, within which t is treated as the grid point i/T, which it misses only by rounding
_ON_GRID = 1e-4


class Steps(Schedule):
    """A chain of T steps, given by the noise each step adds; variance preserving, unless its input is scaled.

    Between the T grid points the β of the step is spread evenly, i.e. -log ᾱ is linear in t: the piecewise
    constant form of the VP-SDE (Song et al. 2021, arXiv:2011.13456, eq. 11) that passes through every ᾱ_i.

    Args:
        betas: β_1 .. β_T, each inside (0, 1), the last up to 1 (no signal left at t = 1); float64 ``[T]``.
        input_scale: factor on alpha_t = √(Π (1 - β)), see ``input_scaled``.

    Raises:
        ValueError: if there is no step, a β is out of range, or the scale is not positive.
    """

    def __init__(self, betas: Tensor, input_scale: float = 1.0):
        betas = torch.as_tensor(betas, dtype=torch.float64).flatten()
        if len(betas) == 0:
            raise ValueError("betas: expected at least one step, got none")
        if not bool((betas > 0).all() & (betas[:-1] < 1).all() & (betas[-1] <= 1)):
            raise ValueError(
                f"betas: expected every β inside (0, 1), the last at most 1, got {betas.min():.6g} to {betas.max():.6g}"
            )
        if not input_scale > 0:
            raise ValueError(f"input_scale: expected a positive number, got {input_scale}")
        self.kind = "variance preserving" if input_scale == 1 else "input scaled"
        self.input_scale = input_scale
        self.num_steps: int = len(betas)
        self.first_time = 1 / len(betas)
        #: -log ᾱ at t = 0, 1/T, .. 1
        self.neg_log_alpha_bar = torch.cat(
            [torch.zeros(1, dtype=torch.float64), (-torch.log1p(-betas)).cumsum(0).clamp(max=_NO_SIGNAL)]
        )
        self._alpha_sigma = list(zip(*(value.tolist() for value in self.alpha_sigma(self.times)), strict=True))

    @property
    def times(self) -> Tensor:
        """The grid points 0, 1/T .. 1, float64 ``[T + 1]``."""
        return torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps

    @property
    def alphas(self) -> Tensor:
        """alpha_t at 0, 1/T .. 1, float64 ``[T + 1]``."""
        return self.input_scale * torch.exp(-0.5 * self.neg_log_alpha_bar)

    def neg_log_of(self, log_snr: Tensor) -> Tensor:
        """-log Π (1 - β) = log(1 + input_scale²/SNR) where the log-SNR is ``log_snr``, of its shape; float64."""
        return torch.nn.functional.softplus(2 * math.log(self.input_scale) - in_double(log_snr))

    def _interpolate(self, t: Tensor) -> Tensor:
        """-log ᾱ_t, of t's shape and dtype."""
        # in t's dtype before it is moved, for devices without float64; CUDA does not wait for the copy of a few kB
        table = self.neg_log_alpha_bar.to(t.dtype).to(t.device, non_blocking=t.device.type == "cuda")
        position = t.clamp(0, 1) * self.num_steps
        position = torch.where((position - position.round()).abs() < _ON_GRID, position.round(), position)
        left = position.floor().clamp(max=self.num_steps - 1).long()
        return torch.lerp(table[left], table[left + 1], position - left)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, of t's shape and dtype; (input_scale, 0) at t = 0."""
        neg_log = self._interpolate(t)
        return self.input_scale * torch.exp(-0.5 * neg_log), torch.sqrt(-torch.expm1(-neg_log))

    def at(self, t: float) -> tuple[float, float]:
        """alpha_t and sigma_t as plain numbers, looked up at a grid point."""
        position = t * self.num_steps
        index = round(position)
        if 0 <= index <= self.num_steps and abs(position - index) < _ON_GRID:
            return self._alpha_sigma[index]
        return super().at(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t² / sigma_t²), of t's shape and dtype; inf at t = 0."""
        neg_log = self._interpolate(t)
        return 2 * math.log(self.input_scale) - neg_log - torch.log(-torch.expm1(-neg_log))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``: ``neg_log_of``, interpolated between the grid points."""
        neg_log = self.neg_log_of(log_snr)
        table = self.neg_log_alpha_bar.to(neg_log.device)
        neg_log = neg_log.clamp(max=table[-1])
        right = torch.searchsorted(table, neg_log).clamp(1, self.num_steps)
        left_value, right_value = table[right - 1], table[right]
        position = right - 1 + (neg_log - left_value) / (right_value - left_value)
        return (position / self.num_steps).to(log_snr.dtype).to(log_snr.device)


class VarianceExploding(Schedule):
    """alpha_t = 1 and log sigma_t linear in t from ``sigma_min`` to ``sigma_max``: EDM's process on the noise levels of
    the VE-SDE (Song et al. 2021, arXiv:2011.13456, appendix C).

    The network's t is therefore the noise level on a log scale, as in EDM (table 1, c_noise). The process's density
    determines the trained levels; EDM's is ``weighting.LogNormal``.

    Args:
        sigma_min: sigma_0. To remove noise at -60 dB of the data it must be 0.001 or less.
        sigma_max: sigma_1.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """

    kind = "variance exploding"
    first_time = 0.0

    def __init__(self, sigma_min: float = 3e-5, sigma_max: float = 80.0):
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.log_sigma_min, self.log_sigma_max = math.log(sigma_min), math.log(sigma_max)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and sigma_t."""
        return torch.ones_like(t), torch.exp(-0.5 * self.log_snr(t))

    def at(self, t: float) -> tuple[float, float]:
        """1 and sigma_t."""
        return 1.0, math.exp(self.log_sigma_min + (self.log_sigma_max - self.log_sigma_min) * min(max(t, 0.0), 1.0))

    def log_snr(self, t: Tensor) -> Tensor:
        """-2·log sigma_t."""
        return -2 * (self.log_sigma_min + (self.log_sigma_max - self.log_sigma_min) * t.clamp(0, 1))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``."""
        return ((-0.5 * log_snr - self.log_sigma_min) / (self.log_sigma_max - self.log_sigma_min)).clamp(0, 1)


class Flow(Schedule):
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): x_t = (1 - t)·x0 + t·noise, a straight line.

    Args:
        floor_db: noise at which sampling ends, in dB of the data; training covers every t in (0, 1).

    Raises:
        ValueError: if the floor is not negative.
    """

    kind = "flow"

    def __init__(self, floor_db: float = -90.0):
        if not floor_db < 0:
            raise ValueError(f"floor_db: expected a negative number of dB, got {floor_db}")
        ratio = 10 ** (floor_db / 20)
        self.first_time = ratio / (1 + ratio)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - t and t."""
        return 1 - t, t

    def at(self, t: float) -> tuple[float, float]:
        """1 - t and t."""
        return 1 - t, t

    def log_snr(self, t: Tensor) -> Tensor:
        """2·log((1 - t)/t)."""
        return -2 * torch.logit(t)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``."""
        return torch.sigmoid(-0.5 * log_snr)


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Steps:
    """β rising linearly from ``beta_start`` to ``beta_end`` over T = ``num_steps`` (DDPM, section 4)."""
    return Steps(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))


def scaled_linear(num_steps: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012) -> Steps:
    """√β rising linearly (latent diffusion, Rombach et al. 2022, arXiv:2112.10752)."""
    return Steps(torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64).square())


def _from_alpha_bar(alpha_bar: Tensor, max_beta: float) -> Steps:
    """The chain of steps with ᾱ given at 0, 1/T, .. 1, each β clipped to ``max_beta``."""
    return Steps((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Steps:
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t + s)/(1 + s)·π/2) (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17).

    Args:
        num_steps: T.
        offset: the paper's s, which keeps β from vanishing near t = 0.
        max_beta: β is clipped to this near t = 1, as in the paper.
    """
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    return _from_alpha_bar(torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, max_beta)


def sigmoid(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, temperature: float = 1.0, max_beta: float = 0.999
) -> Steps:
    """ᾱ_t falls as a sigmoid from ``start`` to ``end`` (Jabri et al. 2022, arXiv:2212.11972, algorithm 1; Chen 2023,
    arXiv:2301.10972); a higher ``temperature`` is closer to linear.

    Raises:
        ValueError: unless start < end and the temperature is positive.
    """
    if not (start < end and temperature > 0):
        raise ValueError(f"start: expected start < end and temperature > 0, got {start}, {end} and {temperature}")
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    falling = torch.sigmoid(-(start + (end - start) * t) / temperature)
    alpha_bar = (falling - falling[-1]) / (falling[0] - falling[-1])
    return _from_alpha_bar(alpha_bar, max_beta)


def explicit(alphas: Sequence[float]) -> Steps:
    """The schedule with the given α_1 .. α_T = 1 - β_t (DDPM's α, one per step, *not* ᾱ)."""
    return Steps(1 - torch.tensor(list(alphas), dtype=torch.float64))


def lowered(schedule: Steps, floor_db: float = -90.0, prepended_steps: int = 30) -> Steps:
    """Extends ``schedule`` to lower noise by ``prepended_steps`` steps that are even in log-SNR.

    Common schedules end at a noise of -40 dB relative to the data, which is heard as hiss, because no sampler can
    remove noise at levels that the network was not trained on. The first few steps of ``schedule``, which are coarser
    in log-SNR than the new ones, are left out; all others are kept.

    Args:
        schedule: the schedule that follows.
        floor_db: smallest noise, 20·log10(sigma_t/alpha_t).
        prepended_steps: number of steps prepended below the schedule's lowest noise. Each is trained as often as any
            other step.

    Raises:
        ValueError: if there is no step, or ``schedule`` starts below the floor already.
    """
    own = schedule.log_snr(schedule.times[1:])
    floor = -floor_db / 10 * math.log(10)
    check_at_least_one(prepended_steps=prepended_steps)
    if floor <= own[0]:
        starts_at = -10 * own[0].item() / math.log(10)
        raise ValueError(f"floor_db: expected less than the {starts_at:.1f} dB it starts at, got {floor_db}")
    finer = own[:-1] - own[1:] <= (floor - own[:-1]) / prepended_steps
    join = int(finer.nonzero()[0]) if bool(finer.any()) else 0
    low = schedule.neg_log_of(torch.linspace(floor, own[join].item(), prepended_steps + 1, dtype=torch.float64))
    neg_log = torch.cat([torch.zeros(1, dtype=torch.float64), low, schedule.neg_log_alpha_bar[join + 2 :]])
    return Steps(-torch.expm1(-neg_log.diff()), schedule.input_scale)


def zero_terminal_snr(schedule: Steps) -> Steps:
    """Shifts and scales √ᾱ of ``schedule`` so that no signal is left at t = 1 and the first step is unchanged (Lin et
    al. 2023, arXiv:2305.08891, algorithm 1). It works with V and X0, since noise does not determine x0 at t = 1."""
    alpha = torch.exp(-0.5 * schedule.neg_log_alpha_bar)
    rescaled = (alpha - alpha[-1]) * alpha[1] / (alpha[1] - alpha[-1])
    bars = torch.cat([torch.ones(1, dtype=torch.float64), rescaled[1:].square()])
    return Steps(1 - bars[1:] / bars[:-1], schedule.input_scale)


def input_scaled(schedule: Steps, scale: float) -> Steps:
    """x_t = scale·√ᾱ_t·x0 + √(1 - ᾱ_t)·noise, ᾱ that of ``schedule`` (Chen 2023, arXiv:2301.10972, section 2.2).

    A schedule of few small β leaves signal in x_T, but still ends nearly in noise if the data are quiet relative to the
    noise. DiffWave relies on this, since its waveforms are not normalised. With a scaled input, samplers know the level
    of x_T and place their steps accordingly. With an x0 of small variance they start too loud, and for quiet data only
    stochastic samplers recover. It works with Epsilon and X0.

    Args:
        schedule: √ᾱ_t and √(1 - ᾱ_t).
        scale: standard deviation of the signal in x_t at t = 0, for data of unit variance.

    Raises:
        ValueError: if the scale is not positive.
    """
    return Steps(-torch.expm1(-schedule.neg_log_alpha_bar.diff()), schedule.input_scale * scale)
