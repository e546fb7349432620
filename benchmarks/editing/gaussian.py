"""Stationary Gaussian signals, and mixtures of them: the exact denoiser is known, and every conditional."""

import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.schedule import Schedule


def covariance(length: int, low: float = 0.35, high: float = 1.7) -> Tensor:
    """Two damped resonances and a little white noise, unit variance, float64 ``[T, T]``: correlations end within 30."""
    lag = torch.arange(length, dtype=torch.float64)
    tones = 0.6 * 0.9**lag * torch.cos(low * lag) + 0.38 * 0.75**lag * torch.cos(high * lag)
    tones[0] += 0.02
    return tones[(lag[:, None] - lag).abs().long()]


def denoiser(schedule: Schedule, cov: Tensor) -> Denoiser:
    """E[x0 | x_t] of N(0, cov), for ``[B, 1, T]``."""
    values, vectors = torch.linalg.eigh(cov)

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        assert isinstance(t, float)
        alpha, sigma = schedule.at(t)
        gain = vectors * (alpha * values / (alpha**2 * values + sigma**2)) @ vectors.T
        x0 = x_t @ gain.to(x_t.dtype)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def log_densities(x: Tensor, covs: list[Tensor]) -> Tensor:
    """log N(x; 0, cov) of each covariance, x ``[B, T]`` -> ``[B, len(covs)]``."""
    return torch.stack(
        [torch.distributions.MultivariateNormal(torch.zeros(len(c), dtype=c.dtype), c).log_prob(x) for c in covs], dim=1
    )


def mixture_denoiser(schedule: Schedule, covs: list[Tensor]) -> Denoiser:
    """E[x0 | x_t] where each signal is of one of several kinds, N(0, cov), equally likely."""
    each = [denoiser(schedule, cov) for cov in covs]

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        assert isinstance(t, float)
        alpha, sigma = schedule.at(t)
        noised = [alpha**2 * cov + sigma**2 * torch.eye(len(cov), dtype=cov.dtype) for cov in covs]
        share = log_densities(x_t[:, 0], noised).softmax(1)
        x0 = sum(share[:, i, None, None] * one(x_t, t).x0 for i, one in enumerate(each))
        assert isinstance(x0, Tensor)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def draws(cov: Tensor, count: int, seed: int) -> Tensor:
    """Samples ``[count, 1, T]``."""
    noise = torch.randn(count, 1, len(cov), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise @ torch.linalg.cholesky(cov).T


def distance(a: Tensor, b: Tensor) -> float:
    """Wasserstein-2 between N(0, a) and N(0, b), as a part of the standard deviation of b."""
    root = _root(b)
    cross = _root(root @ a @ root)
    return ((a + b - 2 * cross).trace().clamp(min=0) / b.trace()).sqrt().item()


def _root(a: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def conditional_errors(known: Tensor, made: Tensor, cov: Tensor, keep: Tensor) -> tuple[float, float]:
    """Of made given known: error of the mean, and distance of the covariance, parts of the true conditional std.

    known ``[N, K]`` and made ``[N, M]`` are samples, keep bool ``[T]``; the mean is read off by regression, of which
    the squared error K/(N - K - 1) that it has by chance is taken off.
    """
    k, m = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
    gain = torch.linalg.solve(cov[k][:, k], cov[k][:, m])
    true = cov[m][:, m] - cov[m][:, k] @ gain
    found = torch.linalg.lstsq(known, made).solution
    left = made - known @ found
    off, chance = found - gain, len(k) / (len(known) - len(k) - 1)
    mean = ((off.T @ cov[k][:, k] @ off).trace() / true.trace() - chance).clamp(min=0).sqrt().item()
    return mean, distance(left.T @ left / (len(left) - len(k)), true)
