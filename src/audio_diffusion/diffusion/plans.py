"""What a solver does on a grid, as plain numbers: made in float64 once, and kept for the next call on the same grid.

All solvers but Heun's take steps of one form, x_s = keep·x_t + Σ weights·(estimates of x0) + std·(fresh noise), so a
solver is the table of these numbers. They are made of alpha_t, sigma_t and lambda_t = log(alpha_t/sigma_t) alone.
"""

import functools
import math
from collections.abc import Callable, Hashable
from itertools import zip_longest
from typing import NamedTuple, TypeVar

import torch

from audio_diffusion.diffusion.grids import Grid
from audio_diffusion.diffusion.schedules import Schedule


class Level(NamedTuple):
    """A time of the grid, and the process there."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """lambda_t = log(alpha_t/sigma_t), half the log-SNR."""
        return math.log(self.alpha / self.sigma)


CLEAN = Level(0.0, 1.0, 0.0)
T = TypeVar("T")

#: Largest sum of |weights| of k estimates, relative to their sum and to 2^k - 1. On even steps the sum is at most
#: 2^k - 1: 2, -1 or 3, -3, 1 at the end of a long step.
_MOST_AMPLIFIED = 2.0
#: The same where fresh noise is added on the way: it makes the estimates differ from one to the next, and extrapolating
#: amplifies the difference. Measured: DiffWave's last two steps reach 1.47, which is 3.4 dB too loud.
_MOST_AMPLIFIED_WITH_NOISE = 1.4
#: Largest fall of sigma/alpha over which Heun's method corrects Euler's step: the longest step of EDM's own grid of ten
#: (0.02 to 0.002). The correction weighs the change in noise by half of this fall: beyond, it is all that is left.
_LONGEST_CORRECTED = 12.0


def _kept(make: Callable[..., T]) -> Callable[..., T]:
    """The last results by schedule, grid (a pure function), number of steps and options.

    A plain dict, because torch.compile looks into it, where it would trace through functools.lru_cache.
    """
    known: dict[tuple[Hashable, ...], T] = {}

    @functools.wraps(make)
    def look_up(*given: Hashable) -> T:
        if given not in known:
            if len(known) >= 64:
                known.clear()
            known[given] = make(*given)
        return known[given]

    look_up.forget = known.clear  # type: ignore[attr-defined]
    return look_up


@_kept
def levels_of(schedule: Schedule, grid: Grid, num_steps: int | None) -> list[Level]:
    """The levels the network is asked at."""
    return [Level(t, max(alpha, 1e-22), sigma) for t in grid(schedule, num_steps) for alpha, sigma in [schedule.at(t)]]


def start_std(levels: list[Level]) -> float:
    """The standard deviation of noised data of unit variance at the first level."""
    return math.hypot(levels[0].alpha, levels[0].sigma)


def fresh_variance(t: Level, s: Level) -> float:
    """sigma_t² - (alpha_t/alpha_s)²·sigma_s², the noise that the forward process adds from s to t; β_t of DDPM."""
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2


class Step(NamedTuple):
    """x_s = keep·x_t + Σ weights·(estimates of x0, newest first) + std·(fresh noise)."""

    t: float
    keep: float
    weights: list[float]
    std: float = 0.0


class Plan(NamedTuple):
    """What a solver does on a grid: steps, and then the estimate of x0 at the last time."""

    start_std: float
    steps: list[Step]
    memory: int  # of how many earlier estimates a step makes use
    last: float


def _latest(i: int, count: int) -> range:
    """i, i - 1 .. of ``count`` levels, or as many as there are."""
    return range(i, max(i - count, -1), -1)


def _plan(levels: list[Level], step: Callable[[int], Step]) -> Plan:
    """``step(i)`` is asked for the step from level i to level i + 1."""
    steps = [step(i) for i in range(len(levels) - 1)]
    memory = max((len(step.weights) - 1 for step in steps), default=0)
    return Plan(start_std(levels), steps, memory, levels[-1].t)


@_kept
def ddpm(schedule: Schedule, grid: Grid, num_steps: int | None, variance: str) -> Plan:
    """DDPM's posterior, eq. 7; in any process Kingma et al. 2021, arXiv:2107.00630, eqs. 32 and 33."""
    levels = levels_of(schedule, grid, num_steps)

    def step(i: int) -> Step:
        t, s = levels[i], levels[i + 1]
        beta = fresh_variance(t, s)
        keep, weight = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2, s.alpha * beta / t.sigma**2
        return Step(t.t, keep, [weight], beta**0.5 * (1 if variance == "beta" else s.sigma / t.sigma))

    return _plan(levels, step)


