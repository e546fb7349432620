"""Gaussian data, whose likelihood and best denoiser are known; and schedules of other kinds than the project's own."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Exploding:
    """alpha = 1, sigma from 1e-4 to 80 in log spacing: a variance-exploding process."""

    num_steps = 1000
    first_time = 1e-3

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.exp(math.log(1e-4) + math.log(8e5) * t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(1e-4) + math.log(8e5) * t)


class Straight:
    """x_t = (1 - t)·x0 + t·noise, as in rectified flow: no signal at all at t = 1."""

    num_steps = 1000
    first_time = 1e-3

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(t))


class Gaussian(NamedTuple):
    """Independent components of known variance, ``[T]`` or ``[C, T]``, as audio of full scale 1."""

    variance: Tensor

    def draw(self, count: int, channels: int = 1, seed: int = 0) -> Tensor:
        shape = (count, channels, self.variance.shape[-1])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return noise * self.variance.sqrt()

    def nats(self, audio: Tensor) -> Tensor:
        """-log density of each element."""
        return 0.5 * (audio**2 / self.variance + torch.log(2 * math.pi * self.variance))

    def denoise(self, schedule, scale: float = 1.0) -> Callable:
        """The best denoiser of x0 = scale · audio."""

        def denoise(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = (value.to(x_t)[:, None, None] for value in schedule.alpha_sigma(t.double()))
            variance = self.variance.to(x_t) * scale**2
            normed = x_t / (alpha**2 * variance + sigma**2)
            return alpha * variance * normed, sigma * normed

        return denoise


@pytest.fixture(scope="session")
def white() -> Gaussian:
    return Gaussian(torch.ones(64, dtype=torch.float64))


@pytest.fixture(scope="session")
def coloured() -> Gaussian:
    """From 0 to -60 dB."""
    return Gaussian(10 ** torch.linspace(0, -6, 64, dtype=torch.float64))


@pytest.fixture(scope="session")
def schedules() -> dict:
    """By name: (schedule, a t_min of nearly no noise)."""
    from audio_diffusion.diffusion.schedules import cosine, linear

    return {
        "linear": (linear(), 1.01e-7),  # its values within 1e-4 of a grid point are the grid point's
        "cosine": (cosine(), 1.5e-7),
        "exploding": (Exploding(), 1e-9),
        "straight": (Straight(), 1e-4),
    }


@pytest.fixture(scope="session")
def generators() -> Callable[..., list[torch.Generator]]:
    """generators(count, first=0) -> one generator a clip."""
    return lambda count, first=0: [torch.Generator().manual_seed(first + i) for i in range(count)]
