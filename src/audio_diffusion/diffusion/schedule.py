"""The contract of a noise schedule: alpha_t and sigma_t of x_t = alpha_t·x0 + sigma_t·noise over t in [0, 1]."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

#: smallest alpha_t of a noise level, so that lambda_t is finite if no signal is left
_LEAST_ALPHA = 1e-22


Method = TypeVar("Method", bound=Callable[..., Any])


class NoiseLevel(NamedTuple):
    """A time and the noise level of the process at this time, as Python numbers."""

    time: float
    alpha: float
    sigma: float
    lam: float  # lambda_t = log(alpha_t/sigma_t), half the log-SNR
    std: float  # standard deviation of x_t for data of unit variance, √(alpha_t² + sigma_t²)


def added_variance(t: NoiseLevel, s: NoiseLevel) -> float:
    """sigma_t² - (alpha_t/alpha_s)²·sigma_s², the noise that the forward process adds from s to t; DDPM's β_t."""
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2


def _constant_in_graphs(method: Method) -> Method:
    """Marks a method as ``torch.compiler.assume_constant_result`` does, which would import the compiler: 2.5 s."""
    method._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return method


class Schedule(ABC):
    """alpha_t and sigma_t over t in [0, 1]."""

    kind: Literal["variance preserving", "input scaled", "variance exploding", "flow"]
    #: T of a chain of steps, which is trained only at t = 1/T, 2/T .. 1; None for continuous time
    num_steps: int | None = None
    #: the cleanest trained time
    first_time: float
    #: factor on alpha_t (1 = none), see ``input_scaled``
    input_scale: float = 1.0

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, of t's shape and dtype."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t² / sigma_t²), of t's shape and dtype."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``; of its shape and dtype, in [0, 1]."""

    def alpha_bar(self, t: Tensor) -> Tensor:
        """ᾱ_t = alpha_t², of t's shape and dtype."""
        return self.alpha_sigma(t)[0].square()

    def at(self, t: float) -> tuple[float, float]:
        """alpha_t and sigma_t as plain numbers."""
        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return alpha.item(), sigma.item()

    def level(self, t: float) -> NoiseLevel:
        """The noise level at a time."""
        alpha, sigma = self.at(t)
        alpha = max(alpha, _LEAST_ALPHA)
        return NoiseLevel(t, alpha, sigma, math.log(alpha / sigma) if sigma else math.inf, math.hypot(alpha, sigma))

    # The next two convert tensors to numbers. torch.compile calls them while tracing; the numbers become constants.

    @_constant_in_graphs
    def levels(self, grid: "Grid", num_steps: int | None) -> list[NoiseLevel]:
        """Returns the noise levels at a grid's times, in falling order.

        Raises:
            ValueError: if the grid cannot place this number of steps on this schedule.
        """
        return [self.level(t) for t in grid(self, num_steps)]

    @_constant_in_graphs
    def level_of_log_snr(self, log_snr: float) -> NoiseLevel:
        """Returns the trained noise level with this log-SNR; on a chain, the next one with at least as much noise."""
        t = self.time_of_log_snr(torch.tensor(log_snr, dtype=torch.float64)).item()
        return self.level(t if self.num_steps is None else math.ceil(t * self.num_steps - 1e-6) / self.num_steps)

    @property
    def final_alpha(self) -> float:
        """alpha_1, the amount of signal left at the noisy end (√ᾱ_T); 0 if there is none."""
        alpha = self.at(1.0)[0]
        return alpha if alpha > 1e-6 else 0.0


#: grid(schedule, num_steps) -> the times at which a solver calls the network, falling: see ``diffusion.grids``
Grid = Callable[[Schedule, int | None], list[float]]
