"""Data whose exact denoiser is known: what the samplers, guidance and generation are measured on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.parameterization import Prediction
from audio_diffusion.diffusion.process import Cond, Denoise, Net
from audio_diffusion.diffusion.schedules import Schedule


def gaussian_denoise(schedule: Schedule, mean: Tensor | float, std: Tensor | float) -> Denoise:
    """E[x0 | x_t] and E[noise | x_t] of x0 ~ N(mean, std²); mean and std broadcast to x_t ``[B, C, T]``."""

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (value.to(x_t.dtype)[:, None, None] for value in schedule.alpha_sigma(t))
        normed = (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return Prediction(mean + alpha * std**2 * normed, sigma * normed)

    return denoise


def gaussian_net(schedule: Schedule, means: list[float], std: float) -> Net:
    """The exact noise predictor of x0 ~ N(means[label], std²); of mean 0 where there is no label, or it is -1."""

    def net(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        mean = torch.tensor([*means, 0.0])[cond["label"]][:, None, None] if cond else 0.0
        return gaussian_denoise(schedule, mean, std)(x_t, t).noise

    return net


@pytest.fixture(scope="session")
def exact_denoise() -> Callable[..., Denoise]:
    return gaussian_denoise


@pytest.fixture(scope="session")
def exact_net() -> Callable[..., Net]:
    return gaussian_net
