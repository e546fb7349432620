"""The forward process and the training objective, composed of schedule, parameterization, density and weight."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.float64 import at_home, in_double
from audio_diffusion.diffusion.parameterization import Parameterization, predict
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.weighting import Density, Uniform, Weight

#: conditions by name, first dimension B; -1 in integers and NaN in floats means "not given"
Cond = Mapping[str, Tensor]


class Net(Protocol):
    """The contract of every network: a tensor of x_t's shape ``[B, C, T]``; t is ``[B]`` in [0, 1]."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Reshapes ``[B]`` to ``[B, 1, ..]`` in ``like``'s dtype, for multiplication with ``like`` ``[B, ..]``."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Diffusion:
    """A Gaussian diffusion process: the forward process, the training objective and the meaning of the output.

    Args:
        schedule: alpha_t and sigma_t.
        parameterization: meaning of the network's output.
        density: distribution of t in training; None for uniform.
        weight: weight of the noise estimate's squared error by SNR; None leaves the output's squared error unweighted.

    Raises:
        ValueError: for a parameterization that is not valid for the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        parameterization: Parameterization,
        density: Density | None = None,
        weight: Weight | None = None,
    ):
        parameterization.check(schedule)
        self.schedule, self.parameterization = schedule, parameterization
        self.density, self.weight = density or Uniform(), weight

    def time_of(self, u: Tensor) -> Tensor:
        """Transforms uniform u in [0, 1) to t with the process's density, float32 of u's shape."""
        return self.density(at_home(u), self.schedule).to(u.device)

    def alpha_sigma(self, t: Tensor | float, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Returns alpha_t and sigma_t for multiplication with ``like``: ``[B, 1, ..]``, or numbers if t is a number."""
        if not isinstance(t, Tensor):
            return self.schedule.at(t)
        alpha, sigma = self.schedule.alpha_sigma(t)
        return per_sample(alpha, like), per_sample(sigma, like)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t·x0 + sigma_t·noise, the jump of DDPM eq. 4; x0, noise ``[B, C, T]``, t ``[B]``."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def loss(self, net: Net, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond, mask: Tensor | None = None) -> Tensor:
        """Returns the weighted mean squared error of each sample, float32 ``[B]`` (DDPM eq. 14).

        Args:
            net: the network.
            x0: clean signals ``[B, C, T]``.
            noise: ε ~ N(0, I), ``[B, C, T]``.
            t: times ``[B]`` in (0, 1].
            cond: conditions by name.
            mask: 1 at positions that count, broadcastable to x0, e.g. ``[B, 1, T]``; None for all. A sample without
                such positions has loss 0.
        """
        alpha, sigma = self.alpha_sigma(t, x0)
        output = net(self.parameterization.network_input(alpha * x0 + sigma * noise, alpha, sigma), t, cond)
        error = (output.float() - self.parameterization.target(x0, noise, alpha, sigma).float()).square()
        weight = self._weight(t)
        if mask is None:
            return weight * error.flatten(1).mean(1)
        mask = mask.to(error.dtype).expand_as(error)
        return weight * (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def _weight(self, t: Tensor) -> Tensor | float:
        """Returns the weight of the output's squared error, float32 ``[B]``."""
        if self.weight is None:
            return 1.0
        alpha, sigma = self.schedule.alpha_sigma(in_double(t))
        snr = (alpha / sigma).square().clamp(min=1e-40)
        weight = self.weight(snr) * self.parameterization.noise_error(alpha, sigma)
        return weight.float().to(t.device)

    def denoiser(self, net: Net, cond: Cond) -> Denoiser:
        """Returns the denoiser of a network under conditions, for guidance and solvers."""

        def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
            alpha, sigma = self.alpha_sigma(t, x_t)
            times = t if isinstance(t, Tensor) else full_times(t, x_t)
            output = net(self.parameterization.network_input(x_t, alpha, sigma), times, cond)
            return predict(self.parameterization, output.to(x_t.dtype), x_t, alpha, sigma)

        return denoise


def full_times(t: float, x_t: Tensor) -> Tensor:
    """Expands a scalar time to the ``[B]`` tensor that a network expects."""
    return torch.full(x_t.shape[:1], t, dtype=torch.float32, device=x_t.device)
