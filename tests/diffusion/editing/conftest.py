"""Stationary Gaussian signals: the denoiser, and every conditional, is known in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.schedules import linear, lowered


def stationary(length: int) -> Tensor:
    """Two damped resonances and a little white noise, unit variance, ``[T, T]``; nothing is related beyond some 30."""
    lag = torch.arange(length, dtype=torch.float64)
    tones = 0.6 * 0.9**lag * torch.cos(0.35 * lag) + 0.38 * 0.75**lag * torch.cos(1.7 * lag)
    tones[0] += 0.02
    return tones[(lag[:, None] - lag).abs().long()]


def gaussian_net(process: Diffusion, cov: Tensor) -> Net:
    """The exact noise predictor of N(0, cov); like all that are trained it is for one length."""
    values, vectors = torch.linalg.eigh(cov)

    def net(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert x_t.shape[-1] == len(cov)
        alpha, sigma = process.schedule.at(t[0].item())
        return x_t @ (vectors * (sigma / (alpha**2 * values + sigma**2)) @ vectors.T).to(x_t.dtype)

    return net


def draws(cov: Tensor, count: int, seed: int = 0) -> Tensor:
    """float32 ``[count, 1, T]``."""
    noise = torch.randn(count, 1, len(cov), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise @ torch.linalg.cholesky(cov).T).float()


@pytest.fixture(scope="session")
def process() -> Diffusion:
    return Diffusion(lowered(linear()), Epsilon())


@pytest.fixture(scope="session")
def covariance() -> Callable[[int], Tensor]:
    return stationary


@pytest.fixture(scope="session")
def net_of() -> Callable[[Diffusion, Tensor], Net]:
    return gaussian_net


@pytest.fixture(scope="session")
def draw() -> Callable[..., Tensor]:
    return draws
