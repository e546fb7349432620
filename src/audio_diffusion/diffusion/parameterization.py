"""Parameterizations: the quantity that a network predicts, and its conversion to x0, noise and v.

alpha and sigma are those of x_t = alpha·x0 + sigma·noise: tensors that broadcast to it, or numbers.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Prediction
from audio_diffusion.diffusion.schedule import Schedule


class Coefficients(NamedTuple):
    """x0 = x0_x_t·x_t + x0_output·output and noise = noise_x_t·x_t + noise_output·output."""

    x0_x_t: Tensor | float
    x0_output: Tensor | float
    noise_x_t: Tensor | float
    noise_output: Tensor | float


class Parameterization(Protocol):
    """The quantity that a network is trained to predict."""

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError if the network's output would not determine x0 on this schedule."""

    def network_input(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The network's input."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The output that the network is trained towards, ``[B, D, L]``."""

    def coefficients(self, alpha: Tensor | float, sigma: Tensor | float) -> Coefficients:
        """Returns the coefficients of x0 and noise in x_t and the output; alpha·x0 + sigma·noise = x_t."""

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Ratio of the squared error of the noise estimate to that of the output, which converts their weights."""


def predict(
    part: Parameterization, output: Tensor, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Prediction:
    """Converts the network's output to estimates of x0 and noise, as new tensors."""
    x0_x_t, x0_output, noise_x_t, noise_output = part.coefficients(alpha, sigma)
    return Prediction(_sum(x0_x_t, x_t, x0_output, output), _sum(noise_x_t, x_t, noise_output, output))


def _sum(a: Tensor | float, x_t: Tensor, b: Tensor | float, output: Tensor) -> Tensor:
    """Returns a·x_t + b·output as a new tensor: the output may be x_t, or memory that the next call overwrites."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x_t + b * output
    return output.clone() if (a, b) == (0, 1) else (a * x_t).add_(output, alpha=b)


def velocity(prediction: Prediction, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """v = alpha·noise - sigma·x0 of any prediction (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""
    return alpha * prediction.noise - sigma * prediction.x0


def _expect_kind(name: str, schedule: Schedule, kinds: tuple[str, ...], instead: str) -> None:
    if schedule.kind not in kinds:
        raise ValueError(
            f"parameterization: {name} expects a schedule that is {' or '.join(kinds)}, got one that is "
            f"{schedule.kind}: {instead}"
        )


#: kinds of schedules for which x_t can be the network's input without scaling: its variance is at most one
_TAKES_X_T = ("variance preserving", "input scaled", "flow")


class Epsilon:
    """The network predicts the noise that was added (DDPM eq. 11)."""

    def check(self, schedule: Schedule) -> None:
        """Refuses schedules that end without signal."""
        instead = "the noise may be of any size there, so the network needs a scaled input; use parameterization=edm"
        _expect_kind("Epsilon", schedule, _TAKES_X_T, instead)
        if schedule.final_alpha == 0:
            raise ValueError(
                "parameterization: Epsilon cannot start from pure noise, and this schedule ends at alpha_T = 0: there "
                "x_t is the noise, which does not determine x0; use parameterization=v or x0"
            )

    def network_input(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The noise."""
        return noise

    def coefficients(self, alpha: Tensor | float, sigma: Tensor | float) -> Coefficients:
        """x0 = (x_t - sigma·noise) / alpha: DDPM eq. 4 solved for x0."""
        return Coefficients(1 / alpha, -sigma / alpha, 0.0, 1.0)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """1: the output is the noise estimate."""
        return alpha.new_ones(()).expand_as(alpha)


class X0:
    """The network predicts the clean signal."""

    def check(self, schedule: Schedule) -> None:
        """Refuses variance-exploding schedules."""
        instead = "the noise may be of any size there, so the network needs a scaled input; use parameterization=edm"
        _expect_kind("X0", schedule, _TAKES_X_T, instead)

    def network_input(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The clean signal."""
        return x0

    def coefficients(self, alpha: Tensor | float, sigma: Tensor | float) -> Coefficients:
        """noise = (x_t - alpha·x0) / sigma."""
        return Coefficients(0.0, 1.0, 1 / sigma, -alpha / sigma)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The SNR."""
        return (alpha / sigma).square()


class V:
    """The network predicts v = alpha·noise - sigma·x0 (Salimans & Ho 2022, arXiv:2202.00512, section 4).

    It is well defined without noise and without signal.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuses all but variance-preserving schedules."""
        instead = "use parameterization=edm on edm, which is v there, velocity on flow, and epsilon where it is scaled"
        _expect_kind("V", schedule, ("variance preserving",), instead)

    def network_input(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """v."""
        return alpha * noise - sigma * x0

    def coefficients(self, alpha: Tensor | float, sigma: Tensor | float) -> Coefficients:
        """x0 = alpha·x_t - sigma·v and noise = sigma·x_t + alpha·v (appendix D)."""
        return Coefficients(alpha, -sigma, sigma, alpha)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha²."""
        return alpha.square()


class Velocity:
    """The network predicts dx_t/dt = noise - x0 of the straight line x_t = (1 - t)·x0 + t·noise: rectified flow
    (Liu et al. 2022, arXiv:2209.03003, eq. 1; their time runs the other way)."""

    def check(self, schedule: Schedule) -> None:
        """Refuses all but flow."""
        instead = "x_t does not move along noise - x0 there; use diffusion=flow, or parameterization=v"
        _expect_kind("Velocity", schedule, ("flow",), instead)

    def network_input(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """noise - x0."""
        return noise - x0

    def coefficients(self, alpha: Tensor | float, sigma: Tensor | float) -> Coefficients:
        """x0 = x_t - t·velocity and noise = x_t + (1 - t)·velocity."""
        return Coefficients(1.0, -sigma, 1.0, alpha)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(1 - t)²."""
        return alpha.square()


class EdmPreconditioning:
    """EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1).

    The network's input is c_in·x_t, of unit variance at every noise level, and x0 = c_skip·x_t + c_out·output. Up to
    its sign the output is v. Its plain squared error is EDM's loss with EDM's weight (eq. 8, lambda = 1/c_out²).

    Args:
        sigma_data: standard deviation of x0.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, sigma_data: float = 1.0):
        if not sigma_data > 0:
            raise ValueError(f"sigma_data: expected a positive standard deviation, got {sigma_data}")
        self.sigma_data = sigma_data

    def check(self, schedule: Schedule) -> None:
        """Refuses all but variance-exploding schedules."""
        instead = "this preconditioning assumes x_t = x0 + sigma·noise; use diffusion=edm, or parameterization=v"
        _expect_kind("EdmPreconditioning", schedule, ("variance exploding",), instead)

    def _norm(self, sigma: Tensor | float) -> Tensor | float:
        return (sigma**2 + self.sigma_data**2) ** 0.5

    def network_input(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """c_in·x_t."""
        return x_t / self._norm(sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """(x0 - c_skip·x_t) / c_out, with x_t expanded, so that nothing cancels at small sigma."""
        return (sigma / self.sigma_data * x0 - self.sigma_data * noise) / self._norm(sigma)

    def coefficients(self, alpha: Tensor | float, sigma: Tensor | float) -> Coefficients:
        """x0 = c_skip·x_t + c_out·output and noise = (x_t - x0) / sigma, likewise."""
        norm = self._norm(sigma)
        x0 = ((self.sigma_data / norm) ** 2, sigma * self.sigma_data / norm)
        return Coefficients(*x0, sigma / norm**2, -self.sigma_data / norm)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """sigma_data² / (sigma² + sigma_data²)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
