"""What the network's output means: the one place where it is turned into x0, noise and v.

alpha and sigma are those of x_t = alpha·x0 + sigma·noise: tensors that broadcast to it, or numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, overload

from torch import Tensor

from audio_diffusion.diffusion.schedules import Schedule

Level = Tensor | float


class Coefficients(NamedTuple):
    """x0 = x0_x_t·x_t + x0_output·output and noise = noise_x_t·x_t + noise_output·output."""

    x0_x_t: Level
    x0_output: Level
    noise_x_t: Level
    noise_output: Level


Estimate = Tensor | Callable[[], Tensor]


class Prediction(Sequence[Tensor]):
    """What a ``denoise(x_t, t)`` returns: the pair of its estimates of x0 and of the noise, both of x_t's shape.

    An estimate is made when it is first asked for, if at all: before x_t changes.

    Args:
        x0: the estimate, or what makes it; None where it is made of x_t and the output.
        noise: likewise.
        made_of: x_t, the network's output, and how both estimates are made of them.
    """

    __slots__ = ("_made_of", "_noise", "_x0")

    def __init__(
        self,
        x0: Estimate | None,
        noise: Estimate | None,
        made_of: tuple[Tensor, Tensor, Coefficients] | None = None,
    ):
        self._x0, self._noise, self._made_of = x0, noise, made_of

    @property
    def x0(self) -> Tensor:
        """The clean signal."""
        if not isinstance(self._x0, Tensor):
            self._x0 = self._made(0) if self._x0 is None else self._x0()
        return self._x0

    @property
    def noise(self) -> Tensor:
        """The noise."""
        if not isinstance(self._noise, Tensor):
            self._noise = self._made(2) if self._noise is None else self._noise()
        return self._noise

    def __len__(self) -> int:
        return 2

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return (self.x0, self.noise)[index]

    def _made(self, first: int) -> Tensor:
        """An estimate, in two passes and one allocation; none where it is the output itself."""
        assert self._made_of is not None
        x_t, output, coefficients = self._made_of
        a, b = coefficients[first : first + 2]
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return a * x_t + b * output
        return output if (a, b) == (0, 1) else (a * x_t).add_(output, alpha=b)

    def scaled_x0(self) -> tuple[float, Tensor]:
        """(c, y) with c·y = x0: one pass less than x0 itself, if that has not been asked for. Of one t for all only."""
        if self._x0 is not None or self._made_of is None:
            return 1.0, self.x0
        x_t, output, (a, b, _, _) = self._made_of
        assert isinstance(a, float)
        assert isinstance(b, float)
        if a == 0:
            return b, output
        return (a, x_t.add(output, alpha=b / a)) if abs(a) > abs(b) else (b, output.add(x_t, alpha=a / b))

    def step(self, x_t: Tensor, keep: float, weight: float) -> None:
        """x_t <- keep·x_t + weight·x0 in two passes, x_t that of the prediction; x0 is not made for it. Likewise."""
        if self._x0 is None and self._made_of is not None:
            _, output, (a, b, _, _) = self._made_of
            x_t.mul_(keep + weight * a).add_(output, alpha=weight * b)  # type: ignore[arg-type]
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

    def coefficients(self, alpha: Level, sigma: Level) -> Coefficients:
        """How x0 and noise are made of x_t and the output; alpha·x0 + sigma·noise = x_t."""

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Error of the noise estimate over error of the output, squared: converts a weight of one to the other's."""


def predict(part: Parameterization, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Prediction:
    """The output read as x0 and noise."""
    return Prediction(None, None, (x_t, output, part.coefficients(alpha, sigma)))


def velocity(prediction: Prediction, alpha: Level, sigma: Level) -> Tensor:
    """v = alpha·noise - sigma·x0 of any estimate (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""
    return alpha * prediction.noise - sigma * prediction.x0


def _expect_kind(name: str, schedule: Schedule, kinds: tuple[str, ...], instead: str) -> None:
    if schedule.kind not in kinds:
        raise ValueError(
            f"parameterization: {name} expects a schedule that is {' or '.join(kinds)}, got one that is "
            f"{schedule.kind}: {instead}"
        )


#: kinds of which the network can be shown x_t as it is: it is of unit variance or less
_TAKES_X_T = ("variance preserving", "input scaled", "flow")


class Epsilon:
    """The network predicts the noise that was added (DDPM eq. 11)."""

    def check(self, schedule: Schedule) -> None:
        """Refuses schedules that end without signal."""
        instead = "its noise is of any size, and the network is to be shown it scaled; use parameterization=edm"
        _expect_kind("Epsilon", schedule, _TAKES_X_T, instead)
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

    def coefficients(self, alpha: Level, sigma: Level) -> Coefficients:
        """x0 = (x_t - sigma·noise) / alpha: DDPM eq. 4 solved for x0."""
        return Coefficients(1 / alpha, -sigma / alpha, 0.0, 1.0)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """1: they are the same."""
        return alpha.new_ones(()).expand_as(alpha)


class X0:
    """The network predicts the clean signal."""

    def check(self, schedule: Schedule) -> None:
        """Refuses variance-exploding schedules."""
        instead = "its noise is of any size, and the network is to be shown it scaled; use parameterization=edm"
        _expect_kind("X0", schedule, _TAKES_X_T, instead)

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The clean signal."""
        return x0

    def coefficients(self, alpha: Level, sigma: Level) -> Coefficients:
        """noise = (x_t - alpha·x0) / sigma."""
        return Coefficients(0.0, 1.0, 1 / sigma, -alpha / sigma)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The SNR."""
        return (alpha / sigma).square()


class V:
    """The network predicts v = alpha·noise - sigma·x0 (Salimans & Ho 2022, arXiv:2202.00512, section 4).

    It stays meaningful where there is no noise and where there is no signal.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuses all but variance-preserving schedules."""
        instead = "use parameterization=edm on edm, which is v there, velocity on flow, and epsilon where it is scaled"
        _expect_kind("V", schedule, ("variance preserving",), instead)

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """v."""
        return alpha * noise - sigma * x0

    def coefficients(self, alpha: Level, sigma: Level) -> Coefficients:
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

    def network_input(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x_t."""
        return x_t

    def target(self, x0: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """noise - x0."""
        return noise - x0

    def coefficients(self, alpha: Level, sigma: Level) -> Coefficients:
        """x0 = x_t - t·velocity and noise = x_t + (1 - t)·velocity."""
        return Coefficients(1.0, -sigma, 1.0, alpha)

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

    def coefficients(self, alpha: Level, sigma: Level) -> Coefficients:
        """x0 = c_skip·x_t + c_out·output and noise = (x_t - x0) / sigma, likewise."""
        norm = self._norm(sigma)
        x0 = ((self.sigma_data / norm) ** 2, sigma * self.sigma_data / norm)
        return Coefficients(*x0, sigma / norm**2, -self.sigma_data / norm)

    def noise_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """sigma_data² / (sigma² + sigma_data²)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
