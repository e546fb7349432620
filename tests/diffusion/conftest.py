"""Data whose exact denoiser is known: what the samplers, guidance and generation are measured on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.process import Cond, Net
from audio_diffusion.diffusion.schedule import Schedule


def levels(schedule: Schedule, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t, to be multiplied with ``like``; t is ``[B]`` or a number."""
    if not isinstance(t, Tensor):
        t = torch.full((len(like),), t, dtype=torch.float64)
    return tuple(value.to(like.dtype)[:, None, None] for value in schedule.alpha_sigma(t))  # type: ignore[return-value]


def gaussian_denoise(schedule: Schedule, mean: Tensor | float, std: Tensor | float) -> Denoiser:
    """E[x0 | x_t] and E[noise | x_t] of x0 ~ N(mean, std²); mean and std broadcast to x_t ``[B, C, T]``."""

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = levels(schedule, t, x_t)
        normed = (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return Prediction(mean + alpha * std**2 * normed, sigma * normed)

    return denoise


def mixture_denoise(
    schedule: Schedule, weights: list[float], means: list[float], stds: list[float]
) -> Callable[[Tensor, Tensor | float], Prediction]:
    """The same of a Gaussian mixture: the posterior is not Gaussian here, and the denoiser not linear."""
    weight, mean, std = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = (v.double()[..., None] for v in levels(schedule, t, x_t.double()))
        variance = alpha**2 * std**2 + sigma**2
        away = x_t.double()[..., None] - alpha * mean  # [B, C, T, modes]
        share = (weight.log() - away**2 / (2 * variance) - 0.5 * variance.log()).softmax(-1)
        x0 = (share * (mean + alpha * std**2 / variance * away)).sum(-1).to(x_t.dtype)
        alpha, sigma = levels(schedule, t, x_t)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def loud_or_quiet_denoise(schedule: Schedule, weights: list[float], stds: list[float]) -> Denoiser:
    """The same of clips ``[B, C, T]`` of white noise, each at a level of its own: N(0, std²) throughout."""
    weight, std = (torch.tensor(v, dtype=torch.float64) for v in (weights, stds))

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = levels(schedule, t, x_t.double())
        variance = (alpha * std) ** 2 + sigma**2  # [B, 1, modes]
        power = x_t.double().square().sum((1, 2))[:, None, None]
        share = (weight.log() - power / (2 * variance) - 0.5 * x_t[0].numel() * variance.log()).softmax(-1)
        x0 = (share * alpha * std**2 / variance).sum(-1, keepdim=True) * x_t
        return Prediction(x0.to(x_t.dtype), ((x_t - alpha * x0) / sigma).to(x_t.dtype))

    return denoise


def gaussian_net(schedule: Schedule, means: list[float], std: float) -> Net:
    """The exact noise predictor of x0 ~ N(means[label], std²); of mean 0 where there is no label, or it is -1."""

    def net(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        mean = torch.tensor([*means, 0.0])[cond["label"]][:, None, None] if cond else 0.0
        return gaussian_denoise(schedule, mean, std)(x_t, t).noise

    return net


@pytest.fixture(scope="session")
def exact_denoise() -> Callable[..., Denoiser]:
    return gaussian_denoise


@pytest.fixture(scope="session")
def exact_mixture() -> Callable[..., Denoiser]:
    return mixture_denoise


@pytest.fixture(scope="session")
def exact_loud_or_quiet() -> Callable[..., Denoiser]:
    return loud_or_quiet_denoise


@pytest.fixture(scope="session")
def exact_net() -> Callable[..., Net]:
    return gaussian_net
