"""The contract of a denoiser, which a solver calls: network, parameterization and guidance in one function.

    denoise(x_t, t) -> (x0, noise)

A solver reduces the noise in x_t with these two estimates and does not depend on how they are computed. Guidance
(``diffusion.guidance``) and editing (``diffusion.editing.consistency``) wrap a denoiser, so they work with every
solver. ``Diffusion.denoiser`` creates a denoiser from a network; tests define one for data whose exact denoiser is
known.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Prediction(NamedTuple):
    """The estimates of x0 and of the noise in x_t, each of x_t's shape and dtype; alpha_t·x0 + sigma_t·noise = x_t."""

    x0: Tensor
    noise: Tensor


class Denoiser(Protocol):
    """Estimates the clean signal and the noise in a noised signal."""

    def __call__(self, x_t: Tensor, t: Tensor | float) -> Prediction:
        """Returns both estimates.

        They are new tensors, which share no memory with x_t, with each other, or with tensors of later calls. A solver
        may therefore change x_t or the estimates in place, and may keep the estimates for later steps. A denoiser
        does not change x_t.

        Args:
            x_t: noised signals ``[B, D, L]``, float.
            t: time in [0, 1], 0 is clean: ``[B]``, or one number for all samples. With a number, alpha_t and sigma_t
                are numbers too, and the call does not wait for the device.
        """
