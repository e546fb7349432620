"""Time grids: the times at which a sampler evaluates the network.

    grid(schedule, num_steps) -> num_steps falling times, all of them trained; the estimate at the last one is x0

On a chain of T steps all times are i/T. If x_t is nearly pure noise, x0 can hardly be estimated from it, so an even
grid on a chain starts at the last step with alpha_t >= 0.005. If the schedule ends without any signal, the grid starts
at its end.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import Steps

_MIN_ALPHA = 0.005


def _checked(num_steps: int | None, most: int | None, schedule: Schedule) -> int:
    """Returns the checked number of steps; None means all steps.

    Raises:
        ValueError: if the schedule has fewer steps, or ``num_steps`` is None for a schedule of continuous time.
    """
    if most is None:
        if num_steps is None or num_steps < 1:
            raise ValueError(
                f"num_steps: expected at least 1 for a schedule of continuous time, got {num_steps}; "
                "sampler.num_steps=50 suits most samplers"
            )
        return num_steps
    num_steps = most if num_steps is None else num_steps
    if not 1 <= num_steps <= most:
        raise ValueError(
            f"num_steps: expected 1 to {most} for this schedule of {schedule.num_steps}, got {num_steps}; "
            f"sampler.num_steps={most} or null uses all"
        )
    return num_steps


def _first_step(schedule: Steps) -> int:
    """Returns the index of the step to start at.

    It is the last step with alpha_t of at least 0.005: x_t is nearly pure noise there, and with an even weaker signal
    x0 = (x_t - sigma_t·noise)/alpha_t would amplify errors of the network more than 200 times. It is T if that step
    still has much signal (alpha_t above 0.1, on a chain of few steps), or if the schedule ends in pure noise.
    """
    alpha = schedule.alphas
    first = int((alpha >= _MIN_ALPHA).sum()) - 1
    return schedule.num_steps if alpha[first] > 0.1 or schedule.final_alpha == 0 else first


def trailing(schedule: Schedule, num_steps: int | None) -> list[float]:
    """Times that are even in t down to 0, which is x0: the last time is 1/num_steps (Lin et al. 2023, arXiv:2305.08891,
    table 2).

    Its last steps are long in log-SNR, where solvers of higher order are inaccurate and those of first order lose quiet
    sounds (DDIM in 50 steps makes sounds at -40 dB 8 dB too quiet; with ``balanced`` they are within 1 dB).

    Raises:
        ValueError: if ``num_steps`` is not between 1 and the number of steps there are.
    """
    if not isinstance(schedule, Steps):
        num_steps = _checked(num_steps, None, schedule)
        return [1 - i / num_steps * (1 - schedule.first_time) for i in range(num_steps)]
    first = _first_step(schedule)
    num_steps = _checked(num_steps, first, schedule)
    index = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64).round()
    return [float(i) / schedule.num_steps for i in index[:-1]]


def uniform(schedule: Schedule, num_steps: int | None) -> list[float]:
    """Times that are even in t from the first to the cleanest trained time (table 2's "linspace").

    Raises:
        ValueError: if ``num_steps`` is not between 1 and the number of steps there are.
    """
    if not isinstance(schedule, Steps):
        num_steps = _checked(num_steps, None, schedule)
        return torch.linspace(1, schedule.first_time, num_steps, dtype=torch.float64).tolist()
    first = _first_step(schedule)
    num_steps = _checked(num_steps, first, schedule)
    return [float(i) / schedule.num_steps for i in torch.linspace(first, 1, num_steps, dtype=torch.float64).round()]


def _range(schedule: Schedule) -> tuple[float, float]:
    """Returns log(sigma/alpha) of the noisiest and the cleanest level of a grid."""
    last = _first_step(schedule) / schedule.num_steps if isinstance(schedule, Steps) else 1.0
    ends = schedule.log_snr(torch.tensor([last, schedule.first_time], dtype=torch.float64))
    top, floor = (-0.5 * ends).tolist()
    return min(top, -math.log(_MIN_ALPHA)), floor


def _levels(schedule: Schedule, num_steps: int | None, place: Callable[[int], Tensor]) -> list[float]:
    """Returns the times of noise levels; ``place(n)`` returns log(sigma/alpha) of n levels, falling.

    On a chain each time is moved to the nearest free step. If the schedule ends without signal, the first time is its
    end.
    """
    num_steps = _checked(num_steps, _first_step(schedule) if isinstance(schedule, Steps) else None, schedule)
    pure = [1.0] if schedule.final_alpha == 0 else []
    times = schedule.time_of_log_snr(-2 * place(num_steps - len(pure))) if num_steps > len(pure) else torch.zeros(0)
    if not isinstance(schedule, Steps):
        return pure + times.tolist()
    steps, index = schedule.num_steps, [round(t * schedule.num_steps) for t in pure + times.tolist()]
    for i in range(num_steps):  # one free step for each level above
        index[i] = min(index[i], (index[i - 1] if i else steps + 1) - 1)
    for i in reversed(range(num_steps)):  # and below
        index[i] = max(index[i], (index[i + 1] if i + 1 < num_steps else 0) + 1)
    return [i / steps for i in index]


def log_snr(schedule: Schedule, num_steps: int | None) -> list[float]:
    """Times that are even in log-SNR over the whole schedule (DPM-Solver, Lu et al. 2022, arXiv:2206.00927, sec. 3.4).

    Raises:
        ValueError: if ``num_steps`` is not between 1 and the number of steps there are.
    """
    top, floor = _range(schedule)
    return _levels(schedule, num_steps, lambda n: torch.linspace(top, floor, n, dtype=torch.float64))


def karras(
    schedule: Schedule,
    num_steps: int | None,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> list[float]:
    """Times that are even in (sigma/alpha)^(1/rho) (EDM, Karras et al. 2022, arXiv:2206.00364, eq. 5).

    Args:
        rho: larger values give shorter steps at low noise.
        sigma_min: last noise level sigma/alpha; None for the schedule's smallest.
        sigma_max: first noise level; None for the schedule's largest.

    Raises:
        ValueError: if ``num_steps`` or ``rho`` is too small, or the levels do not lie inside the schedule's in order.
    """
    top, floor = _range(schedule)
    low, high = math.exp(floor) if sigma_min is None else sigma_min, math.exp(top) if sigma_max is None else sigma_max
    if not rho > 0:
        raise ValueError(f"rho: expected a positive number, got {rho}")
    if not math.exp(floor) * 0.999 <= low < high <= math.exp(top) * 1.001:
        raise ValueError(
            f"sigma_min: expected {math.exp(floor):.3g} <= sigma_min < sigma_max <= {math.exp(top):.4g}, the levels of "
            f"this schedule, got {low:.4g} and {high:.4g}"
        )
    inverse = 1 / rho
    place = lambda n: rho * torch.linspace(high**inverse, low**inverse, n, dtype=torch.float64).log()  # noqa: E731
    return _levels(schedule, num_steps, place)


def balanced(
    schedule: Schedule, num_steps: int | None, share: float = 0.34, centre_db: float = -11.2, width_db: float = 5.5
) -> list[float]:
    """Times that are even in log-SNR, with more steps around the noise level at which data of unit variance emerge.

    Loud and quiet components of audio emerge at different noise levels, but in the same way on the log-SNR scale, so
    long even steps suffice for them. In the middle region, where most of the signal is determined, the denoiser is
    strongly nonlinear and steps are short. For n steps the noise levels reach from 60·log10(n) - 40 dB down to
    45 - 86·log10(n) dB of the data, within the schedule's range: with few steps, the longer steps of a wider range cost
    more accuracy than the range gains. These numbers come from measurements in benchmarks/sampling.

    Args:
        share: fraction of the steps in the middle region; 0 is even in log-SNR.
        centre_db: centre of the middle region, 20·log10(sigma/alpha).
        width_db: width of the middle region, as that of a logistic distribution.

    Raises:
        ValueError: if ``share`` lies outside [0, 1), ``width_db`` is not positive, or ``num_steps`` is not between 1
            and the number of steps there are.
    """
    if not (0 <= share < 1 and width_db > 0):
        raise ValueError(f"share: expected 0 <= share < 1 and width_db > 0, got {share} and {width_db}")
    neper = math.log(10) / 20  # dB -> log(sigma/alpha)

    def place(n: int) -> Tensor:
        top, floor = _range(schedule)
        top = min(top, max(20.0, 60 * math.log10(n) - 40) * neper)
        floor = max(floor, min(-14.0, 45 - 86 * math.log10(n)) * neper)
        fine = torch.linspace(top, floor, 4001, dtype=torch.float64)
        bend = torch.sigmoid((centre_db * neper - fine) / (width_db * neper))
        passed = (1 - share) * (top - fine) / (top - floor) + share * (bend - bend[0]) / (bend[-1] - bend[0])
        at = torch.linspace(0, 1, n, dtype=torch.float64)
        right = torch.searchsorted(passed, at).clamp(1, len(fine) - 1)
        part = (at - passed[right - 1]) / (passed[right] - passed[right - 1])
        return torch.lerp(fine[right - 1], fine[right], part)

    return _levels(schedule, num_steps, place)


def of_betas(schedule: Schedule, num_steps: int | None, betas: Sequence[float]) -> list[float]:
    """Times with the noise levels of another chain, which is given by its β from the cleanest on: ᾱ_s = Π (1 - β).

    DiffWave's fast sampling (Kong et al. 2021, arXiv:2009.09761, appendix B) is ``ddpm`` with β̃ on this grid. On a
    chain, each time is moved to the nearest free step; the paper interpolates t. The scale of the input is taken into
    account.

    Raises:
        ValueError: for a β outside (0, 1), or another number of steps.
    """
    if not betas or not all(0 < beta < 1 for beta in betas):
        raise ValueError(f"betas: expected numbers inside (0, 1), got {list(betas)}")
    if num_steps not in (None, len(betas)):
        raise ValueError(f"num_steps: expected {len(betas)}, the number of betas, or null, got {num_steps}")
    chain = Steps(torch.tensor(betas, dtype=torch.float64), schedule.input_scale)
    levels = -0.5 * chain.log_snr(chain.times[1:]).flip(0)  # log(sigma/alpha)
    return _levels(schedule, len(betas), lambda n: levels[-n:])