@_kept
def ddim(schedule: Schedule, grid: Grid, num_steps: int | None, eta: float) -> Plan:
    """DDIM, eqs. 12 and 16."""
    levels = levels_of(schedule, grid, num_steps)

    def step(i: int) -> Step:
        t, s = levels[i], levels[i + 1]
        std = eta * s.sigma / t.sigma * fresh_variance(t, s) ** 0.5
        along = max(s.sigma**2 - std**2, 0.0) ** 0.5 / t.sigma  # of the noise in x, which is (x - alpha_t·x0)/sigma_t
        return Step(t.t, along, [s.alpha - along * t.alpha], std)

    return _plan(levels, step)


class HeunStep(NamedTuple):
    """From t to s by Euler, and half of the difference in noise at s after it; first up to t, where there is churn."""

    t: float
    s: float
    raise_by: float
    std: float
    keep: float
    weight: float
    half: float


class HeunPlan(NamedTuple):
    """Heun's method on a grid."""

    start_std: float
    steps: list[HeunStep]


@_kept
def heun(
    schedule: Schedule, grid: Grid, num_steps: int | None, churn: float, churn_min: float, churn_max: float
) -> HeunPlan:
    """EDM algorithm 2, for any alpha_t; the last step, to t = 0, takes x0 as it is.

    Steps over which sigma/alpha falls by more than a factor of 12 are Euler's alone.
    """
    levels = levels_of(schedule, grid, num_steps)
    gamma = min(churn / len(levels), 2**0.5 - 1)
    steps = []
    for given, s in zip(levels, [*levels[1:], CLEAN], strict=True):
        churned = gamma > 0 and churn_min <= given.sigma / given.alpha <= churn_max
        t = _churned(schedule, given, gamma) if churned else given
        std = fresh_variance(t, given) ** 0.5 if t is not given else 0.0
        along = s.sigma / t.sigma
        ratio = t.sigma / t.alpha
        corrected = ratio < 1e6 and s.alpha * given.sigma / given.alpha <= _LONGEST_CORRECTED * s.sigma
        half = 0.5 * (s.sigma - s.alpha * ratio) if corrected else 0.0
        weight = s.alpha - along * t.alpha
        steps.append(HeunStep(t.t, s.t, t.alpha / given.alpha, std, along, weight, half))
    return HeunPlan(start_std(levels), steps)


def _churned(schedule: Schedule, level: Level, gamma: float) -> Level:
    """The trained level whose sigma/alpha is (1 + gamma) times that of ``level``, or the nearest above."""
    wanted = torch.tensor(-2 * (math.log1p(gamma) - level.lam), dtype=torch.float64)
    t = schedule.time_of_log_snr(wanted).item()
    if schedule.num_steps is not None:
        t = math.ceil(t * schedule.num_steps - 1e-6) / schedule.num_steps
    return Level(t, *schedule.at(t)) if t > level.t else level


@_kept
def dpmpp(schedule: Schedule, grid: Grid, num_steps: int | None, order: int, eta: float) -> Plan:
    """DPM-Solver++ multistep, eqs. 9 and 14."""
    levels = levels_of(schedule, grid, num_steps)

    def step(i: int) -> Step:
        t, s = levels[i], levels[i + 1]
        h = s.lam - t.lam
        ratios = [(t.lam - levels[n].lam) / h for n in _latest(i, order)]
        weights = _extrapolation(ratios, h, eta, midpoint=order == 2)
        std = s.sigma * (-math.expm1(-2 * eta * h)) ** 0.5
        return Step(t.t, s.sigma / t.sigma * math.exp(-eta * h), [s.alpha * weight for weight in weights], std)

    return _plan(levels, step)


