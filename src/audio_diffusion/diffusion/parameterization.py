"""What the network's output means: the one place where it is turned into x0 and noise."""

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a ``denoise(x_t, t)`` returns: its estimates of the clean signal and of the noise, both of x_t's shape."""

    x0: Tensor
    noise: Tensor


class Epsilon:
    """The network predicts the noise that was added (DDPM eq. 11)."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should have said, ``[B, C, T]``."""
        return noise

    def predict(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 = (x_t - sigma·noise) / alpha: DDPM eq. 4 solved for x0."""
        return Prediction((x_t - sigma * output) / alpha, output)
