"""Weighting of noise levels in training: the density from which t is drawn, and the weight of a sample's error.

In expectation only the product of density and weight matters (Kingma & Gao 2023, arXiv:2303.00848, section 3).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from audio_diffusion.diffusion.schedule import Schedule


class Density(Protocol):
    """Density from which t is drawn."""

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Maps u, uniform in [0, 1), to t, float32 of u's shape, non-decreasing in u."""


class Weight(Protocol):
    """Weight of the error of the noise estimate; the squared error of x0 is smaller by the factor SNR."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Returns the factor of the squared error of noise at alpha²/sigma² = snr, of snr's shape."""


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def _normal(u: Tensor) -> Tensor:
    """Uniform u -> standard normal, float64."""
    return torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))


def _known(t: Tensor, schedule: Schedule) -> Tensor:
    """Moves t to a trained time: up to the next i/T on a chain of T steps, else into [first_time, 1]; float32."""
    if schedule.num_steps is None:
        return t.clamp(schedule.first_time, 1).float()
    return (t * schedule.num_steps).ceil().clamp(1, schedule.num_steps).div(schedule.num_steps).float()


class Uniform:
    """t uniform: over {1, .. T}/T on a chain of T steps, as DDPM's algorithm 1 draws it, else over [0, 1]."""

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """u -> t."""
        if schedule.num_steps is None:
            return _known(u.double(), schedule)
        num_steps = schedule.num_steps
        return ((u.double() * num_steps).floor() + 1).clamp(max=num_steps).div(num_steps).float()


@dataclass(frozen=True)
class LogitNormal:
    """logit t ~ N(mean, std²): most at middle times (Esser et al. 2024, arXiv:2403.03206, eq. 19).

    Args:
        mean: above 0 moves to more noise.
        std: smaller is narrower.

    Raises:
        ValueError: if ``std`` is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _positive("std", self.std)

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """u -> t."""
        return _known(torch.sigmoid(self.mean + self.std * _normal(u)), schedule)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma_t/alpha_t) ~ N(mean, std²) (EDM, table 1: P_mean = -1.2, P_std = 1.2); on any schedule.

    Args:
        mean: of the logarithm of the noise level.
        std: smaller is narrower.

    Raises:
        ValueError: if ``std`` is not positive.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _positive("std", self.std)

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """u -> t."""
        return _known(schedule.time_of_log_snr(-2 * (self.mean + self.std * _normal(u))), schedule)


@dataclass(frozen=True)
class MinSnr:
    """min(SNR, gamma) on x0's error (Hang et al. 2023, arXiv:2303.09556, section 3.4); soft: SNR·gamma/(SNR + gamma)
    (Crowson et al. 2024, arXiv:2401.11605, section 3.4).

    Args:
        gamma: where the weight levels off.
        soft: without the kink.

    Raises:
        ValueError: if ``gamma`` is not positive.
    """

    gamma: float = 5.0
    soft: bool = False

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def __call__(self, snr: Tensor) -> Tensor:
        """min(SNR, gamma)/SNR, written to be 1 at SNR = 0."""
        return self.gamma / (snr + self.gamma) if self.soft else self.gamma / snr.clamp(min=self.gamma)


@dataclass(frozen=True)
class P2:
    """1/(k + SNR)^gamma on the noise's error (Choi et al. 2022, arXiv:2204.00227, eq. 8).

    Args:
        k: keeps the weight finite at SNR 0.
        gamma: strength; 0 weighs all levels alike.

    Raises:
        ValueError: if ``k`` is not positive, or ``gamma`` negative.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _positive("k", self.k)
        if self.gamma < 0:
            raise ValueError(f"gamma: expected 0 or more, got {self.gamma}")

    def __call__(self, snr: Tensor) -> Tensor:
        """1/(k + SNR)^gamma."""
        return (self.k + snr) ** -self.gamma


@dataclass(frozen=True)
class EdmWeight:
    """(sigma² + sigma_data²)/(sigma·sigma_data)² on x0's error, sigma the noise per signal (EDM, table 1).

    parameterization=edm has this weight by default; the class is for other parameterizations.

    Args:
        sigma_data: standard deviation of x0.

    Raises:
        ValueError: if it is not positive.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        _positive("sigma_data", self.sigma_data)

    def __call__(self, snr: Tensor) -> Tensor:
        """Returns the weight divided by SNR, so that it applies to the noise's error."""
        return (1 / snr + self.sigma_data**2) / self.sigma_data**2


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - log SNR) on the noise's error (Kingma & Gao 2023, arXiv:2303.00848, appendix; Hoogeboom et al.
    2024, arXiv:2410.19324, section 3): the weight falls towards cleaner levels.

    Args:
        bias: the log-SNR at which the weight is a half; a larger bias weights finer detail more.
    """

    bias: float = 2.0

    def __call__(self, snr: Tensor) -> Tensor:
        """1/(1 + SNR·e^-bias)."""
        return 1 / (1 + snr * math.exp(-self.bias))