def _limited(weights: Callable[[int], list[float]], most: int, bound: float = _MOST_AMPLIFIED) -> list[float]:
    """``weights(k)`` of the newest k estimates, k at most ``most`` and as large as the step can bear.

    A polynomial through estimates that lie close together, taken to the end of a step much longer than theirs, makes
    their differences many times larger. Multistep methods of variable step therefore bound the ratio of consecutive
    steps (Hairer, Nørsett & Wanner 1993, Solving Ordinary Differential Equations I, section III.5); here the sum of
    |weights| is bounded, and a step beyond it is of lower order. No even grid comes near the bound.
    """
    for count in range(most, 1, -1):
        found = weights(count)
        if sum(map(abs, found)) <= bound * (2**count - 1) * abs(sum(found)):
            return found
    return weights(1)


def _extrapolation(ratios: list[float], h: float, eta: float, midpoint: bool) -> list[float]:
    """Weights of the estimates made ``ratios`` (0 first, rising) steps ago."""
    bound = _MOST_AMPLIFIED_WITH_NOISE if eta > 0 else _MOST_AMPLIFIED
    return _limited(lambda count: _adams(ratios[:count], h * (1 + eta), midpoint), len(ratios), bound)


def _adams(ratios: list[float], decay: float, midpoint: bool) -> list[float]:
    """The same of a given order, that of the number of estimates; ``decay`` is h·(1 + η) of the step."""
    whole = -math.expm1(-decay)
    phi_2 = 1 - whole / decay
    if len(ratios) == 1:
        return [whole]
    if len(ratios) == 2:
        slope = (0.5 * whole if midpoint else phi_2) / ratios[1]
        return [whole + slope, -slope]
    # what the second difference adds to the slope; the paper's code takes half of (1 - 2·phi_2/decay), which is order 2
    bend = (phi_2 * ratios[1] + 1 - 2 * phi_2 / decay) / ratios[2]
    newer, older = (phi_2 + bend) / ratios[1], bend / (ratios[2] - ratios[1])
    return [whole + newer, -newer - older, older]


@_kept
def unipc(schedule: Schedule, grid: Grid, num_steps: int | None, order: int) -> Plan:
    """Corrector and predictor as one sum.

    The prediction at t is base + Σ p·x0, the correction base + Σ c·x0 = prediction + Σ (c - p)·x0 with one estimate
    more, and the next prediction keep·correction + Σ q·x0. The network is shown predictions only: base is not needed.
    """
    levels = levels_of(schedule, grid, num_steps)

    def weights(i: int, nodes: range) -> list[float]:
        """Of the estimates at the nodes, for the step from level i to the next."""
        t, s = levels[i], levels[i + 1]
        h = s.lam - t.lam
        places = [(levels[n].lam - t.lam) / h for n in nodes]
        found = _limited(lambda count: _exponential_weights(places[:count], h), len(places))
        return [s.alpha * weight for weight in found]

    def step(i: int) -> Step:
        keep, predict = levels[i + 1].sigma / levels[i].sigma, weights(i, _latest(i, order))
        if i == 0:
            return Step(levels[0].t, keep, predict)
        correct, predicted = weights(i - 1, _latest(i, order + 1)), [0.0, *weights(i - 1, _latest(i - 1, order))]
        sums = zip_longest(correct, predicted, predict, fillvalue=0.0)
        return Step(levels[i].t, keep, [keep * (c - p) + q for c, p, q in sums])

    return _plan(levels, step)


def _exponential_weights(nodes: list[float], h: float) -> list[float]:
    """Weights of values at the nodes in ∫_0^1 h·e^(-h(1-r))·p(r) dr, p the polynomial through them (UniPC, eq. 5).

    One node is 0, where the step starts. With two the slope gets the paper's simpler half of 1 - e^-h (appendix F).
    """
    whole = -math.expm1(-h)
    if len(nodes) == 1:
        return [whole]
    if len(nodes) == 2:
        slope = 0.5 * whole / sum(nodes)
        return [slope if node else whole - slope for node in nodes]
    moments = [whole]
    for k in range(1, len(nodes)):  # ∫ of r^k: by parts, or where that would cancel by its series
        series = h * math.exp(-h) * sum(h**j / (math.factorial(j) * (k + j + 1)) for j in range(25))
        moments.append(series if h < 1 else 1 - k / h * moments[-1])
    powers = torch.tensor([[node**k for node in nodes] for k in range(len(nodes))], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
