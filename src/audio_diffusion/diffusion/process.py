"""The forward process and the objective: schedule and parameterization put together, a network passed in."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from audio_diffusion.diffusion.parameterization import Epsilon, Prediction
from audio_diffusion.diffusion.schedules import Schedule

#: conditions by name, first dimension B; -1 in integers and NaN in floats means "not given"
Cond = Mapping[str, Tensor]


class Net(Protocol):
    """The contract of every network: a tensor of x_t's shape ``[B, C, T]``; t is ``[B]`` in [0, 1]."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


#: the contract of what a sampler is given: denoise(x_t [B, C, T], t [B]) -> estimates of x0 and noise
Denoise = Callable[[Tensor, Tensor], Prediction]


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """``[B]`` -> ``[B, 1, ..]`` in ``like``'s dtype, to be multiplied with ``like`` ``[B, ..]``."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Diffusion:
    """A Gaussian diffusion process: how x_t is made, what the network learns, how its output is read.

    Args:
        schedule: alpha_t and sigma_t.
        parameterization: meaning of the network's output.
    """

    def __init__(self, schedule: Schedule, parameterization: Epsilon):
        self.schedule = schedule
        self.parameterization = parameterization

    def time_of(self, u: Tensor) -> Tensor:
        """Uniform u in [0, 1) -> t uniform over {1, .. T}/T, as DDPM's algorithm 1 draws it; of u's shape."""
        num_steps = self.schedule.num_steps
        return ((u.double() * num_steps).floor() + 1).clamp(max=num_steps).div(num_steps).float()

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha_sigma(t)
        return per_sample(alpha, like), per_sample(sigma, like)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t·x0 + sigma_t·noise, the jump of DDPM eq. 4; x0, noise ``[B, C, T]``, t ``[B]``."""
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def loss(self, net: Net, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond, mask: Tensor | None = None) -> Tensor:
        """Mean squared error of each sample, float32 ``[B]`` (DDPM eq. 14).

        Args:
            net: the network.
            x0: clean signals ``[B, C, T]``.
            noise: ε ~ N(0, I), ``[B, C, T]``.
            t: times ``[B]`` in (0, 1].
            cond: conditions by name.
            mask: 1 where a position counts, broadcastable to x0, e.g. ``[B, 1, T]``; None counts all. A sample
                of which no position counts has loss 0.
        """
        alpha, sigma = self._alpha_sigma(t, x0)
        output = net(alpha * x0 + sigma * noise, t, cond)
        error = (output.float() - self.parameterization.target(x0, noise, alpha, sigma).float()).square()
        if mask is None:
            return error.flatten(1).mean(1)
        mask = mask.to(error.dtype).expand_as(error)
        return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def denoiser(self, net: Net, cond: Cond) -> Denoise:
        """The ``denoise(x_t, t)`` of a network under conditions, what samplers and guidance are given."""

        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            alpha, sigma = self._alpha_sigma(t, x_t)
            return self.parameterization.predict(net(x_t, t, cond).to(x_t.dtype), x_t, alpha, sigma)

        return denoise


def full_times(t: float, x_t: Tensor) -> Tensor:
    """The scalar time as the ``[B]`` tensor a ``denoise`` takes."""
    return torch.full((len(x_t),), t, device=x_t.device, dtype=torch.float32)
