"""What the network's output means: the one place where it is turned into x0, noise and v.

alpha and sigma are those of x_t = alpha·x0 + sigma·noise: tensors that broadcast to it, or numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, overload

from torch import Tensor

from audio_diffusion.diffusion.schedules import Schedule

Level = Tensor | float


class Mix(NamedTuple):
    """a·x_t + b·output, an estimate that is not made yet."""

    a: float
    x_t: Tensor
    b: float
    output: Tensor

    def __call__(self) -> Tensor:
        """The estimate, in two passes and one allocation."""
        return (self.a * self.x_t).add_(self.output, alpha=self.b)

    def scaled(self) -> tuple[float, Tensor]:
        """(c, y) with c·y the estimate, in one pass."""
        a, x_t, b, output = self
        return (a, x_t.add(output, alpha=b / a)) if abs(a) > abs(b) else (b, output.add(x_t, alpha=a / b))


def _mix(a: Level, x_t: Tensor, b: Level, output: Tensor) -> Mix | Callable[[], Tensor]:
    """What makes a·x_t + b·output."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return lambda: a * x_t + b * output
    return Mix(a, x_t, b, output)


class Prediction(Sequence[Tensor]):
    """What a ``denoise(x_t, t)`` returns: the pair of its estimates of x0 and of the noise, both of x_t's shape.

    Args:
        x0: the estimate, or what makes it: called when it is first asked for, if at all: before x_t changes.
        noise: likewise.
    """

    __slots__ = ("_noise", "_x0")

    def __init__(self, x0: Tensor | Mix | Callable[[], Tensor], noise: Tensor | Mix | Callable[[], Tensor]):
        self._x0, self._noise = x0, noise

    @property
    def x0(self) -> Tensor:
        """The clean signal."""
        if not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def noise(self) -> Tensor:
        """The noise."""
        if not isinstance(self._noise, Tensor):
            self._noise = self._noise()
        return self._noise

    def __len__(self) -> int:
        return 2

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return (self.x0, self.noise)[index]

    def scaled_x0(self) -> tuple[float, Tensor]:
        """(c, y) with c·y = x0: one pass less than x0 itself, if that has not been asked for."""
        return self._x0.scaled() if isinstance(self._x0, Mix) else (1.0, self.x0)

    def step(self, x_t: Tensor, keep: float, weight: float) -> None:
        """x_t <- keep·x_t + weight·x0 in two passes, x_t that of the prediction; x0 is not made for it."""
        if isinstance(self._x0, Mix):
            a, _, b, output = self._x0
            x_t.mul_(keep + weight * a).add_(output, alpha=weight * b)
        else:
            x_t.mul_(keep).add_(self.x0, alpha=weight)


class Parameterization(Protocol):
    """What a network may be trained to say."""

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError if the network's output would not determine x0 on this schedule."""

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """What the network is shown of x_t."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """What the network should say, ``[B, C, T]``."""

    def predict(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
        """The output read as x0 and noise; alpha·x0 + sigma·noise = x_t."""

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Error of the noise estimate over error of the output, squared: converts a weight of one to the other's."""


def velocity(prediction: Prediction, alpha: Level, sigma: Level) -> Tensor:
    """v = alpha·noise - sigma·x0 of any estimate (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""
    return alpha * prediction.noise - sigma * prediction.x0


def _expect_kind(name: str, schedule: Schedule, kinds: tuple[str, ...], instead: str) -> None:
    if schedule.kind not in kinds:
        raise ValueError(
            f"parameterization: {name} expects a schedule that is {' or '.join(kinds)}, got one that is "
            f"{schedule.kind}: {instead}"
        )


class Epsilon:
    """The network predicts the noise that was added (DDPM eq. 11)."""

    def check(self, schedule: Schedule) -> None:
        """Refuses schedules that end without signal."""
        instead = "its noise is of any size, and the network is to be shown it scaled; use parameterization=edm"
        _expect_kind("Epsilon", schedule, ("variance preserving", "flow"), instead)
        if schedule.final_alpha == 0:
            raise ValueError(
                "parameterization: Epsilon cannot start from pure noise, and this schedule ends at alpha_T = 0: there "
                "x_t is the noise, and knowing it tells nothing of x0; use parameterization=v or x0"
            )

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The noise."""
        return noise

    def predict(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
        """x0 = (x_t - sigma·noise) / alpha: DDPM eq. 4 solved for x0."""
        return Prediction(_mix(1 / alpha, x_t, -sigma / alpha, output), output)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """1: they are the same."""
        return alpha.new_ones(()).expand_as(alpha)


class X0:
    """The network predicts the clean signal."""

    def check(self, schedule: Schedule) -> None:
        """Refuses variance-exploding schedules."""
        instead = "its noise is of any size, and the network is to be shown it scaled; use parameterization=edm"
        _expect_kind("X0", schedule, ("variance preserving", "flow"), instead)

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The clean signal."""
        return x0

    def predict(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
        """noise = (x_t - alpha·x0) / sigma."""
        return Prediction(output, _mix(1 / sigma, x_t, -alpha / sigma, output))

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The SNR."""
        return (alpha / sigma).square()


class V:
    """The network predicts v = alpha·noise - sigma·x0 (Salimans & Ho 2022, arXiv:2202.00512, section 4).

    It stays meaningful where there is no noise and where there is no signal.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuses all but variance-preserving schedules."""
        instead = "use parameterization=edm on edm, which is v there, and parameterization=velocity on flow"
        _expect_kind("V", schedule, ("variance preserving",), instead)

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """v."""
        return alpha * noise - sigma * x0

    def predict(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
        """x0 = alpha·x_t - sigma·v and noise = sigma·x_t + alpha·v (appendix D)."""
        return Prediction(_mix(alpha, x_t, -sigma, output), _mix(sigma, x_t, alpha, output))

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

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """noise - x0."""
        return noise - x0

    def predict(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
        """x0 = x_t - t·velocity and noise = x_t + (1 - t)·velocity."""
        return Prediction(_mix(1.0, x_t, -sigma, output), _mix(1.0, x_t, alpha, output))

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(1 - t)²."""
        return alpha.square()


class Edm:
    """EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1).

    The network is shown c_in·x_t, of unit variance at every noise, and x0 = c_skip·x_t + c_out·output. Up to its sign
    the output is v. Its plain squared error is EDM's loss with EDM's weight (eq. 8, lambda = 1/c_out²).

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
        instead = "its preconditioning supposes x_t = x0 + sigma·noise; use diffusion=edm, or parameterization=v"
        _expect_kind("Edm", schedule, ("variance exploding",), instead)

    def _norm(self, sigma: Level) -> Level:
        return (sigma**2 + self.sigma_data**2) ** 0.5

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """c_in·x_t."""
        return x_t / self._norm(sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """(x0 - c_skip·x_t) / c_out, with x_t written out: nothing cancels at small sigma."""
        return (sigma / self.sigma_data * x0 - self.sigma_data * noise) / self._norm(sigma)

    def predict(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
        """x0 = c_skip·x_t + c_out·output and noise = (x_t - x0) / sigma, likewise."""
        norm = self._norm(sigma)
        x0 = _mix((self.sigma_data / norm) ** 2, x_t, sigma * self.sigma_data / norm, output)
        return Prediction(x0, _mix(sigma / norm**2, x_t, -self.sigma_data / norm, output))

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """sigma_data² / (sigma² + sigma_data²)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
